"""A stage's folder: one process writes it at a time, and nothing of another stage's, or of its own inputs, is lost."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_schemas import stage_keys
from data_schemas.artifact import RECORD
from data_schemas.errors import ConfigError
from data_schemas.files import read_json, write_atomically


@contextlib.contextmanager
def lock_folder(folder: Path, *, is_main: bool) -> Iterator[None]:
    """One stage at a time writes a folder. The kernel lets go of the lock when the process dies."""
    if not is_main:
        yield
        return
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip().replace(" ", " on ") or "?"
            raise ConfigError(f"{folder} is being written by another process (pid {holder})") from None
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()
        yield


def claim_folder(name: str, folder: Path, values: Mapping[str, Any], *, is_main: bool) -> None:
    """Refuses a folder that is finished, or that holds an unfinished stage with other keys: nothing is overwritten."""
    if (folder / RECORD).exists():
        raise ConfigError(f"{folder} holds a finished stage ({RECORD}); choose another output_dir, or move it away")
    for key, given in _paths(name, values):
        if Path(given).absolute().is_relative_to(folder):
            raise ConfigError(f"{key}={given} lies in {folder}, which this stage writes; choose another output_dir")
    mine = {"stage": name, "keys": identity_keys(name, values), "inputs": inputs_of(name, values)}
    path = folder / "identity.json"
    before = read_json(path)
    if is_main and path.exists() and (before is None or before.keys() != mine.keys()):
        raise ConfigError(f"{path} is not a stage's; choose another output_dir, or move it away")
    if is_main and before is None and (folder / "model").exists():
        raise ConfigError(f"{folder / 'model'} is not this stage's; choose another output_dir, or move it away")
    if before is not None and before != json.loads(json.dumps(mine)) and is_main:
        both = {**before["keys"], **before["inputs"]}, {**mine["keys"], **mine["inputs"]}
        changed = [key for key in both[0] | both[1] if both[0].get(key) != both[1].get(key)] or ["stage"]
        raise ConfigError(
            f"{folder} holds an unfinished {before['stage']} with other keys ({', '.join(changed)}); "
            "choose another output_dir, or move it away"
        )
    if is_main and before is None:
        write_atomically(path, json.dumps(mine, indent=2))


def clear_leftovers(folder: Path) -> None:
    """Removes what was being written when an earlier attempt ended: nothing goes on from it, and it takes up space."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"  # else another process of ours may be at a batch already
    batches = folder.glob("checkpoints/*/.*.partial-*") if alone else ()
    for path in [*folder.glob(".*.partial-*"), *folder.glob("checkpoints/.*"), *batches]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def rank_done_file(folder: Path, rank: int) -> Path:
    return folder / "checkpoints" / f"rank-{rank}-ended"


def wait_for_other_ranks(folder: Path) -> None:
    """They may still read what lies in `checkpoints`, which goes with the record. Where one failed, so do all."""
    others = [rank_done_file(folder, rank) for rank in range(1, int(os.environ.get("WORLD_SIZE", "1")))]
    while not all(path.exists() for path in others):
        time.sleep(0.05)


def identity_keys(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    keys = stage_keys.stages()[stage].keys
    typed = stage_keys.with_defaults(stage, values)
    return {name: value for name, value in typed.items() if keys[name].role == "identity"}


def inputs_of(stage: str, values: Mapping[str, Any]) -> dict[str, str]:
    keys = stage_keys.stages()[stage].keys
    inputs = {}
    for name, value in values.items():
        if keys[name].role in stage_keys.INPUT_ROLES and value is not None:
            inputs[name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return inputs


def _paths(stage: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every file and folder that a stage is given to read, with its key."""
    keys = stage_keys.stages()[stage].keys
    for name, value in values.items():
        if keys[name].role in ("rows", "model") and value is not None:
            yield from ((name, path) for path in (value if isinstance(value, list) else [value]))
