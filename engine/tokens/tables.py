"""Rows in tokens, made once by the first process into a file keyed by content, and read by all.

Rows are rendered from our types before they become an Arrow table: `datasets` fills the missing keys of nested
messages and tool arguments with None, and then templates render something else. The other processes wait for the file
by looking, not in a collective, so a long tokenization meets no NCCL timeout.
"""

import hashlib
import logging
import os
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from datasets import Dataset, load_from_disk
from transformers import PreTrainedTokenizerBase

from data_schemas import splitting
from data_schemas.errors import ConfigError
from data_schemas.reading import BadRow, ReadRows, write_rows
from data_schemas.rows import Conversation, PreferencePair, Row
from engine.runtime import timing
from engine.runtime.arguments import TrainingStageArguments
from engine.runtime.complete_folder import find_damage, move_into_place, write_marker
from engine.runtime.stage import Stage
from engine.runtime.world import wait_for
from engine.tokens.contract import check_inputs
from engine.tokens.inspection import Encode, TokenRow, encode_all

log = logging.getLogger(__name__)
RowType = TypeVar("RowType", Conversation, PreferencePair)


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
    """Training and held-out rows: from eval_data where it is given, else a share of the groups of train_data.

    Raises ConfigError for an empty side, or a group that stands on both sides.
    """
    train = _read_shares(stage, arguments.train_data, read, arguments, shares, seed=seed)
    if arguments.eval_data:
        held_out = _read_shares(stage, arguments.eval_data, read, arguments, eval_shares, seed=seed)
        shared = {row.group_id for row in train} & {row.group_id for row in held_out}
        if shared:
            raise ConfigError(f"{len(shared)} dialogs stand in train_data and in eval_data; split them by prompt")
    else:
        split = splitting.Shares(evaluation=0.0, judge=0.0, validation=arguments.validation_share)
        sides = [splitting.assign(row.group_id, split) for row in train]
        held_out = [row for row, side in zip(train, sides, strict=True) if side == "validation"]
        train = [row for row, side in zip(train, sides, strict=True) if side != "validation"]
    for rows, key in ((train, "train_data"), (held_out, "eval_data")):
        if not rows:
            raise ConfigError(f"{stage.name}: no row is left for {key} (of {', '.join(arguments.train_data)})")
    log.info("%d training rows, %d held-out rows", len(train), len(held_out))
    return train, held_out


def check_contract(tokenizer: PreTrainedTokenizerBase, model: str, arguments: TrainingStageArguments) -> None:
    """Raises ConfigError where the stage's rows, or its reference, were made under another contract than its model."""
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
    """All held-out rows: of eval_data, and only where it is missing a share of the groups of train_data."""
    if not arguments.eval_data:
        return split_rows(stage, arguments, read)[1]
    rows = _read_shares(stage, arguments.eval_data, read, arguments, None, seed=0)
    if not rows:
        raise ConfigError(f"{stage.name}: no row is left for eval_data (of {', '.join(arguments.eval_data)})")
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
        raise ConfigError(f"{stage.name}: {len(shares)} shares for {len(paths)} files of data; give one for each")
    rows: list[RowType] = []
    bad: list[BadRow] = []
    for position, path in enumerate(paths):
        found = read([path], on_bad_row=arguments.on_bad_row)
        bad += found.bad
        share = shares[position] if shares is not None else 1.0
        kept = range(len(found.rows))
        if share < 1.0:
            kept = sorted(random.Random(f"{seed}-{position}").sample(kept, round(share * len(found.rows))))
        rows += [found.rows[index] for index in kept]
    if bad and stage.is_main:
        write_rows(stage.folder / "rejected_rows.jsonl", bad)
        log.warning("%d rows were set aside in rejected_rows.jsonl", len(bad))
    return rows


def tokenize(
    stage: Stage,
    name: str,
    rows: Sequence[RowType],
    encode: Encode[RowType],
    tokenizer: PreTrainedTokenizerBase,
    *,
    version: str,
    max_length: int | None,
    on_long_row: str = "leave_out",
) -> Dataset:
    """`encode` of every row that fits into max_length, as a table. `version` names what `encode` does with its options.

    Raises ConfigError naming the row that the template refuses, or that is too long, and where no row is left.
    """

    def build() -> list[TokenRow]:
        encoded, look = encode_all(name, rows, encode, tokenizer, max_length=max_length, on_long_row=on_long_row)
        for line in look.warnings():
            log.warning("%s: %s", name, line)
        return encoded

    return table(stage, name, rows, tokenizer, build, version=f"{version} {max_length=} {on_long_row=}")


@timing.part("load")
def table(
    stage: Stage,
    name: str,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    build: Callable[[], list[TokenRow]],
    *,
    version: str,
) -> Dataset:
    """What `build` makes of the rows, as a table on disk: built by the first process, read by all."""
    digest = hashlib.sha256(version.encode())
    backend: Any = tokenizer.backend_tokenizer
    digest.update(backend.to_str().encode())
    digest.update(str(tokenizer.chat_template).encode())
    for row in rows:
        digest.update(row.to_json().encode())
    path = stage.folder / "checkpoints" / f"{name}-{digest.hexdigest()[:16]}"
    if stage.is_main and (wrong := find_damage(path)):
        if path.exists():
            log.warning("%s is made again: %s", path.name, wrong)
        encoded = build()
        if not encoded:
            raise ConfigError(
                f"{name}: nothing is left of {len(rows)} rows (all too long, or nothing to train in them)"
            )
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        Dataset.from_list(encoded).save_to_disk(str(partial))
        write_marker(partial)
        move_into_place(partial, path)
    if not stage.is_main:
        wait_for(lambda: None if find_damage(path) else path, seconds=0.2)
    dataset = load_from_disk(str(path))
    assert isinstance(dataset, Dataset)
    return dataset
