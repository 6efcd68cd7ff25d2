"""Global batches: the same rows a step for any number of processes, shuffled by seed and epoch, and divided so that all
processes have as many tokens to do."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer

from data_schemas.errors import ConfigError
from engine.runtime.arguments import TrainingStageArguments


class GlobalBatches(Sampler[int]):
    """A shuffled epoch, cut to whole global batches: the same rows a step for any number of processes.

    Consecutive runs of `global_batch_size` indices are one optimizer step, and in it consecutive runs of
    `micro_batch_size` (None: all of it) are what one process does at once: their tokens, of which `num_tokens` says how
    many each row has, are balanced.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        global_batch_size: int,
        seed: int,
        micro_batch_size: int | None = None,
        num_tokens: Sequence[int] = (),
    ) -> None:
        if num_rows < global_batch_size:
            raise ConfigError(
                f"{num_rows} training rows are fewer than one global_batch_size={global_batch_size}; "
                f"lower global_batch_size to {num_rows} or less, or give more rows"
            )
        self.num_rows, self.size, self.seed, self.epoch = (
            num_rows,
            num_rows // global_batch_size * global_batch_size,
            seed,
            0,
        )
        self.global_batch_size, self.num_tokens = global_batch_size, num_tokens
        self.micro_batch_size = micro_batch_size or global_batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_rows, generator=generator)[: self.size].tolist()
        for start in range(0, self.size, self.global_batch_size):
            rows = order[start : start + self.global_batch_size]
            yield from balanced(rows, self.num_tokens, size=self.micro_batch_size)


def balanced(rows: Sequence[int], num_tokens: Sequence[int], *, size: int) -> list[int]:
    """The rows, in runs of `size` that have about as many tokens each: the longest first, each to the emptiest run."""
    if len(rows) == size:
        return list(rows)
    runs: list[list[int]] = [[] for _ in range(len(rows) // size)]
    filled = [0] * len(runs)
    for row in sorted(rows, key=lambda row: -num_tokens[row]):
        emptiest = min((run for run in range(len(runs)) if len(runs[run]) < size), key=lambda run: filled[run])
        runs[emptiest].append(row)
        filled[emptiest] += num_tokens[row]
    return [row for run in runs for row in run]


class GlobalBatching(Trainer):
    """Goes before a TRL trainer in the bases: its training rows come in global batches."""

    stage_arguments: TrainingStageArguments
    _num_tokens: Sequence[int] | None = None  # of each training row

    def _get_train_sampler(self, train_dataset: Any = None) -> GlobalBatches:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        assert dataset is not None
        return GlobalBatches(
            len(dataset),  # pyright: ignore[reportArgumentType]
            global_batch_size=self.stage_arguments.global_batch_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            micro_batch_size=self.args.per_device_train_batch_size,
            num_tokens=self._tokens_of_rows(dataset),
        )

    def _tokens_of_rows(self, dataset: Any) -> Sequence[int]:
        """Tokens of each row, all its sequences together; none where a step is one micro-batch."""
        if self.args.per_device_train_batch_size == self.stage_arguments.global_batch_size:
            return ()
        if self._num_tokens is None:
            columns = [dataset[name] for name in dataset.column_names if name.endswith("_ids") or name == "answers"]
            self._num_tokens = [sum(map(_length, row)) for row in zip(*columns, strict=True)]
        return self._num_tokens

    def rows_of_step(self, step: int) -> list[int]:
        """The rows of the tokenized training data, from 1, that an optimizer step sees."""
        sampler, size = self._get_train_sampler(), self.stage_arguments.global_batch_size
        epoch, place = divmod((step - 1) * size, len(sampler))
        sampler.set_epoch(epoch)
        return sorted(row + 1 for row in list(sampler)[place : place + size])


def _length(value: Sequence[Any]) -> int:
    """Tokens of a sequence, or of several."""
    return sum(map(len, value)) if value and not isinstance(value[0], int) else len(value)
