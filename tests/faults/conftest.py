"""A small disk in memory, a finished run and a trained model; tests work on copies."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.disks import Disk
from tests.faults.runs import NO_ROUND, STEPS, training
from tests.pipeline.toy_house import World
from tests.stage_runs import run_here


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Disk]]:
    """small_disk(megabytes)"""
    disks: list[Disk] = []

    def mount(megabytes: int) -> Disk:
        folder = tmp_path / f"disk-{len(disks)}"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            pytest.skip(f"no tmpfs can be mounted here: {error}")
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        disks.append(Disk(folder))
        return disks[-1]

    yield mount
    for disk in disks:
        subprocess.run(["umount", "-l", disk.folder], check=True)


@pytest.fixture(scope="session")
def trained(tiny_model, rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "sft"
    run_here("sft", folder, **training(tiny_model, rows))
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> World:
    """A run of four toy steps; tests take a copy."""
    world = World(tmp_path_factory.mktemp("finished"))
    assert world.call(*NO_ROUND)[0] == 0
    assert world.launched() == STEPS
    return world
