"""Verifies a run: everything that a later step would read is compared with the records and with the summary."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_schemas.artifact import RECORD, Artifact
from data_schemas.errors import UserError
from data_schemas.files import DIGEST, digest, read_json, verified_text
from data_schemas.reference_log_probs import FOLDER as REFERENCES
from pipeline.state import summary
from pipeline.state.run import IDENTITY_FILE
from pipeline.state.summary import SUMMARY, StepEntry, Summary

FINISHED = ("ran", "reused", "resumed")  # states of a step that has its record


@dataclass
class StepCheck:
    """The result for one step's folder, for the reference log-probs of one reference, or for the summary."""

    folder: Path
    state: str  # "complete" or "not finished"
    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    name: str = ""  # what is shown; by default the folder's name

    def __post_init__(self) -> None:
        self.name = self.name or self.folder.name


def check_run(run: Path) -> Iterator[StepCheck]:
    """The result for every step folder of a run, also for those that its last run does not use. Reads every file.

    After the steps come the reference log-probs, and last the summary where it contradicts the records.
    """
    listed, damage = _read_summary(run)
    finished = {step["folder"]: step for step in listed["steps"] if step["state"] in FINISHED} if listed else {}
    found: dict[str, Artifact] = {}
    for folder in sorted(path for path in run.glob("*") if path.is_dir() and not path.is_symlink()):
        if (folder / RECORD).exists():
            result, record = _check_step(folder)
            found |= {folder.name: record} if record is not None else {}
            yield result
        elif folder.name in finished:
            problem = f"{RECORD} is missing: {SUMMARY} has this step as finished"
            yield StepCheck(folder, "not finished", problems=[problem])
        elif (folder / IDENTITY_FILE).exists():
            yield StepCheck(folder, "not finished")
    for name in filter(None, finished):
        if not (run / name).is_dir():
            problem = f"the folder is missing: {SUMMARY} has this step as finished"
            yield StepCheck(run / name, "not finished", problems=[problem])
    yield from _check_references(run)
    problems = damage + (_contradictions(listed, found) + _wrong_links(run, listed) if listed else [])
    if problems:
        yield StepCheck(run / SUMMARY, "complete", 1, (run / SUMMARY).stat().st_size, problems)


def remedies(damaged: Sequence[StepCheck]) -> list[str]:
    """What to do about results with problems: a sentence for those that were changed, and one for what is missing."""
    stale = [step.name for step in damaged if step.state != "complete" or step.folder.name == SUMMARY]
    changed = [step.name for step in damaged if step.name not in stale]
    said = []
    if changed:
        names = ", ".join(changed)
        said.append(f"{names}: changed since it was written; move it away, and `run` runs the step again")
    if stale:
        said.append(f"{', '.join(stale)}: missing or out of date; run the recipe again, which writes it")
    return said


def _read_summary(run: Path) -> tuple[Summary | None, list[str]]:
    """The summary, None where there is none, and how it is damaged."""
    if not (run / SUMMARY).exists():
        return None, []
    try:
        return summary.read(run), []
    except UserError as error:
        return None, [str(error).removeprefix(f"{run}/")]


def _check_step(folder: Path) -> tuple[StepCheck, Artifact | None]:
    try:
        record = Artifact.read(folder)
    except UserError as error:
        return StepCheck(folder, "complete", problems=[str(error).removeprefix(f"{folder}/")]), None
    assert record is not None
    result = StepCheck(folder, "complete", len(record.files), sum(record.files.values()), record.damage(folder))
    if DIGEST not in (read_json(folder / RECORD) or {}):
        result.problems.append(f"{RECORD} has no digest of itself: it was changed, or is of an older version")
    if record.sha256.keys() != record.files.keys():
        result.problems.append(f"{RECORD} does not have the hash of every file: it is of an older version")
    identity = read_json(folder / IDENTITY_FILE)
    if identity is None or digest(identity) != record.fingerprint:
        result.problems.append(f"{IDENTITY_FILE} is not the identity that the record's fingerprint was computed from")
    if not folder.name.endswith(f"-{record.fingerprint[:8]}"):
        result.problems.append(f"the folder's name does not end in its fingerprint, {record.fingerprint[:8]}")
    result.problems += _added_files(folder, record)
    return result, record


