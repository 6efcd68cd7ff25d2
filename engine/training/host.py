"""What the mixins of this folder need of the TRL trainer that they are mixed into, with types.

transformers and TRL leave most of these attributes without a type, or give them one that covers cases which do not
occur here, as a model that is not loaded yet.
"""

from typing import cast

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, Trainer

Batch = dict[str, torch.Tensor]  # a collated batch: tensors by column


class TRLTrainer(Trainer):
    """The attributes of TRL's SFTTrainer, RewardTrainer and DPOTrainer that the mixins read. It adds no behaviour."""

    model: PreTrainedModel  # pyright: ignore[reportIncompatibleVariableOverride]
    accelerator: Accelerator
    _metrics: dict[str, dict[str, list[float]]]  # "train" or "eval" -> name -> one mean a batch since the last log
    _total_train_tokens: int  # TRL's count of the tokens trained on; TRL does not save it in a checkpoint

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, concatenated. During an evaluation only this process's own."""
        return cast(torch.Tensor, self.accelerator.gather(tensor))

    def gather_for_metrics(self, tensor: torch.Tensor) -> torch.Tensor:
        """As `gather`, without the rows that fill up the last batch."""
        return cast(torch.Tensor, self.accelerator.gather_for_metrics(tensor))
