"""The fingerprint of a step: SHA-256 of the canonical JSON of its identity.

    identity = stage, the stage's recipe version, every identity key with its typed value (defaults included),
               the source of its functions, and the fingerprints of its inputs

How a step is run (processes, micro-batch, paths, logging) is not part of it. Raw files and local models are hashed by
content; their hashes are cached by (path, size, mtime in ns, inode).
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from data_schemas.files import canonical_json, digest, read_json, write_atomically
from data_schemas.functions import source_hash
from data_schemas.stage_keys import Keys, Values, identity_of, stages
from pipeline.steps import (
    BestPolicy,
    EvaluationFolder,
    File,
    Model,
    Output,
    Reference,
    Served,
    Step,
    is_average_across_rounds,
)

SMALL = 64 * 2**20  # bytes; `alignloop plan` hashes files up to this size
TO_BE_HASHED = "to be hashed"


@dataclass
class FileHashes:
    """SHA-256 of files and folders by content, cached in `cache_file`."""

    cache_file: Path
    limit: int | None = None  # bytes; a larger file that is not in the cache has the hash "to be hashed"
    known: dict[str, list[int | str]] = field(default_factory=dict)  # path -> size, mtime in ns, inode, hash
    changed: bool = False

    def __post_init__(self) -> None:
        known = read_json(self.cache_file) or {}
        self.known = {path: entry for path, entry in known.items() if isinstance(entry, list) and len(entry) == 4}

    def of(self, path: Path) -> str:
        """The hash of a file, or of the names and contents of a folder's files, without hidden ones."""
        if path.is_file():
            return self._hash_file(path)
        files = sorted(
            file.relative_to(path) for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path)
        )
        hashes = {str(file): self._hash_file(path / file) for file in files}
        return TO_BE_HASHED if TO_BE_HASHED in hashes.values() else digest(hashes)

    def _hash_file(self, path: Path) -> str:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
        cached = self.known.get(str(path))
        if cached and cached[:3] == stamp:
            return str(cached[3])
        if self.limit is not None and status.st_size > self.limit:
            return TO_BE_HASHED
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        self.known[str(path)] = [*stamp, content]
        self.changed = True
        return content

    def save(self) -> None:
        """Writes the cache. If it cannot be written, as on a full disk, the files are hashed again next time."""
        if self.changed and self.cache_file.parent.is_dir():
            with contextlib.suppress(OSError):
                write_atomically(self.cache_file, json.dumps(self.known, indent=1))


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


class IdentityContent(TypedDict):
    """What the fingerprint of a step is computed from, as fingerprint.json stores it."""

    stage: str
    recipe_version: int
    keys: Keys  # identity keys, and the names of functions
    functions: dict[str, str]  # key -> hash of the function's source
    inputs: dict[str, list[list[str | int]]]  # key -> for each input its fingerprint or hash, and which output it is


@dataclass(frozen=True)
class Identity:
    """The identity of a step. `fingerprint` is None while a large file that the step depends on is to be hashed."""

    content: IdentityContent
    fingerprint: str | None


def identities(steps: Sequence[Step], *, hashes: FileHashes, function_folder: Path) -> dict[str, Identity]:
    """The identity of every step, by name. Functions are looked up in `function_folder` first.

    Raises ConfigError for a function that cannot be found.
    """
    known: dict[str, Identity] = {}
    for step in steps:
        content = _identity_content(step, known, hashes, function_folder)
        is_complete = TO_BE_HASHED not in _leaves(content["inputs"]) and TO_BE_HASHED not in _leaves(content["keys"])
        known[step.name] = Identity(content, digest(content) if is_complete else None)
    hashes.save()
    return known


def _identity_content(
    step: Step, known: Mapping[str, Identity], hashes: FileHashes, function_folder: Path
) -> IdentityContent:
    keys: Keys = {}
    functions: dict[str, str] = {}
    for name, value in identity_of(step.stage, step.keys, roles=("identity", "function")).items():
        if stages()[step.stage].keys[name].role == "function" and value is not None:
            if isinstance(value, list):
                functions |= {f"{name}.{function}": source_hash(function, function_folder) for function in value}
            else:
                functions[name] = source_hash(value, function_folder)
        template = Path(value) if isinstance(value, str) and value.endswith(".jinja") else None
        keys[name] = hashes.of(template) if template and template.is_file() else value
    return {
        "stage": step.stage,
        "recipe_version": stages()[step.stage].recipe_version,
        "keys": keys,
        "functions": functions,
        "inputs": {key: [_identify(item, known, hashes) for item in items] for key, items in step.inputs.items()},
    }


