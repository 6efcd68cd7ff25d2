"""Muon on the hidden matrices, AdamW on everything else: one optimizer to the Trainer.

For pretraining from random weights on little data, where AdamW alone needs far more steps. Muon: Jordan et al. 2024,
torch.optim.Muon.
"""

from typing import Any

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers whose parameter groups one scheduler moves.

    Matrices inside the layers go to Muon at `muon_learning_rate`; embeddings, head, norms and biases to AdamW.
    """

    def __init__(
        self, model: nn.Module, *, muon_learning_rate: float, learning_rate: float, weight_decay: float, **adamw: Any
    ) -> None:
        ends = {
            id(weight)
            for module in model.modules()
            if isinstance(module, nn.Embedding)
            for weight in module.parameters()
        }
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if head is not None:
            ends |= {id(weight) for weight in head.parameters()}
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        matrices = [weight for weight in trained if weight.ndim == 2 and id(weight) not in ends]
        rest = [weight for weight in trained if weight.ndim != 2 or id(weight) in ends]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=muon_learning_rate, weight_decay=weight_decay),
            torch.optim.AdamW(rest, lr=learning_rate, weight_decay=weight_decay, fused=True, **adamw),
        ]
        super().__init__([{"params": matrices}, {"params": rest}], {})
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
