"""The record beside an output. It is written last, so a folder that has its record is complete and final.

A record names everything that the folder was made from (stage, recipe version, typed keys, inputs), and every file with
its size and hash. It ends in a digest of itself.
"""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from data_schemas.errors import DataError
from data_schemas.field_errors import place_and_problem
from data_schemas.files import DIGEST, digest_record, hash_files, sync, write_atomically
from data_schemas.stage_keys import Keys

RECORD = "artifact.json"
BESIDE = ("metrics.jsonl", "config.yaml")
HALVED = "halved"  # kind of an outcome: out of memory, to be started again with half the micro-batch


class Choice(BaseModel):
    """One of the policies that an evaluation ranked."""

    model_config = ConfigDict(extra="forbid")

    step: str  # the step that trained the policy, as in "round-1.dpo"
    folder: str  # its step's folder, relative to the parent of the evaluation's folder
    score: float


class Artifact(BaseModel):
    """A record."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    step: str
    recipe_version: int
    fingerprint: str = ""  # empty for a stage that was run by hand
    keys: Keys  # the stage's identity keys, resolved and typed
    inputs: dict[str, str]  # key -> folder or file it was given
    outputs: dict[str, str]  # name -> file or folder, relative to this one
    files: dict[str, int]  # every file of the outputs -> bytes
    sha256: dict[str, str] = {}  # the same files -> hash of their content, computed when the record is written
    beside: dict[str, str] = {}  # metrics.jsonl and config.yaml -> hash, for people: no step reads them, nor does reuse
    metrics: dict[str, float | int | str | None]
    reasons: dict[str, str] = {}  # metric that is null -> why
    choices: list[Choice] = []  # the policies up to this evaluation, best first
    contract: dict[str, str] = {}  # of a model, or of rows that a policy answered: see engine/tokens/contract.py
    versions: dict[str, str] = {}
    engine: str = ""  # that wrapped the model in training: DDP, DeepSpeed ZeRO-3, FSDP2 or none
    warnings: list[str] = []  # what a user should know of the step; in the file only if there are any
    notes: list[str] = []  # on the files that were read, harmless, for `alignloop check`; likewise
    seconds: float = 0.0  # from the launch to the record, with what earlier starts took that were interrupted

    @classmethod
    def read(cls, folder: Path) -> "Artifact | None":
        """The record of `folder`, or None where there is none yet.

        Raises DataError for a file that is not a record, or was changed after it was written.
        """
        path = folder / RECORD
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (IsADirectoryError, ValueError, RecursionError) as error:
            raise DataError(f"{path} is not a record ({error}); move the folder away") from None
        digest = content.pop(DIGEST, None) if isinstance(content, dict) else None
        try:
            record = cls.model_validate(content)
        except ValidationError as error:
            problem = place_and_problem(error.errors()[0], "the file")
            raise DataError(f"{path} is not a record ({problem}); move the folder away") from None
        if digest is not None and digest != digest_record(content):  # records of older versions have none
            raise DataError(f"{path} was changed after it was written; put it back as it was, or move the folder away")
        return record

    def missing(self, folder: Path) -> list[str]:
        """The files of the record that are not in `folder` with their recorded size."""
        return [name for name, size in self.files.items() if not _has_size(folder / name, size)]

    def write(self, folder: Path) -> None:
        """Writes the record atomically, after the files that it names are on the disk."""
        paths = [folder / name for name in self.files]
        beside = [folder / name for name in BESIDE if (folder / name).is_file()]
        # A record must not outlive its files in a power cut.
        for path in {*paths, *beside, *(path.parent for path in paths)}:
            sync(path)
        self.sha256 = dict(zip(self.files, hash_files(paths), strict=True))
        self.beside = {path.name: digest for path, digest in zip(beside, hash_files(beside), strict=True)}
        content = json.loads(self.model_dump_json())
        for name in ("engine", "warnings", "notes"):
            if not content[name]:
                del content[name]
        content[DIGEST] = digest_record(content)
        write_atomically(folder / RECORD, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        sync(folder)

    def damage(self, folder: Path) -> list[str]:
        """How the files differ from the record, one line for each that does. Reads every file."""
        found, missing = [], self.missing(folder)
        present = [name for name in self.files if name not in missing]
        for name in missing:
            path = folder / name
            size = f"has {path.stat().st_size} bytes, not {self.files[name]}" if path.is_file() else "is missing"
            found.append(f"{name} {size}")
        hashed = [name for name in present if name in self.sha256]
        hashes = hash_files(folder / name for name in hashed)
        changed = [name for name, digest in zip(hashed, hashes, strict=True) if digest != self.sha256[name]]
        for name, digest in self.beside.items():
            if not (folder / name).is_file():
                found.append(f"{name} is missing")
            elif hash_files([folder / name]) != [digest]:
                changed.append(name)
        return found + [f"{name} was changed after it was written" for name in changed]


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def files_below(folder: Path, outputs: dict[str, str]) -> dict[str, int]:
    """Every file of `outputs`, relative to `folder`, with its size in bytes.

    Raises FileNotFoundError for an output without files.
    """
    found: dict[str, int] = {}
    for output in outputs.values():
        path = folder / output
        files = [file for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
        if not files:
            raise FileNotFoundError(f"{path} was written and is gone")
        found |= {str(file.relative_to(folder)): file.stat().st_size for file in files}
    return found
