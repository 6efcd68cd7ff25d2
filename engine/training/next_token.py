"""Next-token training: the trainers and collators of SFT and pretraining.

Both train on rows without padding: the collators add the one shared row that the model is run on, in which dialogs, or
the documents of a block, do not attend to each other (packing/shared_rows.py).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from data_schemas.errors import ConfigError
from engine.packing.shared_rows import SharedRows
from engine.packing.trainer_mixin import SharedRowsMixin
from engine.tokens.template import IGNORED
from engine.tokens.token_rows import TokenDialog
from engine.training.host import Batch
from engine.training.loop import TrainingLoop
from engine.training.optimizers import MuonAdamW

# Shapes: B = rows in the batch, T = tokens of the longest, [B, T].


class PackedCollator(DataCollatorForLanguageModeling):
    """TRL's batch (`input_ids`, `labels`, [B, T]) with the shared row of its dialogs."""

    def torch_call(self, examples: list[dict[str, list[int]]]) -> Batch:
        rows = SharedRows.of([example["input_ids"] for example in examples], range(len(examples)))
        return super().torch_call(examples) | rows.as_inputs()


@dataclass
class BlockCollator(DataCollatorForLanguageModeling):
    """TRL's batch of blocks with the shared row in which the documents of a block do not attend to each other."""

    end_token_id: int = -1

    def torch_call(self, examples: list[dict[str, list[int]]]) -> Batch:
        rows = SharedRows.of_parts([cut_at_ends(example["input_ids"], self.end_token_id) for example in examples])
        return super().torch_call(examples) | rows.as_inputs()


def cut_at_ends(block: Sequence[int], end: int) -> list[Sequence[int]]:
    """A block cut after each end token."""
    cuts = [0, *(at + 1 for at, token in enumerate(block) if token == end and at + 1 < len(block)), len(block)]
    return [block[start:stop] for start, stop in itertools.pairwise(cuts)]


class NextTokenTrainer(TrainingLoop, SharedRowsMixin, SFTTrainer):
    """TRL's SFT trainer, run on shared rows, whose evaluation means are per trained token."""

    token_row_type = TokenDialog

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, object]:
        """Cross entropy per trained token, a scalar."""
        inputs = dict(inputs)
        called = cast(torch.nn.Module, self.on_shared_rows(model, inputs))
        return super().compute_loss(called, inputs, return_outputs, num_items_in_batch)

    def batch_weights(self, inputs: Batch) -> dict[str, float]:
        return {"": float((inputs["labels"][:, 1:] != IGNORED).sum())}


class PretrainTrainer(NextTokenTrainer):
    """With `muon_learning_rate` the hidden matrices are trained by Muon; None leaves TRL's optimizer."""

    def __init__(self, *args, muon_learning_rate: float | None = None, **kwargs) -> None:
        self.muon_learning_rate = muon_learning_rate
        super().__init__(*args, **kwargs)

    def without_shared_rows(self, *, times: float) -> None:
        """Raises ConfigError: padded rows would not keep attention within documents."""
        raise ConfigError(
            "the attention of this architecture cannot be kept within documents: set mask_documents: false"
        )

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.muon_learning_rate is None or self.optimizer is not None:
            return super().create_optimizer(model)
        self.optimizer = MuonAdamW(
            self.model,
            muon_learning_rate=self.muon_learning_rate,
            learning_rate=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
        )
        return self.optimizer
