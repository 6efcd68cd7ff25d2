"""Kill the loop at random moments, again and again: is what comes out the same, bit by bit?

    python -m benchmarks.soak --kills 50        # make soak

Each round of it is one seed of configs/demo.yaml: run once as it is, and once killed by SIGKILL until it is through,
its runner, the stage alone, or both. Then every file of every step must have the hash that it has in the run that was
left alone. Exits with 1 where one differs.
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
SECONDS = (1.0, 14.0)  # between a start and its kill; a start takes about six
MOST = 4  # kills of one step: then it is let pass, so that every kind of stage has its share
WHO = ("runner", "stage", "both")


def start(name: str, seed: int, recipe: Path, settings: list[str]) -> subprocess.Popen[bytes]:
    given = [f"name={name}", f"seed={seed}", "defaults.save_strategy=steps", *settings]
    words = [word for setting in given for word in ("--set", setting)]
    command = [sys.executable, "-m", "pipeline.cli", "run", str(recipe), *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, err = process.communicate()
    if process.returncode:
        sys.exit(err.decode())


def running_step(folder: Path) -> tuple[str, str, list[int]]:
    """The step that runs in a run's folder, its stage, and the processes that hold its lock."""
    try:
        steps: list[dict[str, Any]] = json.loads((folder / "summary.json").read_text())["steps"]
    except (FileNotFoundError, json.JSONDecodeError):
        return "", "before the first", []
    step = next((step for step in steps if step["state"] == "running"), None)
    if step is None:
        return "", "between two", []
    try:
        holder = (folder / step["folder"] / ".lock").read_text().split()
    except FileNotFoundError:
        holder = []
    return str(step["name"]), str(step["stage"]), [int(holder[0])] if holder else []


def wait(process: subprocess.Popen[bytes], folder: Path, kills: Counter[str], drawn: random.Random) -> bool:
    """For a random time, and on until a step runs that was not killed often enough. Whether the run ended before."""
    seconds = drawn.uniform(*SECONDS)
    while True:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            if kills[running_step(folder)[0]] < MOST:
                return False
            seconds = drawn.uniform(0.1, 3.0)
        else:
            return True


def kill(process: subprocess.Popen[bytes], folder: Path, kills: Counter[str], drawn: random.Random) -> str | None:
    """Kills what is drawn; the stage that it hit, or None where the run was through already."""
    step, stage, pids = running_step(folder)
    who = drawn.choice(WHO) if pids else "runner"
    targets = ([process.pid] if who != "stage" else []) + (pids if who != "runner" else [])
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
    """Step's folder -> its files -> their hashes."""
    found = {}
    for path in sorted(folder.glob("*-????????")):
        record = Artifact.read(path)
        if record is not None:
            found[path.name] = record.sha256
    return found


def soak(seed: int, kills: int, recipe: Path, settings: list[str]) -> tuple[Counter[str], bool]:
    """Kills by stage, and whether every file came out the same."""
    names = [f"soak-{seed}-{kind}" for kind in ("whole", "killed")]
    whole, killed = (ROOT / "runs" / name for name in names)
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    finish(start(names[0], seed, recipe, settings))
    alone = time.monotonic() - started

    drawn, by_stage, by_step, started = random.Random(seed), Counter[str](), Counter[str](), time.monotonic()
    while by_stage.total() < kills:
        process = start(names[1], seed, recipe, settings)
        if not wait(process, killed, by_step, drawn):
            stage = kill(process, killed, by_step, drawn)
            if stage is not None:
                by_stage[stage] += 1
                continue
        finish(process)
        break
    else:
        finish(start(names[1], seed, recipe, settings))
    took = time.monotonic() - started
    first, second = hashes(whole), hashes(killed)
    differing = [
        f"{step}/{file}"
        for step in first.keys() | second.keys()
        for file in first.get(step, {}).keys() | second.get(step, {}).keys()
        if first.get(step, {}).get(file) != second.get(step, {}).get(file)
    ]
    number = by_stage.total()
    print(
        f"seed {seed}: {number} kills; {len(first)} steps, {sum(map(len, first.values()))} files, "
        f"{len(differing)} differ; alone {alone:.0f} s, killed {took:.0f} s, "
        f"{(took - alone) / max(1, number):.1f} s a kill",
        flush=True,
    )
    for name in sorted(differing)[:5]:
        print(f"  differs: {name}")
    return by_stage, not differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--recipe", type=Path, default=ROOT / "configs" / "demo.yaml")
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
    print("every file of every step is the same" if are_same else "the runs differ")
    sys.exit(0 if are_same else 1)


if __name__ == "__main__":
    main()
