"""A folder that is complete or not there: its marker names every file with size and hash."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_schemas.files import DIGEST, digest_of, hash_files, read_json, sync, write_atomically

MARKER = "whole.json"


def write_marker(folder: Path, content: Mapping[str, Any] | None = None) -> None:
    """Syncs all of a folder to the disk and writes its marker: `content`, and every file with size and hash."""
    everything = list(folder.rglob("*"))
    for path in everything:
        sync(path)
    files = [path for path in everything if path.is_file()]
    named = {
        str(path.relative_to(folder)): [path.stat().st_size, digest]
        for path, digest in zip(files, hash_files(files), strict=True)
    }
    marker = {**(content or {}), "files": named}
    write_atomically(folder / MARKER, json.dumps(marker | {DIGEST: digest_of(marker)}))
    sync(folder)


def move_into_place(partial: Path, target: Path) -> None:
    """Renames a marked folder into its place, where one may lie that did not verify."""
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    sync(target.parent)


def find_damage(checkpoint: Path) -> str:
    """What is wrong with a marked folder, in a few words; the empty string for a whole one."""
    marker = _marker(checkpoint)
    if not marker:
        return "it has no marker"
    for name, (size, _) in marker["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    for path in checkpoint.rglob("*"):
        name = str(path.relative_to(checkpoint))
        if path.is_file() and name not in marker["files"] and name != MARKER:
            return f"{name} is no part of it"
    names = list(marker["files"])
    digests = hash_files(checkpoint / name for name in names)
    changed = [name for name, digest in zip(names, digests, strict=True) if digest != marker["files"][name][1]]
    return f"{changed[0]} is not what was written" if changed else ""


def _marker(checkpoint: Path) -> dict[str, Any]:
    """What the marker says; nothing where it is missing, not one, or not as it was written."""
    marker = read_json(checkpoint / MARKER) or {}
    digest = marker.pop(DIGEST, None)  # those of older versions have none
    files = marker.get("files")
    named = isinstance(files, dict) and all(isinstance(said, list) and len(said) == 2 for said in files.values())
    return marker if named and digest in (None, digest_of(marker)) else {}
