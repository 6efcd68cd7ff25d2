"""Global batches: the same rows a step for any number of processes, shuffled by seed and epoch."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer

from data_schemas.stage_keys import ConfigError
from engine.arguments import TrainingStageArguments


class GlobalBatches(Sampler[int]):
    """A shuffled epoch, cut to whole global batches: the same rows a step for any number of processes.

    Consecutive runs of `global_batch_size` indices are one optimizer step.
    """

    def __init__(self, num_rows: int, *, global_batch_size: int, seed: int) -> None:
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

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.num_rows, generator=generator)[: self.size].tolist())


class GlobalBatching(Trainer):
    """Goes before a TRL trainer in the bases: its training rows come in global batches."""

    stage_arguments: TrainingStageArguments

    def _get_train_sampler(self, train_dataset: Any = None) -> GlobalBatches:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        assert dataset is not None
        return GlobalBatches(
            len(dataset),  # pyright: ignore[reportArgumentType]
            global_batch_size=self.stage_arguments.global_batch_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        )

    def rows_of_step(self, step: int) -> list[int]:
        """The rows of the tokenized training data, from 1, that an optimizer step sees."""
        sampler, size = self._get_train_sampler(), self.stage_arguments.global_batch_size
        epoch, place = divmod((step - 1) * size, len(sampler))
        sampler.set_epoch(epoch)
        return sorted(row + 1 for row in list(sampler)[place : place + size])
