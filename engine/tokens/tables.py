"""Reads a training stage's rows, splits them, and tokenizes them into a table that all processes of the stage share.

The first process writes the table into a folder whose name is a hash of its content, so a restarted stage finds it.
Rows are rendered from our types before they become an Arrow table, because `datasets` fills the missing keys of nested
messages and tool arguments with None, and templates then render something else. The other processes poll for the
folder instead of waiting in a collective, so a long tokenization cannot run into an NCCL timeout.
"""

import hashlib
import logging
import os
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from datasets import Dataset, load_from_disk
from transformers import PreTrainedTokenizerBase

from data_schemas import splitting
from data_schemas.errors import ConfigError, DataError
from data_schemas.reading import BadRow, OnBadRow, ReadRows, write_rows
from data_schemas.rows import Conversation, PreferencePair, Prompt, Row
from engine.runtime import notices, progress, timing
from engine.runtime.arguments import TrainingStageArguments
from engine.runtime.complete_folder import find_damage, move_into_place, read_marker, write_marker
from engine.runtime.stage import Stage
from engine.runtime.world import wait_for
from engine.tokens.contract import backend_json, check_inputs
from engine.tokens.inspection import DialogType, Encode, check_rows_left, encode_all
from engine.tokens.token_rows import TokenRow

log = logging.getLogger(__name__)
RowType = TypeVar("RowType", Conversation, PreferencePair, Prompt)


@dataclass(frozen=True)
class TokenTable:
    """Encoded rows on disk."""

    rows: Dataset
    counts: Mapping[str, int] = field(default_factory=dict)  # rows dropped or set aside while encoding, by metric


@timing.part("load")
def split_rows(
    stage: Stage,
    arguments: TrainingStageArguments,
    read: Callable[..., ReadRows[RowType]],
    *,
    shares: Sequence[float] | None = None,
    eval_shares: Sequence[float] | None = None,
    seed: int = 0,
) -> tuple[list[RowType], list[RowType]]:
    """Training and held-out rows. Held-out rows come from eval_data if given, else from a share of train_data's groups.

    `shares` and `eval_shares` keep a random part of each file. Raises DataError for an empty side, or for a group that
    is on both sides.
    """
    train = _read_shares(stage, arguments.train_data, read, arguments, shares, seed=seed)
    if arguments.eval_data:
        held_out = _read_shares(stage, arguments.eval_data, read, arguments, eval_shares, seed=seed)
        shared = {row.group_id for row in train} & {row.group_id for row in held_out}
        if shared:
            raise DataError(f"{len(shared)} dialogs are both in train_data and in eval_data; split them by prompt")
    else:
        split = splitting.Shares(evaluation=0.0, judge=0.0, validation=arguments.validation_share)
        sides = [splitting.assign(row.group_id, split) for row in train]
        groups = {row.group_id for row, side in zip(train, sides, strict=True) if side == "validation"}
        groups = groups or _hold_out_some(train, arguments.validation_share)
        held_out = [row for row in train if row.group_id in groups]
        train = [row for row in train if row.group_id not in groups]
    for rows, key in ((train, "train_data"), (held_out, "eval_data")):
        if not rows:
            raise DataError(f"{stage.name}: no row is left for {key} (of {', '.join(map(str, arguments.train_data))})")
    log.info("%d training rows, %d held-out rows", len(train), len(held_out))
    return train, held_out


def _hold_out_some(rows: Sequence[RowType], share: float) -> Collection[str]:
    """The groups to hold out of rows that are so few that the hash of none is below the share."""
    groups = splitting.lowest_groups([row.group_id for row in rows], share)
    if groups:
        notices.warn(
            log,
            "validation_share=%s of %d rows would hold out none by hash, so %d %s held out instead, and eval_loss is "
            "noisy; to hold out more, raise data.validation_share",
            share,
            len(rows),
            len(groups),
            "dialogs are" if len(groups) > 1 else "dialog is",
        )
    return groups


def check_contract(tokenizer: PreTrainedTokenizerBase, model: str, arguments: TrainingStageArguments) -> None:
    """Raises ConfigError where the stage's rows or its reference model have another token contract than its model."""
    reference = getattr(arguments, "reference_model", None)
    inputs = {
        "train_data": arguments.train_data,
        "eval_data": arguments.eval_data or [],
        "reference_model": [reference] if reference else [],
    }
    if not arguments.other_contract:
        check_inputs(tokenizer, model, inputs)


