"""The cache of reference log-probs on disk: what identifies a batch of pairs, how batches are cut, the file format.

    <run>/reference_log_probs/<digest of the reference and of how it computes>/<time>-<process>.jsonl

A line is one batch, preceded by its own digest; the key of a batch is the hash of its pairs in their order. A batch is
read from the cache as a unit or computed again, never pair by pair: the last bits of a pair's numbers depend on the
pairs beside it, and what happens to be in the cache must not change a result. Training pairs are cut into batches by
length and content, not by their order in a file, and some of them (by their hash) end a batch, so that adding or
removing a pair changes a few batches and not all that follow.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_schemas.artifact import Artifact
from data_schemas.files import digest_text, hash_files, verified_text, with_digest
from engine.models.loading import read_config

REFERENCE_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "chosen_content", "rejected_content")
TOKEN_COLUMNS = REFERENCE_COLUMNS[:3]
LogProbSums = list[tuple[float, float]]  # (chosen, rejected) sums of log p, one tuple for each pair of a batch
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferenceBatch:
    """Pairs that go through the reference model in one forward pass."""

    key: str
    side: Literal["train", "eval"]
    rows: Sequence[int]  # row numbers in the table of that side


def weights_of(path: str, *, revision: str = "main") -> str:
    """The content of a model: a digest of its files' hashes, from its step's record if it has one; for a hub name its
    commit.

    Not the fingerprint of its step: a step that ran again on another machine has other bits under the same one.
    """
    folder = Path(path)
    if not folder.is_dir():
        config = read_config(path, revision=revision)
        return f"{path}@{getattr(config, '_commit_hash', revision)}"
    record = Artifact.read(folder.parent)
    recorded = record.sha256 if record is not None else {}
    hashes = {Path(name).name: digest for name, digest in recorded.items() if Path(name).parent == Path(folder.name)}
    if not hashes:
        files = sorted(file for file in folder.glob("*") if file.is_file())
        hashes = dict(zip((file.name for file in files), hash_files(files), strict=True))
    return digest_text(json.dumps(hashes, sort_keys=True))


def key_of_pair(row: Mapping[str, list[int]]) -> str:
    """The hash of what a reference reads of a tokenized pair."""
    return digest_text(json.dumps([row[name] for name in REFERENCE_COLUMNS]))


def num_tokens_of(row: Mapping[str, list[int]]) -> int:
    """Tokens of a pair, its prompt counted once."""
    return sum(len(row[name]) for name in TOKEN_COLUMNS)


def cut_into_batches(keys: Sequence[str], lengths: Sequence[int], *, size: int) -> list[list[int]]:
    """Row numbers in batches of at most `size` pairs, the longest first; of identical pairs only the first row.

    `lengths` are in tokens.
    """
    row_of = {key: row for row, key in reversed(list(enumerate(keys)))}
    batches: list[list[int]] = [[]]
    for row in sorted(row_of.values(), key=lambda row: (-lengths[row], keys[row])):
        batches[-1].append(row)
        if len(batches[-1]) == size or int(keys[row][:8], 16) % (2 * size) == 0:
            batches.append([])
    return [rows for rows in batches if rows]


def batches_of(
    side: Literal["train", "eval"], keys: Sequence[str], batches: Iterable[Sequence[int]]
) -> list[ReferenceBatch]:
    """`batches` of row numbers, each with its key."""
    return [ReferenceBatch(digest_text("".join(keys[row] for row in rows)), side, rows) for rows in batches]


def cache_line(key: str, sums: LogProbSums) -> str:
    """One line of the file: the batch as JSON, preceded by its digest."""
    return with_digest(json.dumps({"pass": key, "sums": sums})) + "\n"


def read_cache(folders: Iterable[Path]) -> dict[str, LogProbSums]:
    """The sums of every valid batch in the files of `folders`, by key; damaged lines are skipped with a warning."""
    found: dict[str, LogProbSums] = {}
    for path in sorted(path for folder in dict.fromkeys(folders) for path in folder.glob("*.jsonl")):
        damaged = 0
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                text = verified_text(line.rstrip("\n"))
                if text is None:
                    damaged += 1
                    continue
                content = json.loads(text)
                found.setdefault(content["pass"], [(chosen, rejected) for chosen, rejected in content["sums"]])
        if damaged:  # or cut off, if the process was killed
            log.warning("%s: %d batches are damaged and are computed again", path.name, damaged)
    return found
