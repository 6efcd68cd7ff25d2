"""How much of a training step is arithmetic that had to be done, and how much of it the machine could do meanwhile.

Of one pair whose two sequences share their first `shared` tokens, of a model with W weights in matrix products (no
embeddings), a head of H weights (hidden size x vocabulary), L layers and an attention D wide (heads x head size):

    6 W tokens + 6 H logits + 12 L D visible

forth and back; its reference takes a third of that. `tokens` counts the shared ones once and no padding, `logits` the
positions whose logits a loss reads, `visible` the pairs of a token and one that it attends to. What is computed beside
that (masked pairs, logits that are made again in the backward pass, the optimizer, norms) counts as time alone.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.speed.samples import shared_length


class Sizes(NamedTuple):
    weights: int  # in matrix products, of all layers
    head: int
    layers: int
    attention: int  # heads x head size


class Counts(NamedTuple):
    tokens: int
    logits: int
    visible: int


def counts_of(chosen: Sequence[int], rejected: Sequence[int], *, logits: int) -> Counts:
    """Of one pair as shared rows have it."""
    shared = shared_length(chosen, rejected)
    branches = [len(chosen) - shared, len(rejected) - shared]
    visible = triangle(shared) + sum(branch * shared + triangle(branch) for branch in branches)
    return Counts(shared + sum(branches), logits, visible)


def triangle(length: int) -> int:
    return length * (length + 1) // 2


def of_step(sizes: Sizes, counts: Counts) -> int:
    """Floating point operations of the policy's passes over these tokens, forth and back."""
    forward = (
        2 * sizes.weights * counts.tokens
        + 2 * sizes.head * counts.logits
        + 4 * sizes.layers * sizes.attention * counts.visible
    )
    return forward * 3


def sizes_of(base: str) -> Sizes:
    """Counted in the model itself, made without memory."""
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


def best_rate(rows: int, inner: int, columns: int, dtype: Any, *, repeats: int) -> float:
    """Operations a second of one matrix product, the best of several."""
    import torch

    left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - started)
    return 2 * rows * inner * columns / min(seconds)


def peaks(shapes: Mapping[str, Sequence[int]], dtypes: Sequence[str], repeats: int) -> dict[str, dict[str, float]]:
    """The best rate of each product in each precision."""
    import torch

    return {
        dtype: {what: best_rate(*shape, getattr(torch, dtype), repeats=repeats) for what, shape in shapes.items()}
        for dtype in dtypes
    }


def faster(rates: Mapping[str, float]) -> str:
    """The precision of the highest rate."""
    return max(rates, key=lambda name: rates[name])


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Operations of a step on a job's pairs, and what `peaks` takes: the model's own shapes and 2048^3, and precisions.

    `generation` is the rate of a product of the answers written together, by precision: what sampling is done in.
    bfloat16 is among the precisions where it is faster there: a CPU that has no instructions for it would take minutes.
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
        encoded = encode(row)
        both = [encoded["prompt_ids"] + encoded[f"{side}_ids"] for side in ("chosen", "rejected")]
        logits = sum(sum(encoded[f"{side}_trained"]) for side in ("chosen", "rejected"))
        total = Counts(*map(sum, zip(total, counts_of(*both, logits=logits), strict=True)))
    config: Any = AutoConfig.from_pretrained(job["base"])
    layer = precision.Layer.of(config)
    assert layer is not None
    generation = precision.measure(layer, torch.device("cpu"), "generation", tokens=job["written_together"])
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
