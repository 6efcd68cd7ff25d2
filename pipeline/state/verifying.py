"""Verifies a run: every file of every step is compared with the step's record."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_schemas.artifact import RECORD, Artifact
from data_schemas.errors import UserError
from data_schemas.files import digest, read_json
from pipeline.state.run import IDENTITY_FILE


@dataclass
class StepCheck:
    """The result for one step's folder."""

    folder: Path
    state: str  # "complete", "sizes only" (a record of an older version, without hashes) or "not finished"
    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


def check_run(run: Path) -> Iterator[StepCheck]:
    """The result for every step folder of a run, also for those that its last run does not use. Reads every file."""
    for folder in sorted(path for path in run.glob("*") if path.is_dir() and not path.is_symlink()):
        if (folder / RECORD).exists():
            yield _check_step(folder)
        elif (folder / IDENTITY_FILE).exists():
            yield StepCheck(folder, "not finished")


def _check_step(folder: Path) -> StepCheck:
    try:
        record = Artifact.read(folder)
    except UserError as error:
        return StepCheck(folder, "complete", problems=[str(error).removeprefix(f"{folder}/")])
    assert record is not None
    state = "complete" if record.sha256.keys() == record.files.keys() else "sizes only"
    result = StepCheck(folder, state, len(record.files), sum(record.files.values()), record.damage(folder))
    identity = read_json(folder / IDENTITY_FILE)
    if identity is None or digest(identity) != record.fingerprint:
        result.problems.append(f"{IDENTITY_FILE} is not the identity that the record's fingerprint was computed from")
    if not folder.name.endswith(f"-{record.fingerprint[:8]}"):
        result.problems.append(f"the folder's name does not end in its fingerprint, {record.fingerprint[:8]}")
    return result
