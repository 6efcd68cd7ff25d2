"""Weights in the order in which a CPU's products read them, for as long as a model only generates.

A product of few rows with a plain weight first puts the weight in that order, at every call: with oneDNN's own order a
step of 32 rows takes a quarter to a third less time, one of 128 a tenth to a sixth. In bfloat16 the numbers are the
same, bit by bit; in float32 plain products are of another library, and round otherwise.
"""

import collections
import contextlib
import functools
from collections.abc import Iterator

import torch

from engine.models import precision

# Weights of fewer numbers gain nothing.
SMALLEST = {torch.bfloat16: 1, torch.float32: 2**17}


@contextlib.contextmanager
def packed_weights(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model's products are with packed weights, and these stand in place of its own; afterwards it is as
    it was, bit by bit. A weight that is used elsewhere too, as a tied embedding, is there twice."""
    uses = collections.Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    packed: list[tuple[torch.nn.Linear, torch.Tensor]] = []
    try:
        for module in [
            module for module in model.modules() if isinstance(module, torch.nn.Linear) and _can_be_packed(module)
        ]:
            weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), None)
            packed.append((module, weight))
            module.forward = functools.partial(_product, weight=weight, bias=module.bias)
            if uses[id(module.weight)] == 1:
                module.weight.data = module.weight.new_empty(0)
        yield
    finally:
        for module, weight in packed:
            module.__dict__.pop("forward", None)
            if not module.weight.numel():
                module.weight.data = weight.to_dense()


def _can_be_packed(module: torch.nn.Linear) -> bool:
    """Layers of PEFT or of quantization have a class of their own, what accelerate has hooked a forward of its own."""
    weight = module.weight
    return (
        type(module) is torch.nn.Linear
        and "forward" not in module.__dict__
        and weight.device.type == "cpu"
        and weight.numel() >= SMALLEST.get(weight.dtype, torch.inf)
        and torch.backends.mkldnn.is_available()
        and (
            precision.has_fast_matmul(weight.device, weight.dtype)
            if weight.dtype == torch.bfloat16
            else torch.backends.cpu.get_cpu_capability().startswith("AVX")
        )
    )


def _product(input: torch.Tensor, *, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
