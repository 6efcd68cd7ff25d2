"""Finds the folders that the last run of a run's folder does not need: steps of edited keys, and failed attempts.

Only folders that the runner created are listed: those whose name ends in the digest of the identity stored in them.
Everything else in a run's folder belongs to the user.
"""

import contextlib
import shutil
import stat
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from data_schemas.artifact import RECORD
from data_schemas.errors import BusyError, ConfigError
from data_schemas.files import digest, read_json
from data_schemas.locks import is_locked
from data_schemas.reference_log_probs import FOLDER as REFERENCES
from pipeline.state.run import IDENTITY_FILE
from pipeline.state.summary import Summary

BEING_DELETED = ".pruned-"  # prefix of the name of a folder while it is deleted


@dataclass(frozen=True)
class UnneededFolder:
    folder: Path
    bytes: int
    written: float  # the newest file in it, in seconds since the epoch
    state: str  # "finished", "not finished", "reference log-probs" or "partly deleted"


def needed_by(run: Path, summary: Summary) -> set[str]:
    """The names of the step folders that the last run used or wrote.

    Raises ConfigError if it did not finish, since only the run before it may have results.
    """
    if summary["state"] != "done":
        raise ConfigError(
            f"the last run in {run} is {summary['state']}; what it needs is known when it is done: "
            "run the recipe that you want to keep until it is done"
        )
    return {step["folder"] for step in summary["steps"] if step["folder"]}


def unneeded(run: Path, needed: Set[str]) -> list[UnneededFolder]:
    """The folders that are not `needed`. Those that an interrupted call left partly deleted come first."""
    found = [_measure(folder, "partly deleted") for folder in _folders(run, f"{BEING_DELETED}*")]
    for folder in _folders(run, "[!.]*"):
        if folder.name not in needed and _is_a_step(folder):
            found.append(_measure(folder, "finished" if (folder / RECORD).exists() else "not finished"))
    for folder in _folders(run, f"{REFERENCES}/*"):
        readers = {note.stem for note in folder.glob("*.json")}  # without a note, a step may still be writing
        if readers and not readers & needed:
            found.append(_measure(folder, "reference log-probs"))
    return found


def delete(run: Path, folders: Sequence[UnneededFolder]) -> None:
    """Deletes the folders. A folder is renamed first, so a crash leaves no partly deleted one under its own name.

    Raises BusyError, and deletes nothing, if a stage is using one of them.
    """
    for unneeded_folder in folders:
        if is_locked(unneeded_folder.folder):
            raise BusyError(f"{unneeded_folder.folder} is in use by a stage; wait for it or stop it")
    for unneeded_folder in folders:
        name = unneeded_folder.folder.name.removeprefix(BEING_DELETED)
        shutil.rmtree(unneeded_folder.folder.rename(run / f"{BEING_DELETED}{name}"))
    for link in run.glob("steps/*"):
        if link.is_symlink() and not link.exists():
            link.unlink()


def _folders(run: Path, pattern: str) -> list[Path]:
    return sorted(path for path in run.glob(pattern) if path.is_dir() and not path.is_symlink())


def _is_a_step(folder: Path) -> bool:
    identity = read_json(folder / IDENTITY_FILE)
    return identity is not None and folder.name.endswith(f"-{digest(identity)[:8]}")


def measure(folder: Path) -> tuple[int, float]:
    """The bytes of all files in a folder, and when the newest was written, in seconds since the epoch."""
    size, written = 0, 0.0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # deleted by a running stage since it was listed
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode):
                size, written = size + status.st_size, max(written, status.st_mtime)
    return size, written or folder.stat().st_mtime


def _measure(folder: Path, state: str) -> UnneededFolder:
    return UnneededFolder(folder, *measure(folder), state)
