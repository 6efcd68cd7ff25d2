"""Two attention kernels: one segment in parts, and plain matrix products.

**In parts.** The prefix attends to itself, and each branch to itself and to the prefix. Pairs of tokens that are hidden
from one another are not computed. A branch's two results are those of one softmax over both sets of keys, split in two:
with the outputs o_p (over the prefix's keys) and o_b (over the branch's own), and the log-sum-exps of their scores,
lse_p and lse_b, the joined attention is (Liu et al. 2023, Ring Attention, arXiv 2310.01889)

    lse = log(exp(lse_p) + exp(lse_b))
    o   = s * o_p + (1 - s) * o_b,    s = exp(lse_p - lse) = sigmoid(lse_p - lse_b)

For the gradients, FlashAttention's backward pass recomputes each probability as exp(score - lse). Given the joined `o`
and `lse` it therefore returns, for each set of keys, the gradient of the joined softmax. Both passes are exact.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.autograd.function import FunctionCtx

# Shapes: N = segments, L = tokens of the longest, H = heads of size D. [N, H, L] is a log-sum-exp for each query.

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Context(FunctionCtx):
    """What `PrefixAttention` keeps for its backward pass."""

    saved_tensors: tuple[torch.Tensor, ...]
    part_lengths: Sequence[int]
    scale: float


class PrefixAttention(torch.autograd.Function):
    """Attention of one segment, [1, H, L, D], in parts, on a CPU. `part_lengths` are those of the prefix (0 where there
    is none) and of each branch; see the module's docstring."""

    @staticmethod
    def forward(
        ctx: _Context, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, part_lengths: Sequence[int], scale: float
    ) -> torch.Tensor:
        own = [_flash(*part, 0.0, True, scale=scale) for part in _split(part_lengths, q, k, v)]
        out, lse = (torch.cat(values, dim=2) for values in zip(*own, strict=True))
        if part_lengths[0]:
            prefix, branches = slice(part_lengths[0]), slice(part_lengths[0], None)
            common, common_lse = _flash(q[:, :, branches], k[:, :, prefix], v[:, :, prefix], 0.0, scale=scale)
            share = torch.sigmoid(common_lse - lse[:, :, branches])
            out[:, :, branches] = torch.lerp(out[:, :, branches], common, share[..., None].to(out.dtype))
            lse[:, :, branches] = torch.logaddexp(lse[:, :, branches], common_lse)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.part_lengths, ctx.scale = part_lengths, scale
        return out

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Context, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        parts = _split(ctx.part_lengths, grad, q, k, v, out, lse)
        own = [_flash_backward(*part, 0.0, True, scale=ctx.scale) for part in parts]
        dq, dk, dv = (torch.cat(grads, dim=2) for grads in zip(*own, strict=True))
        if ctx.part_lengths[0]:
            prefix, branches = slice(ctx.part_lengths[0]), slice(ctx.part_lengths[0], None)
            own_grad, own_q, own_out, own_lse = (tensor[:, :, branches] for tensor in (grad, q, out, lse))
            common = _flash_backward(
                own_grad, own_q, k[:, :, prefix], v[:, :, prefix], own_out, own_lse, 0.0, False, scale=ctx.scale
            )
            dq[:, :, branches] += common[0]
            dk[:, :, prefix] += common[1]
            dv[:, :, prefix] += common[2]
        return dq, dk, dv, None, None


def _split(part_lengths: Sequence[int], *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """For each part, the slices of all tensors, [1, H, part, …]. A prefix of 0 tokens is left out."""
    lengths = [length for length in part_lengths if length]
    return zip(*(tensor.split(lengths, dim=2) for tensor in tensors), strict=True)


def matmul_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor | None,
    *,
    scaling: float | None,
    softcap: float | None,
    dropout: float,
) -> torch.Tensor:
    """Attention by matrix products, [N, H, L, D] each: softmax(cap(q k^T * scaling)) v, with the softmax in float32.

    cap(x) = softcap * tanh(x / softcap) where `softcap` is given (Gemma 2). `visible` is a mask that broadcasts to
    [N, H, L, L]; None means causal. `scaling` None means D^-0.5.
    """
    scores = q @ k.transpose(2, 3) * (q.size(-1) ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if visible is None:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.nn.functional.dropout(shares, dropout) @ v
