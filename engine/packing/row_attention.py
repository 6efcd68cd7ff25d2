"""Attention within the segments of a packed row, as an attention function of transformers.

`enable` puts the name of our function into a model's configuration. A call of the model with
`row_segments=RowSegments(...)` then uses it, and every other call uses the function that the configuration named
before. Three are supported: SDPA (PyTorch's fused kernels), eager (matrix products, for models that cap their scores),
and FlexAttention, which computes the whole row in one kernel and skips blocks of hidden pairs.
"""

import sys
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine.packing.attention_calls import RowSegments
from engine.packing.prefix_attention import PrefixAttention, matmul_attention

# Shapes: S = tokens of the row, N = segments of one call, L = tokens of the longest of them, H = heads of size D.

NAMES = {  # the attention implementation that a configuration names -> our name for it with segments
    "sdpa": "row_segments_sdpa",
    "eager": "row_segments_eager",
    "flex_attention": "row_segments_flex_attention",
}
AttentionOutput = tuple[torch.Tensor, torch.Tensor | None]  # attended [1, S, H, D], and the weights if there are any


def enable(config: PretrainedConfig) -> bool:
    """Lets models of this configuration be called with `row_segments`. Returns whether their attention allows it."""
    for before, function in (("sdpa", _sdpa), ("eager", _eager), ("flex_attention", _flex_attention)):
        ALL_ATTENTION_FUNCTIONS.register(NAMES[before], function)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAMES[before], ALL_MASK_ATTENTION_FUNCTIONS[before])
    if config._attn_implementation in NAMES:
        config._attn_implementation = NAMES[config._attn_implementation]
    return config._attn_implementation in NAMES.values()


def disable(config: PretrainedConfig) -> None:
    """Restores the attention implementation that the configuration named before `enable`."""
    for before, name in NAMES.items():
        if config._attn_implementation == name:
            config._attn_implementation = before


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: RowSegments,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    by_matmul: bool,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Attention within the segments of a row: [1, H, S, D] each -> [1, S, H, D]. Key and value may have fewer heads.

    Raises NotImplementedError for attention with sinks or biases, and for capped scores without `by_matmul`.
    """
    if others.get("s_aux") is not None or others.get("position_bias") is not None or (softcap and not by_matmul):
        raise NotImplementedError(
            "attention with sinks or biases can't be computed by segments, and capped scores only by `eager`"
        )
    repeats = query.size(1) // key.size(1)
    attended: list[torch.Tensor] = []
    for call, q, k, v in zip(segments.calls, *map(segments.split, (query, key, value)), strict=True):
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        if call.part_lengths and not by_matmul and not dropout and _fits_kernel(q, k, v, sliding_window):
            scale = query.size(-1) ** -0.5 if scaling is None else scaling
            attended.append(call.unpad(PrefixAttention.apply(q, k, v, call.part_lengths, scale)))
            continue
        visible = call.visible(sliding_window)
        if by_matmul:
            out = matmul_attention(q, k, v, visible, scaling=scaling, softcap=softcap, dropout=dropout)
        else:
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=visible, is_causal=visible is None, dropout_p=dropout, scale=scaling
            )
        attended.append(call.unpad(out))
    return torch.cat(attended)[None], None


def _fits_kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> bool:
    """Whether `PrefixAttention` can compute them. It needs one dtype, which under autocast only SDPA casts to (Qwen3
    has queries in float32 there), and has no sliding window."""
    return q.dtype == k.dtype == v.dtype and q.size(-1) == v.size(-1) and (window is None or q.size(2) <= window)


# The three functions below have the signature of transformers' attention functions: query, key and value [1, H, S, D].


def _sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_segments: RowSegments | None = None,
    **options: Any,
) -> AttentionOutput:
    if row_segments is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **options)
    return attend(query, key, value, row_segments, by_matmul=False, **options)


def _eager(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_segments: RowSegments | None = None,
    **options: Any,
) -> AttentionOutput:
    if row_segments is None:  # each architecture has its own eager attention, which is not registered
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, attention_mask, **options)
    return attend(query, key, value, row_segments, by_matmul=True, **options)


def _flex_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    row_segments: RowSegments | None = None,
    **options: Any,
) -> AttentionOutput:
    if row_segments is not None:
        attention_mask = row_segments.block_mask(options.get("sliding_window"))
    return ALL_ATTENTION_FUNCTIONS["flex_attention"](module, query, key, value, attention_mask, **options)
