"""Attention of one layer on a packed row, forward and backward: SDPA, FlexAttention, and torch's varlen_attn.

Shared prompts are computed by `varlen_attn` in parts, as on a CPU (engine/packing/prefix_attention.py): every prefix
and every branch attends to itself, and each branch to its prefix, in two calls for the whole row. The two results of a
branch are joined by their log-sum-exps, and the backward pass of each call gets the joined output and log-sum-exp.
"""

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.packing.attention_calls import RowSegments
from engine.packing.row_attention import attend

# Shapes: S = tokens of the row, H = heads of size D, B = branches that have a prefix.

REPEATS = 8
Kernels = tuple[Callable[..., Any], Callable[..., Any]]


@dataclass(frozen=True)
class Parts:
    """Where prefixes and branches begin and end in a row, for calls with sequences of different lengths."""

    own: torch.Tensor  # bounds of all parts, in int32
    longest: int
    branch_tokens: torch.Tensor  # indices in the row, of the branches that have a prefix
    branches: torch.Tensor  # bounds of each segment's branches among `branch_tokens`
    longest_branches: int
    prefix_tokens: torch.Tensor  # indices in the row, of the prefixes that have branches
    prefixes: torch.Tensor
    longest_prefix: int

    @classmethod
    def of(cls, lengths: Sequence[int], branches_1S: torch.Tensor) -> "Parts":
        device, start = branches_1S.device, 0
        own, branch_tokens, prefix_tokens, branches, prefixes = [], [], [], [], []
        for of_segment in branches_1S[0].split(list(lengths)):
            numbers, counts = torch.unique_consecutive(of_segment, return_counts=True)
            own += counts.tolist()
            prefix = int(counts[0]) if int(numbers[0]) == 0 else 0
            if prefix and len(counts) > 1:
                prefix_tokens += range(start, start + prefix)
                branch_tokens += range(start + prefix, start + len(of_segment))
                prefixes.append(prefix)
                branches.append(len(of_segment) - prefix)
            start += len(of_segment)

        def bounds(sizes: Sequence[int]) -> torch.Tensor:
            ends = torch.tensor([0, *sizes]).cumsum(0)
            return ends.to(device=device, dtype=torch.int32)

        indices = [torch.tensor(some, device=device, dtype=torch.long) for some in (branch_tokens, prefix_tokens)]
        longest = [max(sizes, default=0) for sizes in (own, branches, prefixes)]
        return cls(
            bounds(own), longest[0], indices[0], bounds(branches), longest[1], indices[1], bounds(prefixes), longest[2]
        )


class VarlenAttention(torch.autograd.Function):
    """[S, H, D] each -> [S, H, D]; key and value may have fewer heads."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: Parts, kernels: Kernels):
        attend_forward, _ = kernels
        out, lse, state = attend_forward(q, k, v, parts.own, parts.own, parts.longest, parts.longest, True)
        states = [state]
        if len(parts.branch_tokens):
            at, to = parts.branch_tokens, parts.prefix_tokens
            common, common_lse, state = attend_forward(
                q[at], k[to], v[to], parts.branches, parts.prefixes, parts.longest_branches, parts.longest_prefix, False
            )
            states.append(state)
            share = torch.sigmoid(common_lse - lse[:, at])  # [H, B]
            own, common = (tensor.to(share.dtype) for tensor in (out[at], common))
            out[at] = torch.lerp(own, common, share.T[..., None]).to(out.dtype)
            lse[:, at] = torch.logaddexp(lse[:, at], common_lse)
        ctx.save_for_backward(q, k, v, out, lse, *states)
        ctx.parts, ctx.kernels = parts, kernels
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor):
        (grad,), parts, (_, attend_backward) = grads, ctx.parts, ctx.kernels
        q, k, v, out, lse, *states = ctx.saved_tensors
        longest = (parts.longest, parts.longest, True)
        dq, dk, dv = attend_backward(grad.contiguous(), q, k, v, out, lse, parts.own, parts.own, *longest, states[0])
        if len(parts.branch_tokens):
            at, to = parts.branch_tokens, parts.prefix_tokens
            longest = (parts.longest_branches, parts.longest_prefix, False)
            common = attend_backward(
                grad[at],
                q[at],
                k[to],
                v[to],
                out[at],
                lse[:, at].contiguous(),
                parts.branches,
                parts.prefixes,
                *longest,
                states[1],
            )
            for whole, index, part in zip((dq, dk, dv), (at, to, to), common, strict=True):
                whole.index_add_(0, index, part.to(whole.dtype))
        return dq, dk, dv, None, None


def varlen_kernels() -> Kernels:
    """torch's own, on a GPU. Raises ImportError or AttributeError where this torch does not have them."""
    importlib.import_module("torch.nn.attention.varlen")  # registers them
    forward, backward = torch.ops.torch_attn._varlen_attn, torch.ops.torch_attn._varlen_attn_backward
    return partial(_forward, forward), backward.default


