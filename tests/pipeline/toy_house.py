"""The command with toy stages, in a working folder."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.patience import PATIENCE
from tests.pipeline.fake_stages import build_house, build_inputs

ONE_ROUND = ("--set", "rounds=1")
STEPS_OF_ONE_ROUND = [
    "prepare_data",
    "prepare_base",
    "round-0.sft",
    "round-0.evaluate_policy",
    "round-1.annotate",
    "round-1.reward_model",
    "round-1.rejection_sampling",
    "round-1.sft",
    "round-1.dpo",
    "round-1.evaluate_policy",
]


class World:
    """A source tree with toy stages, a working folder, and the command."""

    def __init__(self, root: Path) -> None:
        self.command = build_house(root / "house")
        self.work = build_inputs(root / "work").parent
        self.run_folder = self.work / "runs" / "toy"

    def start(self, *words: str, before: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
        env = os.environ | {"TOY": "{}", "SCORES": "{}", "GRACE": "0.5"} | environment
        return subprocess.Popen(
            [*before, sys.executable, str(self.command), *words],
            cwd=self.work,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def call(self, *words: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    def run(self, *words: str, **environment: str) -> tuple[int, str, str]:
        return self.call("run", "toy.yaml", *ONE_ROUND, *words, **environment)

    def launched(self) -> list[str]:
        """The steps that were started since the last call."""
        path = self.run_folder / "launched.txt"
        names = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return names

    def summary(self) -> dict:
        return json.loads((self.run_folder / "summary.json").read_text())

    def states(self) -> dict[str, str]:
        return {step["name"]: step["state"] for step in self.summary()["steps"]}

    def folder(self, step: str) -> Path:
        (folder,) = self.run_folder.glob(f"{step}-????????")
        return folder

    def config(self, step: str) -> dict:
        return yaml.safe_load((self.folder(step) / "config.yaml").read_text())

    def hanging(self, *, stages: int = 1) -> list[int]:
        """Waits until the toy stages hang. Returns the process ids of the stages and of their children."""
        path, deadline = self.run_folder / "hanging.txt", time.monotonic() + 120
        while not (path.exists() and len(path.read_text().split()) == 2 * stages):
            assert time.monotonic() < deadline, "no stage hangs"
            time.sleep(0.02)
        return [int(pid) for pid in path.read_text().split()]


def copied(world: World, work: Path) -> World:
    """The same command on a copy of the run and its inputs."""
    other = World.__new__(World)
    other.command, other.work, other.run_folder = world.command, work, work / "runs" / "toy"
    shutil.copytree(world.work, work, symlinks=True, dirs_exist_ok=True)
    return other
