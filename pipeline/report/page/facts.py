"""What the page shows of a run: its summary, and of every step's folder what is needed, read once when it is final."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_schemas.artifact import Artifact
from data_schemas.errors import DataError
from data_schemas.files import read_json
from data_schemas.progress import StageProgress
from data_schemas.stage_keys import stages
from pipeline.report.calibration import Rater, raters_of_step
from pipeline.report.page.answers import Evaluated, read_evaluation
from pipeline.report.page.curves import Curves, read_curves
from pipeline.state.summary import StepEntry, Summary

DROPPED, LEFT_OUT = "dropped_", "_left_out"  # the names of metrics that count rows begin or end so
OTHER_COUNTS = ("rejected_rows", "set_aside_by_template", "skipped_steps")


@dataclass(frozen=True)
class StepFacts:
    """A step, with what its folder says."""

    entry: StepEntry
    record: Artifact | None
    problem: str  # why its record, or what its raters compared, can't be read
    curves: Curves | None  # of a step that trains
    evaluated: Evaluated | None  # of an evaluation
    raters: Sequence[Rater]  # judges, reward models and people that compared answers in it
    seconds_by_part: Mapping[str, float]
    progress: StageProgress  # of a running step

    @property
    def name(self) -> str:
        return self.entry["name"]

    @property
    def dropped(self) -> dict[str, int]:
        """Number of rows that the step did not use, by the name of the metric that counts them."""
        return {
            name: value
            for name, value in self.entry["metrics"].items()
            if isinstance(value, int) and value and _counts_dropped(name)
        }

    @property
    def keys_that_differ(self) -> dict[str, tuple[object, object]]:
        """Recorded keys whose value is not the stage's default, with the default."""
        known = stages()[self.entry["stage"]].keys
        recorded = self.record.keys if self.record else {}
        return {
            name: (value, known[name].default)
            for name, value in recorded.items()
            if name in known and value != known[name].default
        }


def _counts_dropped(name: str) -> bool:
    bare = name.removeprefix("eval_").removeprefix("held_out_")
    return bare.startswith(DROPPED) or name.endswith(LEFT_OUT) or bare in OTHER_COUNTS


@dataclass
class FactsReader:
    """Reads the facts of a run. What is final is kept, since a finished step's folder never changes."""

    folder: Path
    finished: dict[str, StepFacts] = field(default_factory=dict)  # by the name of the step's folder

    def read(self, summary: Summary) -> list[StepFacts]:
        """The facts of every step, in the order of the plan."""
        return [self._read_step(entry) for entry in summary["steps"]]

    def _read_step(self, entry: StepEntry) -> StepFacts:
        name = entry["folder"]
        if name is None or not (self.folder / name).is_dir():
            return StepFacts(entry, None, "", None, None, [], {}, StageProgress())
        if name in self.finished:
            kept = self.finished[name]
            return StepFacts(entry, *(getattr(kept, part) for part in _PARTS))
        folder, problem, record = self.folder / name, "", None
        evaluated, raters = None, list[Rater]()
        try:
            record = Artifact.read(folder)
            if record and entry["stage"] == "evaluate_policy":
                evaluated = _evaluated(folder, record)
            if record and not (evaluated and evaluated.problem):  # one sentence says what is damaged
                raters = raters_of_step(entry["name"], folder, record)
        except (DataError, OSError) as error:
            problem = str(error)
        facts = StepFacts(
            entry=entry,
            record=record,
            problem=problem,
            curves=read_curves(folder / "metrics.jsonl", saved_step=entry["metrics"].get("best_step"))
            if _trains(entry)
            else None,
            evaluated=evaluated,
            raters=raters,
            seconds_by_part=_seconds_by_part(folder),
            progress=StageProgress() if record else StageProgress.read(folder),
        )
        if record is not None:
            self.finished[name] = facts
        return facts


_PARTS = ("record", "problem", "curves", "evaluated", "raters", "seconds_by_part", "progress")


def _trains(entry: StepEntry) -> bool:
    return stages()[entry["stage"]].traits.kind == "trains"


def _evaluated(folder: Path, record: Artifact) -> Evaluated:
    return read_evaluation(folder, str(record.keys.get("policy_step") or record.step), record.outputs)


def _seconds_by_part(folder: Path) -> dict[str, float]:
    """Seconds of loading, training, generating, …, from the step's outcome.json."""
    try:
        parts = (read_json(folder / "outcome.json") or {}).get("seconds")
    except (OSError, json.JSONDecodeError):
        return {}
    if not isinstance(parts, dict):
        return {}
    return {str(name): float(value) for name, value in parts.items() if isinstance(value, int | float)}


def evaluations(steps: Sequence[StepFacts]) -> list[Evaluated]:
    """The evaluations that have been read, in the order of the plan."""
    return [step.evaluated for step in steps if step.evaluated is not None]
