"""Counts the floating point operations that a training step executes, padding and masked pairs of tokens included.

They are counted from the shapes that the model's layers, its attention kernels and TRL's fused head are called with,
and not with torch's FlopCounterMode, under which FlexAttention is not compiled and needs a matrix of all scores. A
backward pass takes twice its forward pass; a recomputed forward pass is called, and so counted, a second time.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn.modules import module as modules

HEAD_PASSES = 4  # logits, logits again in the backward pass, gradients of the hidden states and of the weights


@dataclass
class Work:
    """Operations with gradients since the last `take`."""

    layers: int = 0  # of forward passes through matrix products
    attention: int = 0  # of forward passes
    head: int = 0  # of all its passes

    def take(self, *, is_recomputed: bool) -> int:
        """The operations so far, with those of the backward pass; starts again from zero."""
        forward_and_backward = 2 if is_recomputed else 3  # a recomputed pass has been counted twice
        total = (self.layers + self.attention) * forward_and_backward + self.head
        self.layers = self.attention = self.head = 0
        return total


def _pairs_of_blocks(block_mask: Any) -> int:
    """Pairs of tokens in the blocks that FlexAttention computes."""
    rows, columns = block_mask.BLOCK_SIZE
    blocks = block_mask.kv_num_blocks.sum()
    if block_mask.full_kv_num_blocks is not None:
        blocks = blocks + block_mask.full_kv_num_blocks.sum()
    return int(blocks) * rows * columns


@contextlib.contextmanager
def counting() -> Iterator[Work]:
    """Counts the work of all models that are called with gradients inside the `with`."""
    from transformers.integrations import flex_attention
    from trl.trainer import utils as trl_utils

    work = Work()

    def linear(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        if isinstance(module, nn.Linear) and torch.is_grad_enabled():
            work.layers += 2 * inputs[0].numel() * module.out_features

    def scores(query: torch.Tensor, pairs: int) -> None:
        if torch.is_grad_enabled():
            work.attention += 4 * query.size(-1) * query.size(1) * pairs

    sdpa, flex = nn.functional.scaled_dot_product_attention, flex_attention.compile_friendly_flex_attention
    head: Callable[..., Any] = trl_utils._ChunkedLogProbFunction.apply

    def counted_sdpa(query: torch.Tensor, key: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        length, num_keys = query.size(-2), key.size(-2)
        is_causal = bool(options.get("is_causal"))  # such kernels skip the hidden half
        pairs = length * (length + 1) // 2 if is_causal else length * num_keys
        scores(query, len(query) * pairs)
        return sdpa(query, key, *args, **options)

    def counted_flex(query: torch.Tensor, key: torch.Tensor, *args: Any, **options: Any) -> Any:
        block_mask = options.get("block_mask")
        pairs = query.size(-2) * key.size(-2) if block_mask is None else _pairs_of_blocks(block_mask)
        scores(query, pairs * (len(query) if block_mask is None or block_mask.shape[0] == 1 else 1))
        return flex(query, key, *args, **options)

    def counted_head(hidden: torch.Tensor, weight: torch.Tensor, *args: Any) -> Any:
        if torch.is_grad_enabled():
            work.head += HEAD_PASSES * 2 * hidden.numel() * weight.size(0)
        return head(hidden, weight, *args)

    hook = modules.register_module_forward_hook(linear)
    try:
        with (
            mock.patch.object(nn.functional, "scaled_dot_product_attention", counted_sdpa),
            mock.patch.object(flex_attention, "compile_friendly_flex_attention", counted_flex),
            mock.patch.object(trl_utils._ChunkedLogProbFunction, "apply", counted_head),
        ):
            yield work
    finally:
        hook.remove()