def _identify(reference: Reference, known: Mapping[str, Identity], hashes: FileHashes) -> list[str | int]:
    match reference:
        case Output(step, name):
            return [known[step].fingerprint or TO_BE_HASHED, name]
        case BestPolicy(step, rank):
            return [known[step].fingerprint or TO_BE_HASHED, "choice", rank]
        case EvaluationFolder(step):
            return [known[step].fingerprint or TO_BE_HASHED]
        case File(path, options):
            # A plain path has no second part: its fingerprint is that of the content only.
            return [_hash_of(path, hashes), *([canonical_json(options)] if options else [])]
        case Model(path):
            return [_hash_of(path, hashes)]
        case Served(_, endpoint):
            return ["endpoint", *endpoint.identity]


def _hash_of(path: str, hashes: FileHashes) -> str:
    return hashes.of(Path(path)) if Path(path).exists() else path


def _leaves(value: object) -> list[object]:
    if isinstance(value, dict | list):
        return [leaf for item in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(item)]
    return [value]


# What a recipe says of the shares that the plan sets, by stage.
OF_SHARES = {"dpo": "train_data_shares (dpo_batch_decay)", "sft": "train_data_shares (human_share)"}


def differences(step: Step, old: Values, new: IdentityContent) -> list[str]:
    """What changed between two identities of one step, one line for each change: `dpo.beta 0.1 -> 0.2`.

    `old` was read from fingerprint.json, which an older version may have written, so fields may be missing.
    """
    if old.get("stage") != new["stage"]:
        return [f"{_model_kind(old.get('stage'))} -> {_model_kind(new['stage'])}"]
    lines = []
    section = f"{step.section}.average" if step.stage == "average_models" else step.section
    if is_average_across_rounds(step):
        weights = [(content.get("keys", {}).get("weights") or [None])[0] for content in (old, new)]
        lines += [f"average_with_best {_short(weights[0])} -> {_short(weights[1])}"] if weights[0] != weights[1] else []
    if old.get("recipe_version") != new["recipe_version"]:
        lines.append(f"stage {step.stage} changed (version {old.get('recipe_version')} -> {new['recipe_version']})")
    omitted = {name: key.default for name, key in stages()[step.stage].keys.items() if key.omitted_at_default}
    before, now = omitted | _flat(old.get("keys", {})), omitted | _flat(new["keys"])
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and not (name == "weights" and is_average_across_rounds(step)):
            said = OF_SHARES.get(step.stage, name) if name == "train_data_shares" else name
            lines.append(f"{section}.{said} {_short(before.get(name))} -> {_short(now.get(name))}")
    for name, source in new["functions"].items():
        if old.get("functions", {}).get(name) not in (None, source):
            function = new["keys"].get(name) or name.partition(".")[2]  # of a key with a list of functions
            lines.append(f"the source of {function} changed")
    for key in sorted(old.get("inputs", {}).keys() | new["inputs"].keys()):
        old_inputs, new_inputs = old.get("inputs", {}).get(key, []), new["inputs"].get(key, [])
        if len(old_inputs) != len(new_inputs):
            lines.append(f"input {key}: {len(old_inputs)} -> {len(new_inputs)}")
            continue
        for place, item in enumerate(step.inputs.get(key, [])):
            if old_inputs[place] != new_inputs[place]:
                lines.append(f"input {_source(item)} {_change(old_inputs[place], new_inputs[place])}")
    return list(dict.fromkeys(lines))


def _change(old: list[str | int], new: list[str | int]) -> str:
    """What changed in an input: the content, or, of rows from outside the run, what is given besides the path."""
    if TO_BE_HASHED in new:
        return f"is over {SMALL // 2**20} MiB and {TO_BE_HASHED} by `run`, which then knows whether the step is reused"
    if old[:1] == new[:1] == ["endpoint"]:
        return " -> ".join(" ".join(map(str, item[1:])) for item in (old, new))
    options = [str(item[1]) if len(item) == 2 else "{}" for item in (old, new)]
    is_file = all(option.startswith("{") for option in options)
    return f"{options[0]} -> {options[1]}" if old[0] == new[0] and is_file else "changed"


def _source(reference: Reference) -> str:
    if isinstance(reference, Served):
        return reference.name
    return reference.path if isinstance(reference, File | Model) else reference.step


def _flat(keys: Values) -> Keys:
    """The keys of a mapping, with those of an inner mapping as `stage_keys.beta`."""
    flat: Keys = {}
    for name, value in keys.items():
        flat |= {f"{name}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _model_kind(stage: str | None) -> str:
    return "the average of its variants" if stage == "average_models" else f"a single {stage}"


def _short(value: object) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 40 else f"{text[:37]}..."
