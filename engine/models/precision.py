"""Which precision is faster on this device, by a short measurement of matrix products at the model's own shapes.

bf16 is faster on a GPU and on a CPU with AVX512-BF16 or AMX. On other CPUs, and with small matrices anywhere, it is
slower, because every product casts its weights first. Precision is part of a step's identity, so `alignloop check`
reports which one is faster and changes nothing.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PretrainedConfig

MIN_RATIO = 1.1  # a smaller difference is not reported
SECONDS = 0.7  # of one measurement, of both precisions
MAX_SIDE = 4096  # of a matrix; a larger one reaches no higher FLOP/s
MAX_TOKENS = 512
# Allowed difference of two outputs as a share of the largest one, by the precision that the model computes in: a merged
# adapter, a GPU and several processes sum in another order.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
Use = Literal["training", "generation"]
FLOAT32, BFLOAT16 = "float32", "bfloat16"


@dataclass(frozen=True)
class Layer:
    """The largest matrix of a model's layers."""

    hidden_size: int
    intermediate_size: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Layer | None":
        """The sizes in a model's configuration; None where it has no hidden_size."""
        text = config.get_text_config()
        hidden = getattr(text, "hidden_size", None)
        sizes = (getattr(text, name, None) for name in ("intermediate_size", "n_inner", "ffn_dim"))
        return cls(hidden, next(filter(None, sizes), 4 * hidden)) if hidden else None


def has_fast_matmul(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device has instructions for matrix products in this precision; a CPU may only emulate bfloat16.

    Without oneDNN this cannot be checked, and True is assumed.
    """
    if device.type != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cpu_load_warning() -> str:
    """The load of this machine if other programs make a measurement on its CPU meaningless, else the empty string."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"load {load:.0f} on {cores} cores" if load > cores else ""


def measure(layer: Layer, device: torch.device, use: Use, *, tokens: int) -> dict[str, float]:
    """FLOP/s of the layer's matrix product by precision: the best of several runs, which alternate between the two.

    Training is forward and backward with float32 weights under autocast; generation is forward with weights in the
    precision. `tokens` is the number of rows of the product.
    """
    tokens = min(tokens, MAX_TOKENS)
    size = {"hidden": min(layer.hidden_size, MAX_SIDE), "intermediate": min(layer.intermediate_size, MAX_SIDE)}
    products = {}
    for name in (FLOAT32, BFLOAT16):
        work = _training(device, name, **size) if use == "training" else _generation(device, name, **size)
        products[name] = work
    passes = 3 if use == "training" else 1
    started, best, rows = time.perf_counter(), dict.fromkeys(products, 0.0), 8
    while rows:
        for name, work in products.items():
            seconds = _seconds(work, min(rows, tokens), device)
            operations = 2 * passes * min(rows, tokens) * size["hidden"] * size["intermediate"]
            best[name] = max(best[name], operations / seconds)
        # Few rows first, since a CPU that only emulates bf16 would take minutes for many.
        elapsed = time.perf_counter() - started
        rows = 0 if elapsed > SECONDS else rows if rows >= tokens else 4 * rows
    return best


def _training(device: torch.device, name: str, *, hidden: int, intermediate: int) -> Callable[[int], None]:
    layer = torch.nn.Linear(hidden, intermediate, bias=False, device=device)
    inputs = torch.randn(MAX_TOKENS, hidden, device=device, requires_grad=True)

    def work(rows: int) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == BFLOAT16):
            outputs = layer(inputs[:rows])
        outputs.backward(torch.ones_like(outputs))

    return work


def _generation(device: torch.device, name: str, *, hidden: int, intermediate: int) -> Callable[[int], None]:
    dtype = getattr(torch, name)
    layer = torch.nn.Linear(hidden, intermediate, bias=False, device=device, dtype=dtype)
    inputs = torch.randn(MAX_TOKENS, hidden, device=device, dtype=dtype)

    def work(rows: int) -> None:
        with torch.no_grad():
            layer(inputs[:rows])

    return work


def _seconds(work: Callable[[int], None], rows: int, device: torch.device) -> float:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    started = now()
    work(rows)
    return max(now() - started, 1e-9)


def advice(speed: Mapping[str, float], *, chosen: str, key: str, by_default: bool = False) -> str:
    """One line if the other precision is faster, else the empty string.

    `speed` is in FLOP/s by precision; `key` is the recipe's key: bf16 or dtype.
    """
    other = FLOAT32 if chosen == BFLOAT16 else BFLOAT16
    ratio = speed[other] / speed[chosen]
    if ratio < MIN_RATIO:
        return ""
    measured = f"(fp32 {_giga(speed[FLOAT32])}, bf16 {_giga(speed[BFLOAT16])} GFLOP/s)"
    values = {FLOAT32: "false", BFLOAT16: "true"} if key == "bf16" else {FLOAT32: FLOAT32, BFLOAT16: BFLOAT16}
    origin = " (the default)" if by_default else ""
    if other == BFLOAT16:
        return (
            f"{key}: {values[other]} would make matrix products {ratio:.1f} times as fast here {measured}; "
            "it is part of the step's identity"
        )
    return (
        f"{key}: {values[chosen]}{origin} is {ratio:.1f} times as slow as fp32 here {measured}: "
        f"set {key}: {values[other]}"
    )


def _giga(speed: float) -> str:
    return f"{speed / 1e9:.0f}" if speed >= 1e10 else f"{speed / 1e9:.1f}"
