"""The file of rows that a command writes: complete or absent, and continued where an earlier attempt was interrupted.

Until it is complete, the journal of finished batches is in the folder `<file>.unfinished` beside it, together with the
settings that the batches belong to. Both attempts give the same file, bit by bit, as one that was not interrupted.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from data_schemas.errors import ConfigError
from data_schemas.files import exists, read_json, sync, write_atomically
from data_schemas.locks import LOCK_FILE, lock_folder
from data_schemas.outputs import check_is_json_lines, check_new_file
from data_schemas.reading import write_rows
from data_schemas.rows import Row
from data_schemas.stage_keys import path_problem
from engine.runtime import notices, preemption, progress
from engine.runtime.folder import clear_leftovers
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker

SETTINGS = "settings.json"
T = TypeVar("T", bound=Row)


def check_output(path: Path) -> None:
    """Raises ConfigError where the file exists already, cannot be written for its name, or names another format."""
    if path.name and (problem := path_problem(str(unfinished_folder(path)))):
        raise ConfigError(f"the output {path} {problem}")
    check_new_file(path)
    check_is_json_lines(path)


def unfinished_folder(path: Path) -> Path:
    """Where the finished batches are until the file is complete."""
    return path.with_name(f"{path.name}.unfinished")


def has_finished_batches(path: Path) -> bool:
    """Whether an interrupted attempt has left batches that the next one continues from."""
    folder = unfinished_folder(path)
    return exists(folder) and any(folder.glob("checkpoints/*/[0-9]*.json"))


def write_output(
    name: str, path: Path, settings: Mapping[str, object], make: Callable[[Stage], Sequence[T]]
) -> Sequence[T]:
    """Writes the rows that `make` computes, and returns them. The stage that `make` gets has the journal.

    `settings` are what the rows depend on, by the name of the option, as JSON values. Raises ConfigError where an
    interrupted attempt had others, and as `check_output` does; BusyError where another process writes the file now.
    """
    check_output(path)
    folder = unfinished_folder(path)
    with lock_folder(folder), preemption.listen_for_signals():
        try:
            check_output(path)  # another process may have just finished it
            _claim(folder, path, settings)
            clear_leftovers(folder)
            notices.start(None)
            rows = make(Stage(name, folder, {}, Tracker(folder, active=False), is_main=True))
            with progress.activity("writing the rows"):
                write_rows(folder / "rows.jsonl", rows)
                (folder / "rows.jsonl").replace(path)
                sync(path.parent)
            shutil.rmtree(folder)
            return rows
        finally:
            if folder.exists() and not has_finished_batches(path):
                _discard(folder)


def _claim(folder: Path, path: Path, settings: Mapping[str, object]) -> None:
    """Binds the folder to the settings."""
    before, now = read_json(folder / SETTINGS), json.loads(json.dumps(settings))
    if before is None or not has_finished_batches(path):
        write_atomically(folder / SETTINGS, json.dumps(now))
        return
    if changed := [key for key in before | now if before.get(key) != now.get(key)]:
        raise ConfigError(
            f"{folder} holds finished batches of other settings ({', '.join(changed)}); give the same ones to "
            "continue, or another output, or delete the folder"
        )


def _discard(folder: Path) -> None:
    """Removes a folder without finished batches; a log of vLLM stays, since the error names it."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    (folder / SETTINGS).unlink(missing_ok=True)
    if {file.name for file in folder.iterdir()} <= {LOCK_FILE}:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
