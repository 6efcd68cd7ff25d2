"""A stage's folder: claimed before work starts, so that no other stage's output, and no input, is overwritten."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_schemas import stage_keys
from data_schemas.artifact import RECORD
from data_schemas.errors import ConfigError, DataError
from data_schemas.files import read_json, write_atomically
from data_schemas.sources import Source
from data_schemas.stage_keys import Keys, Values
from engine.runtime import world


def claim_folder(name: str, folder: Path, values: Values) -> None:
    """Refuses a folder that is finished, or that holds an unfinished stage with other keys; nothing is overwritten.

    The first process checks and writes `identity.json`. Raises ConfigError for an output_dir that cannot be used.
    """
    if (folder / RECORD).exists():
        raise ConfigError(f"{folder} holds a finished stage ({RECORD}); choose another output_dir, or move it away")
    for key, path in _input_paths(name, values):
        if Path(path).absolute().is_relative_to(folder):
            raise ConfigError(f"{key}={path} is inside {folder}, which this stage writes; choose another output_dir")
    if not world.is_first():
        return
    identity = {"stage": name, "keys": identity_keys(name, values), "inputs": inputs_of(name, values)}
    file = folder / "identity.json"
    before = read_json(file)
    if before is None and not file.exists():
        if (folder / "model").exists():
            raise ConfigError(
                f"{folder / 'model'} was not written by this stage; choose another output_dir, or move it away"
            )
        write_atomically(file, json.dumps(identity, indent=2))
        return
    if before is None or before.keys() != identity.keys():
        raise DataError(f"{file} was not written by a stage; choose another output_dir, or move it away")
    if before != json.loads(json.dumps(identity)):
        old, new = before["keys"] | before["inputs"], identity["keys"] | identity["inputs"]
        changed = [key for key in old | new if old.get(key) != new.get(key)] or ["stage"]
        raise ConfigError(
            f"{folder} holds an unfinished {before['stage']} with other keys ({', '.join(changed)}); "
            "choose another output_dir, or move it away"
        )


def clear_leftovers(folder: Path) -> None:
    """Removes files that were being written when an earlier attempt ended: nothing resumes from them."""
    # With several processes, another one may be writing a batch already.
    batches = folder.glob("checkpoints/*/.*.partial-*") if world.num_processes() == 1 else ()
    for path in [*folder.glob(".*.partial-*"), *folder.glob("checkpoints/.*"), *batches]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def rank_done_file(folder: Path, rank: int) -> Path:
    """The file by which a process other than the first reports that it has finished."""
    return folder / "checkpoints" / f"rank-{rank}-ended"


def wait_for_other_ranks(folder: Path) -> None:
    """Waits until all other processes have finished.

    They may still be reading `checkpoints/`, which is deleted after the record. If one rank fails, all do.
    """
    for other in range(1, world.num_processes()):
        world.wait_until_exists(rank_done_file(folder, other), seconds=0.05)


def identity_keys(stage: str, values: Values) -> Keys:
    """The stage's identity keys with their values, defaults included."""
    keys = stage_keys.stages()[stage].keys
    typed = stage_keys.with_defaults(stage, values)
    return {name: value for name, value in typed.items() if keys[name].is_identity(value)}


def inputs_of(stage: str, values: Values) -> dict[str, str]:
    """The inputs that a stage was given, by key; several paths of one key are joined by `, `."""
    keys = stage_keys.stages()[stage].keys
    inputs: dict[str, str] = {}
    for name, value in values.items():
        if keys[name].role in stage_keys.INPUT_ROLES and value is not None:
            items = value if isinstance(value, list) else [value]
            inputs[name] = ", ".join(str(Source.of(item)) if isinstance(item, Mapping) else str(item) for item in items)
    return inputs


def _input_paths(stage: str, values: Values) -> Iterator[tuple[str, str]]:
    """Every file and folder that a stage reads, with its key."""
    keys = stage_keys.stages()[stage].keys
    for name, value in values.items():
        if keys[name].role in ("rows", "model") and value is not None:
            yield from ((name, Source.of(item).path) for item in (value if isinstance(value, list) else [value]))