def _added_files(folder: Path, record: Artifact) -> list[str]:
    """The files in a folder of outputs, as a model's, that the record does not name: whoever loads it may read them."""
    problems = []
    for output in sorted(set(record.outputs.values())):
        if (folder / output).is_dir() and not (folder / output).samefile(folder):
            names = (str(path.relative_to(folder)) for path in (folder / output).rglob("*") if not path.is_dir())
            problems += [f"{name} was added after the record was written" for name in names if name not in record.files]
    return problems


def _check_references(run: Path) -> Iterator[StepCheck]:
    """The cache of reference log-probs. Every batch in it has its digest; a killed stage may cut off the last one."""
    for folder in sorted(path for path in run.glob(f"{REFERENCES}/*") if path.is_dir()):
        files = sorted(folder.glob("*.jsonl"))
        # A step leaves a note under its folder's name once it has all its numbers.
        steps = ", ".join(sorted(path.stem for path in folder.glob("*.json"))) or "an unfinished step"
        name = f"reference log-probs of {steps}"
        result = StepCheck(folder, "complete", len(files), sum(path.stat().st_size for path in files), name=name)
        for path in files:
            changed = sum(not _is_batch(line) for line in path.read_bytes().splitlines(keepends=True))
            if changed:
                result.problems.append(
                    f"{folder.name}/{path.name}: {changed} of its batches were changed after they were written; delete "
                    "the file, and they are computed again"
                )
        yield result


def _is_batch(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return True  # cut off; a reader ignores it
    text = verified_text(line.decode("utf-8", errors="replace").rstrip("\n"))
    try:
        return text is not None and {"pass", "sums"} <= json.loads(text).keys()
    except (ValueError, AttributeError):
        return False


def _contradictions(listed: Summary, found: Mapping[str, Artifact]) -> list[str]:
    """What the summary says otherwise than the records of its steps."""
    problems = []
    finished = [step for step in listed["steps"] if step["folder"] in found and step["state"] in FINISHED]
    for step in finished:
        record = found[step["folder"] or ""]
        for name in ("stage", "fingerprint", "metrics"):
            if step[name] != getattr(record, name):
                problems.append(f"{name} of {step['name']} is not that of its record")
        if step["name"] != record.step:
            problems.append(f"{step['name']} is {record.step} in its record")
    problems += _wrong_rounds(listed, finished, found)
    evaluations = [found[step["folder"] or ""] for step in finished if step["stage"] == "evaluate_policy"]
    choice = next((record.choices[0] for record in reversed(evaluations) if record.choices), None)
    best = listed["best_policy"]
    folders = [step["folder"] for step in listed["steps"] if choice is not None and step["name"] == choice.step]
    if choice is not None and (best is None or (best["step"], best["score"]) != (choice.step, choice.score)):
        problems.append(f"best_policy is not {choice.step}, which the last evaluation ranks first")
    elif choice is not None and best is not None and best["folder"].split("/")[0] not in folders:
        problems.append(f"best_policy has not the folder of {choice.step}")
    return [f"{problem}; run the recipe again to rewrite {SUMMARY}" for problem in problems]


def _wrong_links(run: Path, listed: Summary) -> list[str]:
    """The links in `steps`, which people follow, that lead to another folder than the summary names."""
    folders = {step["name"]: step["folder"] or "" for step in listed["steps"] if step["state"] in FINISHED}
    return [
        f"steps/{link.name} does not lead to {folders[link.name]}; run the recipe again to rewrite it"
        for link in sorted(run.glob("steps/*"))
        if link.is_symlink() and link.name in folders and link.resolve() != (run / folders[link.name]).resolve()
    ]


def _wrong_rounds(listed: Summary, finished: list[StepEntry], found: Mapping[str, Artifact]) -> Iterator[str]:
    """The numbers in the table of rounds that no step of the round has measured."""
    for row in listed["rounds"]:
        records = [found[step["folder"] or ""] for step in finished if step["round"] == row["round"]]
        for column, _, metric in summary.columns():
            measured = [record.metrics.get(metric) for record in records]
            if row[column] is not None and row[column] not in measured:
                yield f"{column} of round {row['round']} was not measured by any of its steps"
