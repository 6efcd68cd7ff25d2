"""What lies in a run's folder that its last run does not need: steps of keys that were edited since, tries that failed.

Only what the runner made itself is listed: a folder whose name ends in the digest of the identity in it. All else in a
run's folder is a person's.
"""

import shutil
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_schemas.artifact import RECORD
from data_schemas.errors import ConfigError
from data_schemas.files import digest, read_json
from data_schemas.locks import is_locked
from data_schemas.reference_log_probs import FOLDER as REFERENCES
from pipeline.state.run import IDENTITY_FILE

GOING = ".pruned-"  # before the name of a folder that is on its way out


@dataclass(frozen=True)
class Unneeded:
    folder: Path
    bytes: int
    written: float  # the newest file in it, in seconds since the epoch
    state: str  # "finished", "not finished", "reference log-probs" or "half deleted"


def needed_by(run: Path, summary: Mapping[str, Any]) -> set[str]:
    """The names of the step folders that the last run used or made.

    Raises ConfigError where it did not finish: the results of the one before may be all that there is.
    """
    if summary["state"] != "done":
        raise ConfigError(
            f"the last run in {run} is {summary['state']}, and only one that is done says what it needs; "
            f"run the recipe that you keep to its end"
        )
    return {step["folder"] for step in summary["steps"]}


def unneeded(run: Path, needed: Set[str]) -> list[Unneeded]:
    """What an earlier call left half deleted comes first."""
    found = [_measured(folder, "half deleted") for folder in _folders(run, f"{GOING}*")]
    for folder in _folders(run, "[!.]*"):
        if folder.name not in needed and _is_a_step(folder):
            found.append(_measured(folder, "finished" if (folder / RECORD).exists() else "not finished"))
    for folder in _folders(run, f"{REFERENCES}/*"):
        readers = {note.stem for note in folder.glob("*.json")}  # without one, a step may still be at it
        if readers and not readers & needed:
            found.append(_measured(folder, "reference log-probs"))
    return found


def delete(run: Path, found: Sequence[Unneeded]) -> None:
    """All of it, or nothing where a stage is at one. What a crash leaves half deleted has a name that says so."""
    for one in found:
        if is_locked(one.folder):
            raise ConfigError(f"{one.folder} is in use by a stage; wait for it or stop it")
    for one in found:
        shutil.rmtree(one.folder.rename(run / f"{GOING}{one.folder.name.removeprefix(GOING)}"))
    for link in run.glob("steps/*"):
        if link.is_symlink() and not link.exists():
            link.unlink()


def _folders(run: Path, pattern: str) -> list[Path]:
    return sorted(path for path in run.glob(pattern) if path.is_dir() and not path.is_symlink())


def _is_a_step(folder: Path) -> bool:
    identity = read_json(folder / IDENTITY_FILE)
    return identity is not None and folder.name.endswith(f"-{digest(identity)[:8]}")


def _measured(folder: Path, state: str) -> Unneeded:
    files = [path.lstat() for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    written = max((file.st_mtime for file in files), default=folder.stat().st_mtime)
    return Unneeded(folder, sum(file.st_size for file in files), written, state)
