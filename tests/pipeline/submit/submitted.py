"""A run that the tests of all schedulers submit, and what it computed."""

import json

from pipeline.recipe.sections import Launch
from pipeline.steps import Step
from pipeline.submit.jobs import Job
from tests.pipeline.toy_house import World

SETTINGS = ("--set", "rounds=0", "--set", "defaults.bf16=false", "--set", "sft.launch.grace_seconds=30")
SAVES = json.dumps({"round-0.sft": "checkpoint on SIGTERM"})  # TOY of a run whose first training step hangs once

# A program that hangs until SIGTERM in place of `alignloop`; with the file `done` in the working directory it succeeds.
PROGRAM = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
Path("hangs").touch()
while not Path("done").exists():
    time.sleep(0.02)
"""


def job_named(name: str, **values) -> Job:
    """A job of one process on a CPU."""
    step = Step(name, "sft", 0, "sft", {}, {}, values.pop("launch", Launch(device="cpu")))
    given = {"machines": 1, "gpus": 0, "cores": 1, "memory": None, "minutes": 60, "is_estimated": False} | values
    return Job(step, **given)


def records(world: World) -> dict[str, object]:
    """What the run computed, by folder: everything of the records but the time it took."""
    found = {}
    for path in world.run_folder.glob("*/artifact.json"):
        record = json.loads(path.read_text())
        found[path.parent.name] = {key: record[key] for key in ("fingerprint", "inputs", "outputs", "files", "metrics")}
    return found
