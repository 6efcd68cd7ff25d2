"""What finished steps took, from their outcome.json: of this run, and of the other runs in the same folder."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_schemas.artifact import Artifact
from data_schemas.files import read_json
from pipeline.planner.devices import key_of
from pipeline.planner.speed import FinishedStep
from pipeline.planner.work import Work
from pipeline.state.costs import ESTIMATE
from pipeline.state.run import Run

WORKING = ("train", "evaluate", "generate", "score")  # parts of outcome.json's seconds that grow with the rows
MAX_OTHERS = 200  # folders of other runs that are looked at


def finished_steps(run: Run, works: Mapping[str, Work], parameters: Mapping[str, int]) -> list[FinishedStep]:
    """The finished steps that times are learnt from. The work of this run's is known from the rows that they read.

    `parameters` are those of the model of each step of this run.
    """
    found: list[FinishedStep] = []
    own = {run.folder(step.name): works[step.name].flops for step in run.steps}
    for step in run.steps:
        folder = run.folder(step.name)
        if folder is not None and step.name not in run.elsewhere and Artifact.read(folder) is not None:
            found += _of_folder(folder, step.stage, works[step.name].flops, parameters[step.name])
    for folder in _others(run.recipe.folder.parent):
        estimate = read_json(folder / ESTIMATE) or {}
        if folder not in own and isinstance(estimate.get("flops"), int | float):
            of_model = int(estimate.get("parameters", 0))
            found += _of_folder(folder, str(estimate.get("stage")), estimate["flops"], of_model)
    return found


def _others(runs: Path) -> Sequence[Path]:
    """The folders of steps with an estimate, the newest first."""
    files = sorted(runs.glob(f"*/*/{ESTIMATE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [file.parent for file in files[:MAX_OTHERS] if not file.parent.is_symlink()]


def _of_folder(folder: Path, stage: str, flops: float, parameters: int) -> Iterator[FinishedStep]:
    outcome = read_json(folder / "outcome.json") or {}
    used = outcome.get("used")
    seconds = outcome.get("seconds")
    if outcome.get("state") != "done" or not isinstance(used, dict) or not isinstance(seconds, dict):
        return
    working = sum(seconds.get(part, 0.0) for part in WORKING)
    yield FinishedStep(
        stage=stage,
        hardware=key_of(str(used.get("device"))),
        processes=int(used.get("processes", 1)),
        parameters=parameters,
        flops=flops,
        working_seconds=working,
        other_seconds=sum(seconds.values()) - working,
    )