@timing.part("load")
def held_out_rows(
    stage: Stage, arguments: TrainingStageArguments, read: Callable[..., ReadRows[RowType]]
) -> list[RowType]:
    """The held-out rows only: all rows of eval_data if given, else a share of train_data's groups."""
    if not arguments.eval_data:
        return split_rows(stage, arguments, read)[1]
    rows = _read_shares(stage, arguments.eval_data, read, arguments, None, seed=0)
    if not rows:
        raise DataError(f"{stage.name}: no row is left for eval_data (of {', '.join(map(str, arguments.eval_data))})")
    return rows


def _read_shares(
    stage: Stage,
    paths: Sequence[str],
    read: Callable[..., ReadRows[RowType]],
    arguments: TrainingStageArguments,
    shares: Sequence[float] | None,
    *,
    seed: int,
) -> list[RowType]:
    if shares is not None and len(shares) != len(paths):
        raise ConfigError(
            f"{stage.name}: {len(shares)} shares for {len(paths)} files of data; give one share for each file"
        )
    rows: list[RowType] = []
    bad: list[BadRow] = []
    for position, path in enumerate(paths):
        file = read([path], on_bad_row=arguments.on_bad_row)
        bad += file.bad
        share = shares[position] if shares is not None else 1.0
        kept = range(len(file.rows))
        if share < 1.0:
            kept = sorted(random.Random(f"{seed}-{position}").sample(kept, round(share * len(file.rows))))
        rows += [file.rows[index] for index in kept]
    if bad and stage.is_main:
        write_rows(stage.folder / "rejected_rows.jsonl", bad)
        notices.warn(log, "%d rows were set aside in rejected_rows.jsonl", len(bad))
    return rows


def tokenize(
    stage: Stage,
    name: str,
    rows: Sequence[DialogType],
    encode: Encode[DialogType],
    tokenizer: PreTrainedTokenizerBase,
    *,
    version: str,
    max_length: int | None,
    on_long_row: str = "leave_out",
    on_bad_row: OnBadRow = "error",
    max_positions: int | None = None,
) -> TokenTable:
    """A table of the encoded rows that fit into max_length tokens.

    `version` names what `encode` does and its options; it is part of the table's key. Rows that are set aside are
    written into rejected_rows.<name>.jsonl. Raises DataError naming the row that the template refuses or that is too
    long, or where no row is left, and ConfigError where rows are longer than `max_positions`; see `encode_all`.
    """

    def build() -> tuple[Sequence[TokenRow], Mapping[str, int]]:
        encoded, report = encode_all(
            name,
            rows,
            encode,
            tokenizer,
            max_length=max_length,
            on_long_row=on_long_row,
            on_bad_row=on_bad_row,
            max_positions=max_positions,
        )
        for line in report.warnings():
            notices.warn(log, "%s: %s", name, line)
        if report.refused:
            write_rows(stage.folder / f"rejected_rows.{name}.jsonl", report.refused)
        return encoded, report.counts(name)

    version = f"{version} {max_length=} {on_long_row=}"
    return _table(stage, name, rows, tokenizer, build, version=version)


def table(
    stage: Stage,
    name: str,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    build: Callable[[], Sequence[TokenRow]],
    *,
    version: str,
) -> Dataset:
    """The token rows that `build` returns, as a table on disk: written by the first process, read by all.

    Its key covers the rows, the tokenizer with its template, and `version`. Raises DataError where no row is left.
    """
    return _table(stage, name, rows, tokenizer, lambda: (build(), {}), version=version).rows


@timing.part("load")
def _table(
    stage: Stage,
    name: str,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    build: Callable[[], tuple[Sequence[TokenRow], Mapping[str, int]]],
    *,
    version: str,
) -> TokenTable:
    """As `table`, with counts that are kept beside the rows: a stage that is started again reads both."""
    digest = hashlib.sha256(version.encode())
    digest.update(backend_json(tokenizer).encode())
    digest.update(str(tokenizer.chat_template).encode())
    for row in rows:
        digest.update(row.to_json().encode())
    path = stage.folder / "checkpoints" / f"{name}-{digest.hexdigest()[:16]}"
    if stage.is_main and (damage := find_damage(path)):
        if path.exists():
            log.warning("%s is written again: %s", path.name, damage)
        with progress.activity(f"tokenizing {len(rows):,} rows"):
            encoded, counts = build()
        check_rows_left(name, encoded, len(rows), counts)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        Dataset.from_list([row.columns() for row in encoded]).save_to_disk(str(partial))
        write_marker(partial, {"counts": dict(counts)})
        move_into_place(partial, path)
    if not stage.is_main:
        wait_for(lambda: None if find_damage(path) else path, seconds=0.2)
    dataset = load_from_disk(str(path))
    assert isinstance(dataset, Dataset)
    return TokenTable(dataset, (read_marker(path) or {}).get("counts", {}))
