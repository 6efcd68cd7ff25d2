"""What makes a step the same step: SHA-256 of the canonical JSON of its identity.

    identity = stage, the stage's recipe version, every identity key with its typed value (defaults included),
               the source of its functions, and the fingerprints of its inputs

How a step is run (processes, micro-batch, paths, logging) is no part of it. Raw files and local models enter by
content; their hashes are cached by (path, size, mtime in ns, inode).
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_schemas.files import digest, read_json, write_atomically
from data_schemas.functions import source_hash
from data_schemas.stage_keys import stages, with_defaults
from pipeline.steps import BestPolicy, EvaluationFolder, File, Model, Output, Reference, Step

SMALL = 64 * 2**20  # bytes: what `plan` hashes at once
TO_BE_HASHED = "to be hashed"


@dataclass
class FileHashes:
    """SHA-256 of files and folders by content, cached in `cache_file`."""

    cache_file: Path
    limit: int | None = None  # bytes; a larger file that is not in the cache is left "to be hashed"
    known: dict[str, list[Any]] = field(default_factory=dict)
    changed: bool = False

    def __post_init__(self) -> None:
        known = read_json(self.cache_file) or {}
        self.known = {path: entry for path, entry in known.items() if isinstance(entry, list) and len(entry) == 4}

    def of(self, path: Path) -> str:
        """The hash of a file, or of a folder's files (hidden ones aside) and their names."""
        if path.is_file():
            return self._of_file(path)
        files = sorted(
            file.relative_to(path) for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path)
        )
        hashes = {str(file): self._of_file(path / file) for file in files}
        return TO_BE_HASHED if TO_BE_HASHED in hashes.values() else digest(hashes)

    def _of_file(self, path: Path) -> str:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
        cached = self.known.get(str(path))
        if cached and cached[:3] == stamp:
            return cached[3]
        if self.limit is not None and status.st_size > self.limit:
            return TO_BE_HASHED
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        self.known[str(path)] = [*stamp, content]
        self.changed = True
        return content

    def save(self) -> None:
        """For the next time: where it can't be written, on a full disk or a read-only one, all is hashed again."""
        if self.changed and self.cache_file.parent.is_dir():
            with contextlib.suppress(OSError):
                write_atomically(self.cache_file, json.dumps(self.known, indent=1))


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


@dataclass(frozen=True)
class Identity:
    """What a step's fingerprint is made of. `fingerprint` is None while a large file below it is to be hashed."""

    content: dict[str, Any]
    fingerprint: str | None


def identities(steps: Sequence[Step], *, hashes: FileHashes, function_folder: Path) -> dict[str, Identity]:
    """Every step's identity, by name. Raises ConfigError for a function that can't be found."""
    made: dict[str, Identity] = {}
    for step in steps:
        content = _content(step, made, hashes, function_folder)
        known = TO_BE_HASHED not in _leaves(content["inputs"]) and TO_BE_HASHED not in _leaves(content["keys"])
        made[step.name] = Identity(content, digest(content) if known else None)
    hashes.save()
    return made


def _content(step: Step, made: Mapping[str, Identity], hashes: FileHashes, function_folder: Path) -> dict[str, Any]:
    keys, functions = {}, {}
    for name, value in with_defaults(step.stage, step.keys).items():
        role = stages()[step.stage].keys[name].role
        if role == "function" and value is not None:
            functions[name] = source_hash(value, function_folder)
        if role in ("identity", "function"):
            template = Path(value) if isinstance(value, str) and value.endswith(".jinja") else None
            keys[name] = hashes.of(template) if template and template.is_file() else value
    return {
        "stage": step.stage,
        "recipe_version": stages()[step.stage].recipe_version,
        "keys": keys,
        "functions": functions,
        "inputs": {key: [_of(item, made, hashes) for item in items] for key, items in step.inputs.items()},
    }


def _of(reference: Reference, made: Mapping[str, Identity], hashes: FileHashes) -> list[str | int]:
    match reference:
        case Output(step, name):
            return [made[step].fingerprint or TO_BE_HASHED, name]
        case BestPolicy(step, rank):
            return [made[step].fingerprint or TO_BE_HASHED, "choice", rank]
        case EvaluationFolder(step):
            return [made[step].fingerprint or TO_BE_HASHED]
        case File(path) | Model(path):
            return [hashes.of(Path(path)) if Path(path).exists() else path]


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict | list):
        return [leaf for item in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(item)]
    return [value]


def differences(step: Step, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two identities of one step, a line each: `dpo.beta 0.1 -> 0.2`."""
    if old.get("stage") != new["stage"]:
        return [f"{_stage(old.get('stage'))} -> {_stage(new['stage'])}"]
    lines = []
    section = f"{step.section}.average" if step.stage == "average_models" else step.section
    if old.get("recipe_version") != new["recipe_version"]:
        lines.append(f"stage {step.stage} changed (version {old.get('recipe_version')} -> {new['recipe_version']})")
    before, now = _flat(old.get("keys", {})), _flat(new["keys"])
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            lines.append(f"{section}.{name} {_short(before.get(name))} -> {_short(now.get(name))}")
    for name, source in new["functions"].items():
        if old.get("functions", {}).get(name) not in (None, source):
            lines.append(f"the source of {new['keys'][name]} changed")
    for key in old.get("inputs", {}).keys() | new["inputs"].keys():
        was, now = old.get("inputs", {}).get(key, []), new["inputs"].get(key, [])
        if len(was) != len(now):
            lines.append(f"input {key}: {len(was)} -> {len(now)}")
            continue
        lines += [
            f"input {_name(item)} is {TO_BE_HASHED}" if TO_BE_HASHED in now[place] else f"input {_name(item)} changed"
            for place, item in enumerate(step.inputs.get(key, []))
            if was[place] != now[place]
        ]
    return list(dict.fromkeys(lines))


def _name(reference: Reference) -> str:
    return reference.path if isinstance(reference, File | Model) else reference.step


def _flat(keys: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping's keys one by one: `stage_keys.beta`."""
    flat: dict[str, Any] = {}
    for name, value in keys.items():
        flat |= {f"{name}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _stage(name: str | None) -> str:
    return "the average of its variants" if name == "average_models" else f"{name} alone"


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 40 else f"{text[:37]}..."


# -- functions named `module:function` ----------------------------------------------------------------------------
