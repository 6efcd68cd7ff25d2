"""Attention within the pieces of one long row: what stands end to end there does not see each other.

A piece is one sequence, or sequences that share what they begin with: a shared part, then a branch for each, which sees
the shared part and itself. All that works token by token (most of a model) then meets no padding at all; attention
alone is computed piece by piece, those of like length in one call, by PyTorch's SDPA or by matrix products, or of the
whole row by FlexAttention, whose blocks of hidden pairs cost nothing.

A model takes it through transformers' own seam: `enable` names our function in its config, and a call with
`row_pieces=Pieces(...)` uses it. Any other call goes on to what the config named before.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Shapes: S = tokens of the long row, N = pieces of one call, L = tokens of the longest of them, H = heads of size D.

NAMES = {  # in a config, by what it named before
    "sdpa": "row_pieces_sdpa",
    "eager": "row_pieces_eager",
    "flex_attention": "row_pieces_flex_attention",
}
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
CALL_COSTS = 10_000  # pairs of tokens whose attention takes as long as one more call


@dataclass(frozen=True)
class _Call:
    """Pieces whose attention is computed together, padded at their ends to the longest of them."""

    lengths: Sequence[int]
    parts: Sequence[int]  # of a piece that is computed by its parts: the shared part's length, then each branch's
    branches_NL: torch.Tensor
    positions_NL: torch.Tensor
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def padded(self, own: torch.Tensor) -> torch.Tensor:
        """[tokens of all pieces, H, D] -> [N, H, L, D]; padding is zero."""
        if len(set(self.lengths)) == 1:
            return own.unflatten(0, (len(self.lengths), -1)).transpose(1, 2)
        return torch.nn.utils.rnn.pad_sequence(list(own.split(self.lengths)), batch_first=True).transpose(1, 2)

    def put(self, attended: torch.Tensor) -> list[torch.Tensor]:
        """[N, H, L, D] -> [tokens, H, D] of each piece, or of all together where they are of one length."""
        tokens = attended.transpose(1, 2)
        if len(set(self.lengths)) == 1:
            return [tokens.flatten(0, 1)]
        return [piece[:length] for piece, length in zip(tokens.unbind(), self.lengths, strict=True)]

    def visible(self, window: int | None) -> torch.Tensor | None:
        """What each token attends to, [N, 1, L, L]; None: all before it and itself."""
        if window is not None and max(self.lengths) <= window:
            window = None
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        return self.masks[window]

    def _mask(self, window: int | None) -> torch.Tensor | None:
        if window is None and not self.branches_NL.any():
            return None
        order = torch.arange(self.branches_NL.size(1), device=self.branches_NL.device)
        branch_q, branch_k = self.branches_NL[:, :, None], self.branches_NL[:, None, :]
        visible = (order[:, None] >= order[None, :]) & ((branch_k == 0) | (branch_k == branch_q))
        if window is not None:
            visible = visible & (self.positions_NL[:, :, None] - self.positions_NL[:, None, :] < window)
        return visible[:, None]


class Pieces:
    """The pieces of a row, `lengths` in the order in which they stand there; best by falling length.

    branches_1S: 0 is the shared part of a piece; positions_1S: what position each token has in its own sequence.
    """

    def __init__(self, lengths: Sequence[int], branches_1S: torch.Tensor, positions_1S: torch.Tensor) -> None:
        self.lengths, self.branches_1S, self.positions_1S = lengths, branches_1S, positions_1S
        self.block_masks: dict[int | None, Any] = {}
        self.calls: list[_Call] = []
        start = 0
        parts = _parts_of(lengths, branches_1S) if branches_1S.device.type == "cpu" else [[] for _ in lengths]
        for first, end in together(lengths, list(map(_cost_by_parts, parts))):
            own = list(lengths[first:end])
            branches_NL, positions_NL = (
                torch.nn.utils.rnn.pad_sequence(list(of_row[0, start : start + sum(own)].split(own)), batch_first=True)
                for of_row in (branches_1S, positions_1S)
            )
            by_parts = parts[first] if end == first + 1 and _is_by_parts(own[0], parts[first]) else ()
            self.calls.append(_Call(own, by_parts, branches_NL, positions_NL))
            start += sum(own)

    def block_mask(self, window: int | None) -> Any:
        """What each token of the row attends to, as FlexAttention takes it."""
        if window not in self.block_masks:
            branch, position = self.branches_1S[0], self.positions_1S[0]
            sizes = torch.tensor(self.lengths, device=branch.device)
            piece = torch.repeat_interleave(torch.arange(len(sizes), device=branch.device), sizes)

            def visible(batch: Any, head: Any, q: Any, k: Any) -> Any:
                seen = (q >= k) & (piece[q] == piece[k]) & ((branch[k] == 0) | (branch[k] == branch[q]))
                return seen if window is None else seen & (position[q] - position[k] < window)

            self.block_masks[window] = create_block_mask(visible, None, None, len(branch), len(branch), branch.device)
        return self.block_masks[window]

    def split(self, whole: torch.Tensor) -> Sequence[torch.Tensor]:
        """[1, H, S, D] -> [N, H, L, D] of each call. All at once: a slice's gradient is as long as the row."""
        parts = whole[0].transpose(0, 1).split([sum(call.lengths) for call in self.calls])
        return [call.padded(own) for call, own in zip(self.calls, parts, strict=True)]


