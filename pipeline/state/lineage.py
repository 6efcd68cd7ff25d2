"""What a step's folder was made from, by the identities stored in the folders of its run: steps, rows and models.

An identity counts only if its digest is the fingerprint of the record beside it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from data_schemas.artifact import Artifact
from data_schemas.files import digest, read_json
from data_schemas.stage_keys import stages
from pipeline.state.run import IDENTITY_FILE

CONFIG = "config.yaml"


@dataclass(frozen=True)
class FinishedStep:
    """A step's folder with its record, and what it was given."""

    folder: Path
    record: Artifact
    identity: dict[str, Any]  # empty where its file is missing or damaged
    config: dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Rows or a model from outside the run."""

    kind: Literal["rows", "model"]
    name: str  # a hub name, or the last part of a path
    sha256: str | None  # of its content; None for a hub name


@dataclass
class Lineage:
    steps: list[FinishedStep] = field(default_factory=list)  # each after those that it depends on
    origins: list[Origin] = field(default_factory=list)
    read: set[tuple[str, str]] = field(default_factory=set)  # the fingerprint and output of everything that was read
    missing: list[str] = field(default_factory=list)  # fingerprints of steps whose folder is no longer in the run


def lineage_of(run: Path, folder: Path) -> Lineage:
    """Everything that the finished step in `folder` depends on, and the step itself, which comes last.

    Raises DataError for a damaged record.
    """
    found, seen = Lineage(), set[str]()
    _visit(run, folder, found, seen)
    return found


def read_step(folder: Path) -> FinishedStep | None:
    """A step's folder; None where it has no record. Raises DataError for a damaged record."""
    record = Artifact.read(folder)
    if record is None:
        return None
    identity = read_json(folder / IDENTITY_FILE) or {}
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        config = None
    is_its_own = digest(identity) == record.fingerprint
    return FinishedStep(folder, record, identity if is_its_own else {}, config if isinstance(config, dict) else {})


def rows_in(path: Path) -> int:
    """The number of lines of a file, each of which is a row."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _visit(run: Path, folder: Path, found: Lineage, seen: set[str]) -> None:
    step = read_step(folder)
    assert step is not None, "only folders with a record are visited"
    for key, place, item in _inputs(step):
        source, of_step = str(item[0]), _folder_of(run, str(item[0]))
        found.read |= {(source, str(name)) for name in item[1:2]}
        if source in seen:
            continue
        seen.add(source)
        if of_step is not None:
            _visit(run, of_step, found, seen)
        elif origin := _origin(step, key, place, source, is_output=len(item) > 1 and not str(item[1]).startswith("{")):
            found.origins.append(origin)
        else:
            found.missing.append(source)
    found.steps.append(step)


def _inputs(step: FinishedStep) -> Iterator[tuple[str, int, list[str | int]]]:
    for key, items in step.identity.get("inputs", {}).items():
        yield from ((key, place, item) for place, item in enumerate(items))


def _folder_of(run: Path, fingerprint: str) -> Path | None:
    """The finished folder with this fingerprint."""
    if not _is_hash(fingerprint):
        return None
    for folder in run.glob(f"*-{fingerprint[:8]}"):
        record = Artifact.read(folder)
        if record is not None and record.fingerprint == fingerprint and record.stage in stages():
            return folder
    return None


def _origin(step: FinishedStep, key: str, place: int, source: str, *, is_output: bool) -> Origin | None:
    """What an input from outside the run is; None for the output of a step whose folder is gone."""
    known = stages()[step.record.stage].keys
    role = known[key].role if key in known else ""
    if is_output or role not in ("rows", "model"):
        return None
    if not _is_hash(source):
        return Origin("rows" if role == "rows" else "model", source, None)
    given = step.config.get(key)
    values = given if isinstance(given, list) else [given]
    value = values[place] if place < len(values) else None
    name = Path(str((value.get("path") if isinstance(value, dict) else value) or key)).name
    if name.endswith(f"-{source[:8]}"):  # an evaluation's folder, which is gone
        return None
    return Origin("rows" if role == "rows" else "model", name, source)


def _is_hash(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None