def _forward(operator: Callable[..., Any], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any) -> Any:
    return operator(q, k, v, *args, enable_gqa=q.size(1) != k.size(1))


Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def implementations(segments: RowSegments, branches_1S: torch.Tensor) -> dict[str, Callable[[], Attention]]:
    """Name -> a function that prepares what the row needs and returns the attention.

    Its shapes are [1, H, S, D] each -> [1, S, H, D].
    """

    def sdpa() -> Attention:
        return lambda q, k, v: attend(q, k, v, segments, by_matmul=False)[0]

    def flex() -> Attention:
        from transformers.integrations.flex_attention import flex_attention_forward

        layer, mask = torch.nn.Module().train(), segments.block_mask(None)
        return lambda q, k, v: flex_attention_forward(layer, q, k, v, mask)[0]

    def varlen() -> Attention:
        parts, kernels = Parts.of(segments.lengths, branches_1S), varlen_kernels()

        def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            packed = [tensor[0].transpose(0, 1).contiguous() for tensor in (q, k, v)]
            return VarlenAttention.apply(*packed, parts, kernels)[None]  # pyright: ignore[reportOptionalSubscript]

        return attention

    return {"sdpa": sdpa, "flex_attention": flex, "varlen_attn": varlen}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Median milliseconds of each implementation on a micro-batch of pairs and one of dialogs, forward and backward.

    `error` is the largest difference of its output and gradients to SDPA in float32, as a share of the largest value.
    An implementation that fails has `failed` instead.
    """
    from benchmarks.speed.gpu_rows import MODELS
    from benchmarks.speed.gpu_sides import device_name
    from data_schemas.reading import read_rows
    from data_schemas.rows import PreferencePair
    from engine.models.loading import load_tokenizer
    from engine.packing.shared_rows import SharedRows
    from stages import dpo

    device, sizes = torch.device(device_name()), MODELS[job["model"]]
    encode, _ = dpo.encoder(load_tokenizer(job["base"]), dpo.DPOArguments(train_data=[], mask_formatting=False))
    pairs = [encode(row)[0] for row in read_rows(Path(job["rows"]), PreferencePair)][: job["micro_batch"]]
    sequences = [pair.prompt_ids + ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    rows = {
        "pairs": SharedRows.of(sequences, [number // 2 for number in range(len(sequences))]),
        "dialogs": SharedRows.of(sequences[::2], range(len(pairs))),
    }
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    size, results = sizes["hidden_size"] // heads, []
    for kind, row in rows.items():
        row = row.to(device)
        segments = RowSegments(row.lengths_P.tolist(), row.branches_1S, row.positions_1S)
        generator = torch.Generator(device).manual_seed(1)
        shapes = [(1, count, row.ids_1S.size(1), size) for count in (heads, kv_heads, kv_heads, heads)]
        q, k, v, grad = (torch.randn(shape, device=device, generator=generator) for shape in shapes)
        inputs, grad = (q, k, v), grad.transpose(1, 2)
        made = implementations(segments, row.branches_1S)
        expected = _run(made["sdpa"](), inputs, grad, torch.float32)
        for name, prepare in made.items():
            result: dict[str, Any] = {"row": kind, "attention": name, "tokens": row.ids_1S.size(1)}
            try:
                attention = prepare()
                got = _run(attention, inputs, grad, getattr(torch, job["dtype"]))
                pairs_of = zip(got, expected, strict=True)
                result["error"] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs_of)
                result["ms"] = _milliseconds(attention, inputs, grad, getattr(torch, job["dtype"]))
            except Exception as error:  # a kernel that this device or this torch does not have
                result["failed"] = f"{type(error).__name__}: {(str(error).strip() or ' ').splitlines()[0]}"
            results.append(result)
    return {"attention": results}


def _run(
    attention: Attention, inputs: Sequence[torch.Tensor], grad: torch.Tensor, dtype: torch.dtype
) -> list[torch.Tensor]:
    """The output and the three gradients, in float32."""
    given = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    out = attention(*given)
    grads = torch.autograd.grad(out, given, grad.to(dtype))
    return [tensor.float() for tensor in (out.detach(), *grads)]


def _milliseconds(
    attention: Attention, inputs: Sequence[torch.Tensor], grad: torch.Tensor, dtype: torch.dtype
) -> float:
    given, grad, seconds = [tensor.to(dtype).requires_grad_() for tensor in inputs], grad.to(dtype), []
    for _ in range(REPEATS):
        _wait()
        started = time.perf_counter()
        torch.autograd.grad(attention(*given), given, grad)
        _wait()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:]) * 1000


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