def _parts_of(lengths: Sequence[int], branches_1S: torch.Tensor) -> list[list[int]]:
    """Of each piece that is long enough to go by parts: how long its shared part is, and each of its branches."""
    parts: list[list[int]] = []
    for own in branches_1S[0].split(list(lengths)):
        if len(own) ** 2 <= 3 * CALL_COSTS:  # two branches and what they share are four calls
            parts.append([])
            continue
        branches, counts = torch.unique_consecutive(own, return_counts=True)
        parts.append([0] * int(branches[0] > 0) + counts.tolist())
    return parts


def _cost_by_parts(parts: Sequence[int]) -> float:
    """In pairs of tokens. Without branches, SDPA leaves out by itself what comes later."""
    if len(parts) < 2:
        return float("inf")
    shared, *branches = parts
    return sum(part**2 for part in parts) / 2 + shared * sum(branches) + (len(parts) + 1) * CALL_COSTS


def _is_by_parts(length: int, parts: Sequence[int]) -> bool:
    return _cost_by_parts(parts) < length**2 + CALL_COSTS


def together(lengths: Sequence[int], alone: Sequence[float] = ()) -> list[tuple[int, int]]:
    """Runs of pieces, (first, end), whose attention is one call each: least padding and fewest calls, weighed.

    `alone` is what each costs by its parts, where that can be.
    """
    costs, begins = [0.0], [0]
    for end in range(1, len(lengths) + 1):
        best, longest = (float("inf"), 0), 0
        for first in range(end - 1, -1, -1):
            longest = max(longest, lengths[first])
            own = (end - first) * longest**2 + CALL_COSTS
            if alone and end == first + 1:
                own = min(own, alone[first])
            best = min(best, (costs[first] + own, first))
            if own > best[0]:
                break  # a longer run only costs more
        costs.append(best[0])
        begins.append(best[1])
    runs, end = [], len(lengths)
    while end:
        runs.append((begins[end], end))
        end = begins[end]
    return runs[::-1]


def enable(config: Any) -> bool:
    """Lets models of this config be called with `row_pieces`; whether that can be."""
    for before, function in (("sdpa", _by_sdpa), ("eager", _by_products), ("flex_attention", _by_flex)):
        ALL_ATTENTION_FUNCTIONS.register(NAMES[before], function)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAMES[before], ALL_MASK_ATTENTION_FUNCTIONS[before])
    if config._attn_implementation in NAMES:
        config._attn_implementation = NAMES[config._attn_implementation]
    return config._attn_implementation in NAMES.values()


