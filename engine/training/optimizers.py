"""Muon on the hidden matrices and AdamW on everything else, as one optimizer for the Trainer.

For pretraining from random weights on little data, where plain AdamW needs far more steps. Muon: Jordan et al. 2024,
with the defaults of torch.optim.Muon, which multiplies in bfloat16 on every device: on a CPU without instructions for
it the steps of a model of half a million parameters took five times as long.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.optimizer import StateDict

# Shapes: N = matrices of one shape, R = rows, C = columns.

STACK_ELEMENTS = 2**24  # of the matrices of one shape that are updated in one batched product


class Muon(torch.optim.Optimizer):
    """Nesterov momentum of matrices, orthogonalised; matrices of one shape are updated in one batched product."""

    def __init__(
        self, params: Iterable[torch.Tensor], *, lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            by_shape: dict[tuple[torch.Size, torch.dtype, torch.device], list[torch.Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault((weight.shape, weight.dtype, weight.device), []).append(weight)
            for weights in by_shape.values():
                size = max(1, STACK_ELEMENTS // weights[0].numel())
                for start in range(0, len(weights), size):
                    self._update(
                        weights[start : start + size],
                        lr=group["lr"],
                        weight_decay=group["weight_decay"],
                        momentum=group["momentum"],
                    )

    def _update(self, weights: list[torch.Tensor], *, lr: float, weight_decay: float, momentum: float) -> None:
        """One step of matrices of one shape."""
        updates_NRC = orthogonal(torch.stack([self._nesterov(weight, momentum) for weight in weights]))
        rows, columns = weights[0].shape
        for weight, update in zip(weights, updates_NRC, strict=True):
            weight.mul_(1 - lr * weight_decay)
            weight.add_(update, alpha=-lr * max(1, rows / columns) ** 0.5)

    def _nesterov(self, weight: torch.Tensor, momentum: float) -> torch.Tensor:
        """The gradient with Nesterov momentum, [R, C]."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        return gradient.lerp(state["momentum_buffer"].lerp_(gradient, 1 - momentum), momentum)


def orthogonal(matrices_NRC: torch.Tensor) -> torch.Tensor:
    """The matrices with all singular values near one, [N, R, C].

    Five Newton-Schulz steps, in float32 on a CPU and in bfloat16 elsewhere.
    """
    result = matrices_NRC.to(torch.float32 if matrices_NRC.device.type == "cpu" else torch.bfloat16)
    is_tall = result.size(1) > result.size(2)
    if is_tall:
        result = result.mT
    result = result / result.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = result @ result.mT
        update = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        result = torch.baddbmm(result, update, result, beta=3.4445)
    return (result.mT if is_tall else result).to(matrices_NRC.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers whose parameter groups share one learning rate schedule.

    Matrices inside the layers go to Muon at `muon_learning_rate`; embeddings, head, norms and biases to AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        muon_learning_rate: float,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        embeddings = {
            id(weight)
            for module in model.modules()
            if isinstance(module, nn.Embedding)
            for weight in module.parameters()
        }
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if head is not None:
            embeddings |= {id(weight) for weight in head.parameters()}
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        matrices = [weight for weight in trained if weight.ndim == 2 and id(weight) not in embeddings]
        rest = [weight for weight in trained if weight.ndim != 2 or id(weight) in embeddings]
        self.parts: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=muon_learning_rate, weight_decay=weight_decay),
            torch.optim.AdamW(rest, lr=learning_rate, weight_decay=weight_decay, fused=True, betas=betas, eps=eps),
        ]
        super().__init__([{"params": matrices}, {"params": rest}], {})
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for part in self.parts:
            part.step()

    def state_dict(self) -> StateDict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: StateDict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
