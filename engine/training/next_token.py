"""Next-token training: the trainers and collators of SFT and pretraining."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from data_schemas.errors import ConfigError
from engine.packing.shared_rows import SharedRows, SharedRowsMixin
from engine.tokens.token_rows import TokenDialog
from engine.training.loop import TrainingLoop
from engine.training.optimizers import MuonAdamW


class PackedCollator(DataCollatorForLanguageModeling):
    """TRL's batch, with the one long row that the model is called on."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = SharedRows.of([example["input_ids"] for example in examples], range(len(examples)))
        return super().torch_call(examples) | rows.as_inputs()


class NextTokenTrainer(TrainingLoop, SharedRowsMixin, SFTTrainer):
    """SFT whose evaluation means are over trained tokens."""

    token_row_type = TokenDialog

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs = dict(inputs)
        called: Any = self.on_shared_rows(model, inputs)
        return super().compute_loss(called, inputs, *args, **kwargs)

    def batch_weights(self, inputs: dict[str, Any]) -> dict[str, float]:
        return {"": float((inputs["labels"][:, 1:] != -100).sum())}


@dataclass
class BlockCollator(DataCollatorForLanguageModeling):
    """TRL's batch of blocks, with the long row in which the documents of a block do not see each other."""

    end_token_id: int = -1

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = SharedRows.of_parts([cut_at_ends(example["input_ids"], self.end_token_id) for example in examples])
        return super().torch_call(examples) | rows.as_inputs()


def cut_at_ends(block: Sequence[int], end: int) -> list[Sequence[int]]:
    """A block cut after each end token."""
    cuts = [0, *(at + 1 for at, token in enumerate(block) if token == end and at + 1 < len(block)), len(block)]
    return [block[start:stop] for start, stop in itertools.pairwise(cuts)]


class PretrainTrainer(NextTokenTrainer):
    def __init__(self, *args: Any, muon_learning_rate: float | None = None, **kwargs: Any) -> None:
        self.muon_learning_rate = muon_learning_rate
        super().__init__(*args, **kwargs)

    def without_shared_rows(self) -> None:
        raise ConfigError(
            "the attention of this architecture cannot be kept within documents: set mask_documents: false"
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        muon = self.muon_learning_rate
        if muon is None or self.optimizer is not None:
            return super().create_optimizer(model)
        assert isinstance(self.model, torch.nn.Module)
        self.optimizer = MuonAdamW(
            self.model,
            muon_learning_rate=muon,
            learning_rate=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
        )
        return self.optimizer
