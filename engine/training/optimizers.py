"""Muon on the hidden matrices, AdamW on everything else: one optimizer to the Trainer.

For pretraining from random weights on little data, where AdamW alone needs far more steps. Muon: Jordan et al. 2024,
with the defaults of torch.optim.Muon. That one multiplies in bfloat16 wherever it is: on a CPU without instructions for
it the steps of a model of half a million parameters took five times as long.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

TOGETHER = 2**24  # numbers, of matrices that are multiplied together


class Muon(torch.optim.Optimizer):
    """Nesterov momentum of matrices, made about orthogonal: small ones of one shape together."""

    def __init__(
        self, params: Iterable[torch.Tensor], *, lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            alike: dict[Any, list[torch.Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault((weight.shape, weight.dtype, weight.device), []).append(weight)
            for weights in alike.values():
                size = max(1, TOGETHER // weights[0].numel())
                for start in range(0, len(weights), size):
                    self._move(weights[start : start + size], group)

    def _move(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        updates = orthogonal(torch.stack([self._updated(weight, group["momentum"]) for weight in weights]))
        rows, columns = weights[0].shape
        for weight, update in zip(weights, updates, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)

    def _updated(self, weight: torch.Tensor, momentum: float) -> torch.Tensor:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        return gradient.lerp(state["momentum_buffer"].lerp_(gradient, 1 - momentum), momentum)


def orthogonal(matrices_NRC: torch.Tensor) -> torch.Tensor:
    """Each with its singular values near one, [N, R, C]: five Newton-Schulz steps, float32 on a CPU, else bfloat16."""
    found = matrices_NRC.to(torch.float32 if matrices_NRC.device.type == "cpu" else torch.bfloat16)
    is_tall = found.size(1) > found.size(2)
    if is_tall:
        found = found.mT
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = found @ found.mT
        update = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        found = torch.baddbmm(found, update, found, beta=3.4445)
    return (found.mT if is_tall else found).to(matrices_NRC.dtype)


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
            Muon(matrices, lr=muon_learning_rate, weight_decay=weight_decay),
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
