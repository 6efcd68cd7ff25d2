"""Global batches: an optimizer step sees the same rows for any number of processes.

Rows are shuffled by seed and epoch, and divided so that all processes have about the same number of tokens to compute.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import datasets
import torch
from torch.utils.data import Dataset, Sampler
from transformers import TrainingArguments

from data_schemas.errors import ConfigError
from engine.runtime import notices, world
from engine.runtime.arguments import TrainingStageArguments
from engine.training.host import TRLTrainer

log = logging.getLogger(__name__)


class GlobalBatches(Sampler[int]):
    """A shuffled epoch, cut to a multiple of the global batch: the epoch in which the step after `steps_taken()` lies.

    An epoch that the data loader sets does not arrive where it wraps this sampler more than once, as in a resumed run
    of several processes (accelerate 1.15: SkipBatchSampler around BatchSamplerShard).

    Consecutive runs of `global_batch_size` indices are one optimizer step. Within it, consecutive runs of
    `micro_batch_size` (None: the global batch) are what one process computes at once; `num_tokens`, the length of each
    row in tokens, is used to balance them. Raises ConfigError for fewer rows than one global batch.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        global_batch_size: int,
        seed: int,
        micro_batch_size: int | None = None,
        num_tokens: Sequence[int] = (),
        steps_taken: Callable[[], int] = lambda: 0,
    ) -> None:
        if num_rows < global_batch_size:
            raise ConfigError(
                f"{num_rows} training rows are fewer than one global_batch_size={global_batch_size}; "
                f"lower global_batch_size to {num_rows} or less, or give more rows"
            )
        self.num_rows, self.seed, self.steps_taken = num_rows, seed, steps_taken
        self.size = num_rows // global_batch_size * global_batch_size
        self.global_batch_size, self.num_tokens = global_batch_size, num_tokens
        self.micro_batch_size = micro_batch_size or global_batch_size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        epoch = self.steps_taken() * self.global_batch_size // self.size
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_rows, generator=generator)[: self.size].tolist()
        for start in range(0, self.size, self.global_batch_size):
            rows = order[start : start + self.global_batch_size]
            yield from balanced(rows, self.num_tokens, size=self.micro_batch_size)


def fit_batch(arguments: TrainingStageArguments, training: TrainingArguments, num_rows: int) -> None:
    """Lowers global_batch_size, in place, to the number of rows where there are fewer, with a warning.

    So a step has all rows, for any number of processes that divides them. For another number, for rows that TRL still
    packs, and under DeepSpeed, which has read the batch already, nothing is changed, and GlobalBatches refuses.
    """
    given, processes = arguments.global_batch_size, world.num_processes()
    is_fixed = getattr(training, "packing", False) or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if num_rows >= given or num_rows % processes or is_fixed:
        return
    rows_of_process = num_rows // processes
    sizes = range(1, training.per_device_train_batch_size + 1)
    training.per_device_train_batch_size = max(size for size in sizes if rows_of_process % size == 0)
    training.gradient_accumulation_steps = rows_of_process // training.per_device_train_batch_size
    arguments.global_batch_size = num_rows
    notices.warn(
        log,
        "%d training rows are fewer than one global_batch_size=%d: every optimizer step has all %d; for more steps in "
        "an epoch, lower global_batch_size",
        num_rows,
        given,
        num_rows,
    )


def balanced(rows: Sequence[int], num_tokens: Sequence[int], *, size: int) -> list[int]:
    """The rows in runs of `size` with about the same number of tokens.

    Greedy: the longest row first, each to the run with the fewest tokens so far.
    """
    if len(rows) == size:
        return list(rows)
    runs: list[list[int]] = [[] for _ in range(len(rows) // size)]
    tokens_of_run = [0] * len(runs)
    for row in sorted(rows, key=lambda row: -num_tokens[row]):
        emptiest = min((run for run in range(len(runs)) if len(runs[run]) < size), key=lambda run: tokens_of_run[run])
        runs[emptiest].append(row)
        tokens_of_run[emptiest] += num_tokens[row]
    return [row for run in runs for row in run]


class GlobalBatching(TRLTrainer):
    """Mixin, to be placed before a TRL trainer among the bases: training rows arrive in global batches."""

    def __init__(self, *args, stage_arguments: TrainingStageArguments, **kwargs) -> None:
        self.stage_arguments = stage_arguments
        self._num_tokens: Sequence[int] | None = None  # tokens of each training row
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> GlobalBatches:
        return self._global_batches(lambda: self.state.global_step, train_dataset)

    def _global_batches(self, steps_taken: Callable[[], int], train_dataset: Dataset | None = None) -> GlobalBatches:
        dataset = cast(datasets.Dataset, self.train_dataset if train_dataset is None else train_dataset)
        return GlobalBatches(
            len(dataset),
            global_batch_size=self.stage_arguments.global_batch_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            micro_batch_size=self.args.per_device_train_batch_size,
            num_tokens=self._tokens_of_rows(dataset),
            steps_taken=steps_taken,
        )

    def _tokens_of_rows(self, dataset: datasets.Dataset) -> Sequence[int]:
        """Tokens of each row, all its sequences together; empty where a step is one micro-batch."""
        if self.args.per_device_train_batch_size == self.stage_arguments.global_batch_size:
            return ()
        if self._num_tokens is None:
            columns = [dataset[name] for name in dataset.column_names if name.endswith("_ids") or name == "answers"]
            self._num_tokens = [sum(map(_length, row)) for row in zip(*columns, strict=True)]
        return self._num_tokens

    def rows_of_step(self, step: int) -> list[int]:
        """The rows that an optimizer step sees, numbered from 1 in the tokenized training data."""
        sampler, size = self._global_batches(lambda: step - 1), self.stage_arguments.global_batch_size
        place = (step - 1) * size % len(sampler)
        return sorted(row + 1 for row in list(sampler)[place : place + size])


def _length(value: Sequence[int] | Sequence[Sequence[int]]) -> int:
    """The number of tokens of one sequence, or of several."""
    return sum(map(len, value)) if value and not isinstance(value[0], int) else len(value)  # pyright: ignore[reportArgumentType]
