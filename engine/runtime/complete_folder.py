"""A folder that is complete or absent: its marker names every file with size and hash, and is written last."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from data_schemas.files import DIGEST, digest_record, hash_files, read_json, sync, write_atomically
from data_schemas.stage_keys import Keys

MARKER = "whole.json"


def write_marker(folder: Path, content: Mapping[str, object] | None = None) -> None:
    """Syncs all of a folder to the disk and writes its marker: `content`, and every file with size and hash."""
    everything = list(folder.rglob("*"))
    for path in everything:
        sync(path)
    files = [path for path in everything if path.is_file()]
    sizes_and_hashes = {
        str(path.relative_to(folder)): [path.stat().st_size, digest]
        for path, digest in zip(files, hash_files(files), strict=True)
    }
    marker = {**(content or {}), "files": sizes_and_hashes}
    write_atomically(folder / MARKER, json.dumps(marker | {DIGEST: digest_record(marker)}))
    sync(folder)


def move_into_place(partial: Path, target: Path) -> None:
    """Renames a marked folder to its final name, and replaces a damaged one of that name."""
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    sync(target.parent)


def find_damage(folder: Path) -> str:
    """What is wrong with a marked folder, in a few words; the empty string for a complete one. Reads every file."""
    marker = read_marker(folder)
    if marker is None:
        return "it has no valid marker"
    files: dict[str, tuple[int, str]] = marker["files"]
    for name, (size, _) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in files and name != MARKER:
            return f"{name} is not part of it"
    digests = hash_files(folder / name for name in files)
    changed = [name for name, digest in zip(files, digests, strict=True) if digest != files[name][1]]
    return f"{changed[0]} was changed after it was written" if changed else ""


def read_marker(folder: Path) -> Keys | None:
    """The marker's content: `files`, and what was given to `write_marker`. None where it is missing or damaged."""
    marker = read_json(folder / MARKER) or {}
    digest = marker.pop(DIGEST, None)  # markers of older versions have none
    files = marker.get("files")
    is_valid = isinstance(files, dict) and all(isinstance(file, list) and len(file) == 2 for file in files.values())
    return marker if is_valid and digest in (None, digest_record(marker)) else None
