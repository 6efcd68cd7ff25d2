"""Weights in the order in which a CPU's products read them, for as long as a model only generates.

A product of few rows with a plain weight first puts the weight in that order, at every call: a step of 32 rows takes a
third more time for it, one of 128 a tenth. The numbers are the same, bit by bit.
"""

import contextlib
import functools
from collections.abc import Iterator

import psutil
import torch

SHARE = 0.5  # of the free memory, at most


@contextlib.contextmanager
def packed_weights(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model's products are with packed copies of its weights: where that pays, and there is room."""
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and _goes(module)]
    size = sum(module.weight.nbytes for module in linears)
    packed = linears if size <= SHARE * psutil.virtual_memory().available else []
    try:
        for module in packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), None)
            module.forward = functools.partial(_product, weight=weight, bias=module.bias)
        yield
    finally:
        for module in packed:
            module.__dict__.pop("forward", None)


def _goes(module: torch.nn.Linear) -> bool:
    """Layers of PEFT or of quantization have a class of their own, what accelerate has hooked a forward of its own."""
    return (
        type(module) is torch.nn.Linear
        and "forward" not in module.__dict__
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _product(input: torch.Tensor, *, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
