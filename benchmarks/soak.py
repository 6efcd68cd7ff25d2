"""Kills the loop at random moments, and checks that the resumed run writes the same files, bit for bit.

    python -m benchmarks.soak --kills 50        # make soak

For each seed, configs/demo.yaml runs once undisturbed and once with SIGKILLs until it is complete. A kill hits the
runner, only the stage, or both. Afterwards every file of every step must have the same hash as in the undisturbed run.
The exit code is 1 if one differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from data_schemas.artifact import Artifact

ROOT = Path(__file__).absolute().parents[1]
SECONDS_TO_KILL = (1.0, 14.0)  # from a start to its kill; starting takes about six seconds
MAX_KILLS_OF_STEP = 4  # after these a step is no longer killed, so that every kind of stage is
VICTIMS = ("runner", "stage", "both")


def start(name: str, seed: int, recipe: Path, settings: list[str]) -> subprocess.Popen[bytes]:
    """Starts `alignloop run`."""
    all_settings = [f"name={name}", f"seed={seed}", "defaults.save_strategy=steps", *settings]
    words = [word for setting in all_settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "pipeline.cli", "run", str(recipe), *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Waits for a run to end. Exits with its messages if it fails."""
    _, err = process.communicate()
    if process.returncode:
        sys.exit(err.decode())


def running_step(folder: Path) -> tuple[str, str, list[int]]:
    """The name of the step that is running, its stage, and the processes that hold its lock."""
    try:
        steps: list[dict[str, Any]] = json.loads((folder / "summary.json").read_text())["steps"]
    except (FileNotFoundError, json.JSONDecodeError):
        return "", "before the first step", []
    step = next((step for step in steps if step["state"] == "running"), None)
    if step is None:
        return "", "between two steps", []
    try:
        holder = (folder / step["folder"] / ".lock").read_text().split()
    except FileNotFoundError:
        holder = []
    return str(step["name"]), str(step["stage"]), [int(holder[0])] if holder else []


def wait_for_kill(
    process: subprocess.Popen[bytes], folder: Path, kills: Counter[str], generator: random.Random
) -> bool:
    """Waits for a random time, and then until a step runs that was killed fewer than MAX_KILLS_OF_STEP times.

    Returns whether the run ended before.
    """
    seconds = generator.uniform(*SECONDS_TO_KILL)
    while True:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            if kills[running_step(folder)[0]] < MAX_KILLS_OF_STEP:
                return False
            seconds = generator.uniform(0.1, 3.0)
        else:
            return True


def kill(process: subprocess.Popen[bytes], folder: Path, kills: Counter[str], generator: random.Random) -> str | None:
    """Kills the runner, the stage or both. Returns the stage that was running, or None if the run had ended."""
    step, stage, pids = running_step(folder)
    victim = generator.choice(VICTIMS) if pids else "runner"
    targets = ([process.pid] if victim != "stage" else []) + (pids if victim != "runner" else [])
    if process.poll() is not None:
        return None
    for pid in targets:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()
    kills[step] += bool(step)
    return stage


def hashes(folder: Path) -> dict[str, dict[str, str]]:
    """Folder of a step -> its files -> their hashes."""
    by_step = {}
    for path in sorted(folder.glob("*-????????")):
        record = Artifact.read(path)
        if record is not None:
            by_step[path.name] = record.sha256
    return by_step


def soak(seed: int, kills: int, recipe: Path, settings: list[str]) -> tuple[Counter[str], bool]:
    """Runs one seed undisturbed and killed. Returns the kills by stage, and whether every file is the same."""
    names = [f"soak-{seed}-{kind}" for kind in ("undisturbed", "killed")]
    undisturbed, killed = (ROOT / "runs" / name for name in names)
    for folder in (undisturbed, killed):
        shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    finish(start(names[0], seed, recipe, settings))
    undisturbed_seconds = time.monotonic() - started

    generator, by_stage, by_step, started = random.Random(seed), Counter[str](), Counter[str](), time.monotonic()
    while by_stage.total() < kills:
        process = start(names[1], seed, recipe, settings)
        if not wait_for_kill(process, killed, by_step, generator):
            stage = kill(process, killed, by_step, generator)
            if stage is not None:
                by_stage[stage] += 1
                continue
        finish(process)
        break
    else:
        finish(start(names[1], seed, recipe, settings))
    killed_seconds = time.monotonic() - started
    first, second = hashes(undisturbed), hashes(killed)
    differing = [
        f"{step}/{file}"
        for step in first.keys() | second.keys()
        for file in first.get(step, {}).keys() | second.get(step, {}).keys()
        if first.get(step, {}).get(file) != second.get(step, {}).get(file)
    ]
    number = by_stage.total()
    print(
        f"seed {seed}: {number} kills; {len(first)} steps, {sum(map(len, first.values()))} files, "
        f"{len(differing)} differ; undisturbed {undisturbed_seconds:.0f} s, killed {killed_seconds:.0f} s, "
        f"{(killed_seconds - undisturbed_seconds) / max(1, number):.1f} s a kill",
        flush=True,
    )
    for name in sorted(differing)[:5]:
        print(f"  differs: {name}")
    return by_stage, not differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills in all, over as many seeds as they take")
    parser.add_argument("--recipe", type=Path, default=ROOT / "configs" / "demo.yaml", help="the recipe to run")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    total, are_same, seed = Counter[str](), True, 0
    while total.total() < arguments.kills and are_same:
        by_stage, are_same = soak(
            seed, arguments.kills - total.total(), arguments.recipe.absolute(), arguments.settings
        )
        total += by_stage
        seed += 1
    print("kills by stage: " + ", ".join(f"{stage} {count}" for stage, count in total.most_common()))
    print("every file of every step is the same" if are_same else "the files of the two runs differ")
    sys.exit(0 if are_same else 1)


if __name__ == "__main__":
    main()
