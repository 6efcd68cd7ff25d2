"""Counts the arithmetic that a training step needs, and measures how much the machine can do in the same time.

For a model with W weights in matrix products (no embeddings), a head of H weights (hidden size x vocabulary), L layers
and an attention width of D (heads x head size), the forward and backward passes over one pair of sequences take

    6 W tokens + 6 H logits + 12 L D visible

operations, and the reference a third of that. `tokens` counts the shared beginning of the two sequences once and no
padding, `logits` the positions whose logits the loss reads, `visible` the pairs of a token and one that it attends to.
Whatever else is computed (masked pairs, logits recomputed in the backward pass, the optimizer, norms) counts only as
time.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.speed.samples import shared_length


class Sizes(NamedTuple):
    """W, H, L and D of a model."""

    weights: int  # in matrix products, of all layers
    head: int
    layers: int
    attention: int  # heads x head size


class Counts(NamedTuple):
    """What the operations of one or more pairs are computed from."""

    tokens: int
    logits: int
    visible: int


def counts_of(chosen: Sequence[int], rejected: Sequence[int], *, logits: int) -> Counts:
    """The counts of one pair, with its shared beginning once as in shared rows."""
    shared = shared_length(chosen, rejected)
    branches = [len(chosen) - shared, len(rejected) - shared]
    visible = triangle(shared) + sum(branch * shared + triangle(branch) for branch in branches)
    return Counts(shared + sum(branches), logits, visible)


def triangle(length: int) -> int:
    """Number of pairs of a token and one that it attends to, itself included, in a causal sequence."""
    return length * (length + 1) // 2


def of_step(sizes: Sizes, counts: Counts) -> int:
    """Floating point operations of the policy's forward and backward passes."""
    forward = (
        2 * sizes.weights * counts.tokens
        + 2 * sizes.head * counts.logits
        + 4 * sizes.layers * sizes.attention * counts.visible
    )
    return forward * 3


def sizes_of(base: str) -> Sizes:
    """Sizes of the model in a folder, counted on the meta device, where it takes no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    products = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and part is not head]
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Sizes(
        sum(part.weight.numel() for part in products),
        head.weight.numel(),
        config.num_hidden_layers,
        config.num_attention_heads * size,
    )


def best_rate(shape: Sequence[int], dtype: str, *, repeats: int, device: str = "cpu") -> float:
    """Operations a second of one matrix product, the best of `repeats`. `shape` is (rows, inner size, columns)."""
    import torch

    rows, inner, columns = shape
    precision = getattr(torch, dtype)
    left, right = (torch.randn(*sizes, device=device).to(precision) for sizes in ((rows, inner), (inner, columns)))

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    seconds = []
    for _ in range(repeats):
        wait()
        started = time.perf_counter()
        torch.mm(left, right)
        wait()
        seconds.append(time.perf_counter() - started)
    return 2 * rows * inner * columns / min(seconds)


def peaks(shapes: Mapping[str, Sequence[int]], dtypes: Sequence[str], repeats: int) -> dict[str, dict[str, float]]:
    """Precision -> product -> its best rate. `shapes` is product -> (rows, inner size, columns)."""
    return {
        dtype: {name: best_rate(shape, dtype, repeats=repeats) for name, shape in shapes.items()} for dtype in dtypes
    }


def faster(rates: Mapping[str, float]) -> str:
    """The precision with the highest rate."""
    return max(rates, key=lambda name: rates[name])


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Operations of a step on a job's pairs, and the shapes and precisions of the products to measure with `peaks`.

    `generation` is the rate, by precision, of a product as wide as a batch of answers. Sampling uses the faster
    precision. bfloat16 is among the precisions only if it is faster there: a CPU without instructions for it would take
    minutes.
    """
    import torch
    from transformers import AutoConfig

    from data_schemas.reading import read_rows
    from data_schemas.rows import PreferencePair
    from engine.models import precision
    from engine.models.loading import load_tokenizer
    from engine.runtime.process import use_all_cores
    from stages import dpo

    use_all_cores()
    encode, _ = dpo.encoder(load_tokenizer(job["base"]), dpo.DPOArguments(train_data=[], mask_formatting=False))
    total = Counts(0, 0, 0)
    for row in read_rows(Path(job["rows"]), PreferencePair):
        (encoded,) = encode(row)
        both = [encoded.prompt_ids + encoded.chosen_ids, encoded.prompt_ids + encoded.rejected_ids]
        logits = sum(encoded.chosen_trained) + sum(encoded.rejected_trained)
        total = Counts(*map(sum, zip(total, counts_of(*both, logits=logits), strict=True)))
    config: Any = AutoConfig.from_pretrained(job["base"])
    layer = precision.Layer.of(config)
    assert layer is not None
    generation = precision.measure(layer, torch.device("cpu"), "generation", tokens=job["generation_batch_size"])
    tokens, hidden = max(1, total.tokens // job["steps"]), config.hidden_size
    shapes = {
        "attention": (tokens, hidden, hidden),
        "MLP, up": (tokens, hidden, config.intermediate_size),
        "MLP, down": (tokens, config.intermediate_size, hidden),
        "head": (256, hidden, config.vocab_size),
        "square": (job["square"],) * 3,
    }
    dtypes = list(dict.fromkeys((precision.FLOAT32, faster(generation))))
    sizes = sizes_of(job["base"])
    return {
        "operations": of_step(sizes, total) // job["steps"],
        "counts": total._asdict(),
        "sizes": sizes._asdict(),
        "shapes": shapes,
        "dtypes": dtypes,
        "generation": generation,
    }
