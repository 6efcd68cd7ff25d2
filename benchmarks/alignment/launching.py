"""Runs recipes of the alignment benchmark, each process on one core, as many at a time as there are cores."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from benchmarks.alignment.report import ROOT, RUNS

BASE = "alignment-base"
MEASURING = {  # keys of evaluate_policy where a policy is measured by hand
    "num_answers": 4,
    "max_new_tokens": 32,
    "generation_batch_size": 256,
    "use_cpu": True,
    "report_to": "none",
}
Part = TypeVar("Part")


def launch(words: Sequence[str], core: int | None) -> None:
    """Runs `python -m <words>`, on one core if it is given. Raises CalledProcessError if it fails."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    command = [sys.executable, "-m", *words]
    subprocess.run(command, cwd=ROOT, preexec_fn=pin, stdout=subprocess.PIPE, check=True)


def alignloop(settings: Sequence[str], *, recipe: str = "configs/demo.yaml", core: int | None = None) -> None:
    """Runs a recipe, on one core if it is given. Raises CalledProcessError if the run fails."""
    words = [word for setting in settings for word in ("--set", setting)]
    launch(["pipeline.cli", "run", str(ROOT / recipe), *words], core)


def make_base() -> Path:
    """The folder of the pretrained base that all runs in the world share; trains it if it is missing."""
    alignloop([f"name={BASE}", "rounds=0"])
    return (RUNS / BASE / "steps" / "prepare_base" / "model").resolve()


def on_cores(run: Callable[[Part, int], None], parts: Sequence[Part]) -> None:
    """Calls run(part, core) for every part, with as many calls at a time as there are cores."""
    started = time.monotonic()
    free = sorted(os.sched_getaffinity(0))

    def on_a_core(part: Part) -> None:
        core = free.pop()
        try:
            run(part, core)
        finally:
            free.append(core)

    with ThreadPoolExecutor(len(free)) as pool:
        list(pool.map(on_a_core, parts))
    print(f"finished in {(time.monotonic() - started) / 60:.0f} minutes", flush=True)