def disable(config: Any) -> None:
    """Names in the config what it named before."""
    for before, name in NAMES.items():
        if config._attn_implementation == name:
            config._attn_implementation = before


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pieces: Pieces,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    by_products: bool,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """[1, H, S, D] each -> [1, S, H, D]. Raises NotImplementedError for an attention that is more than this."""
    if others.get("s_aux") is not None or others.get("position_bias") is not None or (softcap and not by_products):
        raise NotImplementedError("attention with sinks or biases does not go piece by piece")
    repeats = query.size(1) // key.size(1)
    attended: list[torch.Tensor] = []
    for call, q, k, v in zip(pieces.calls, *map(pieces.split, (query, key, value)), strict=True):
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        if call.parts and not by_products and not dropout and _is_plain(q, k, v, sliding_window):
            scale = query.size(-1) ** -0.5 if scaling is None else scaling
            attended += call.put(_ByParts.apply(q, k, v, call.parts, scale))
            continue
        visible = call.visible(sliding_window)
        if by_products:
            out = _products(q, k, v, visible, scaling=scaling, softcap=softcap, dropout=dropout)
        else:
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=visible, is_causal=visible is None, dropout_p=dropout, scale=scaling
            )
        attended += call.put(out)
    return torch.cat(attended)[None], None


def _is_plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> bool:
    """Whether the kernel takes them as they are: under autocast it is SDPA that gives them one dtype (Qwen3)."""
    return q.dtype == k.dtype == v.dtype and q.size(-1) == v.size(-1) and (window is None or q.size(2) <= window)


class _ByParts(torch.autograd.Function):
    """Attention of one piece, [1, H, L, D], on a CPU: the shared part sees itself, each branch itself and the shared
    part, and what is hidden from one another is not computed. The two are joined by their log-sum-exps, and the
    gradient of each is that of the joined softmax: exact (Liu et al. 2023, Ring Attention).
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: Sequence[int], scale: float
    ) -> torch.Tensor:
        own = [_flash(*each, 0.0, True, scale=scale) for each in _split(parts, q, k, v)]
        out, lse = (torch.cat(values, dim=2) for values in zip(*own, strict=True))
        if parts[0]:
            shared, branches = slice(parts[0]), slice(parts[0], None)
            common, common_lse = _flash(q[:, :, branches], k[:, :, shared], v[:, :, shared], 0.0, scale=scale)
            share = torch.sigmoid(common_lse - lse[:, :, branches])
            out[:, :, branches] = torch.lerp(out[:, :, branches], common, share[..., None].to(out.dtype))
            lse[:, :, branches] = torch.logaddexp(lse[:, :, branches], common_lse)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, lse = ctx.saved_tensors
        all_parts = _split(ctx.parts, grad, q, k, v, out, lse)
        own = [_flash_backward(*each, 0.0, True, scale=ctx.scale) for each in all_parts]
        dq, dk, dv = (torch.cat(grads, dim=2) for grads in zip(*own, strict=True))
        if ctx.parts[0]:
            shared, branches = slice(ctx.parts[0]), slice(ctx.parts[0], None)
            own_grad, own_q, own_out, own_lse = (of[:, :, branches] for of in (grad, q, out, lse))
            common = _flash_backward(
                own_grad, own_q, k[:, :, shared], v[:, :, shared], own_out, own_lse, 0.0, False, scale=ctx.scale
            )
            dq[:, :, branches] += common[0]
            dk[:, :, shared] += common[1]
            dv[:, :, shared] += common[2]
        return dq, dk, dv, None, None


def _split(parts: Sequence[int], *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Each part of all tensors, [1, H, part, …]; not a shared part of no tokens."""
    there = [part for part in parts if part]
    return zip(*(tensor.split(there, dim=2) for tensor in tensors), strict=True)


def _products(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor | None,
    *,
    scaling: float | None,
    softcap: float | None,
    dropout: float,
) -> torch.Tensor:
    scores = q @ k.transpose(2, 3) * (q.size(-1) ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if visible is None:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.nn.functional.dropout(shares, dropout) @ v


def _by_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    row_pieces: Pieces | None = None,
    **options: Any,
) -> Any:
    if row_pieces is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **options)
    return _attend(module, query, key, value, row_pieces, by_products=False, **options)


def _by_products(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    row_pieces: Pieces | None = None,
    **options: Any,
) -> Any:
    if row_pieces is None:  # each architecture has an eager attention of its own
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, attention_mask, **options)
    return _attend(module, query, key, value, row_pieces, by_products=True, **options)


def _by_flex(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    row_pieces: Pieces | None = None,
    **options: Any,
) -> Any:
    if row_pieces is not None:
        attention_mask = row_pieces.block_mask(options.get("sliding_window"))
    return ALL_ATTENTION_FUNCTIONS["flex_attention"](module, query, key, value, attention_mask, **options)
