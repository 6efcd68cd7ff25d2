"""Attention of answers that are being written: each prompt's keys and values are kept once, for all its answers.

A prompt has a place, a live answer has a row. One step reads the prompts' part as one product of all queries of a
prompt with its keys, and each row's own part by itself; the two are joined exactly, by one softmax over the scores of
both or by their log-sum-exps. Heads that share keys are further queries: keys are never repeated, and never copied to
grow.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

# Shapes: B = rows, P = places, C = columns (most rows of one place), H = heads, J = heads of keys, G = H / J,
# D = width of a head, T = prompt tokens, N = own tokens, L = tokens of all prompts that are read in one call.
NAME = "shared_prompts"
_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # with the log-sum-exps of the scores
UNKNOWN = ("softcap", "s_aux", "position_bias", "head_mask")  # what attention may also be asked for


@dataclass(frozen=True)
class Live:
    """One row of a step: its last token is read."""

    token: int
    place: int
    length: int  # own tokens before this one


@dataclass
class _Layer:
    """Keys and values, [P, J, T, D] of prompts and [B, J, N, D] of answers."""

    prompt_keys: torch.Tensor
    prompt_values: torch.Tensor
    own_keys: torch.Tensor
    own_values: torch.Tensor


class SharedPrompts:
    """Keys and values of `num_places` prompts and `num_rows` answers to them, for one model."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        num_places: int,
        num_rows: int,
        prompt_tokens: int,
        answer_tokens: int,
        longest: int | None = None,
    ) -> None:
        """`longest` row that is ever to be read: a model that looks back less far is refused."""
        self.model = model
        self.num_places, self.num_rows = num_places, num_rows
        self.prompt_tokens, self.answer_tokens = prompt_tokens, answer_tokens
        self.longest = longest or prompt_tokens + answer_tokens
        self.lengths = [0] * num_places  # of the prompts
        self.layers: dict[int, _Layer] = {}

    def read(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> torch.Tensor:
        """Reads (place, tokens) of prompts, packed in one row; logits after each, [P, V]."""
        ids = [token for _, tokens in prompts for token in tokens]
        positions = [position for _, tokens in prompts for position in range(len(tokens))]
        pieces, end = [], 0
        for place, tokens in prompts:
            self.lengths[place] = len(tokens)
            pieces.append((place, end, end + len(tokens)))
            end += len(tokens)
        last_P = torch.tensor([end - 1 for _, _, end in pieces], device=self.model.device)
        return self._call([ids], [positions], _Reading(self, pieces), logits_to_keep=last_P)[0]

    def step(self, rows: Sequence[Live]) -> torch.Tensor:
        """One token more of each row, which are rows 0, 1, …; logits after it, [B, V]."""
        positions = [[self.lengths[row.place] + row.length] for row in rows]
        step = _Step.of(self, rows)
        return self._call([[row.token] for row in rows], positions, step, logits_to_keep=1)[:, -1]

    def _call(self, ids: list[list[int]], positions: list[list[int]], work: Any, **options: Any) -> torch.Tensor:
        device = self.model.device
        output: Any = self.model(
            input_ids=torch.tensor(ids, device=device),
            position_ids=torch.tensor(positions, device=device),
            use_cache=False,
            shared_prompts=work,
            **options,
        )
        return output.logits

    def move_rows(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Puts rows of at most so many tokens where others were."""
        for layer in self.layers.values():
            for tensor in (layer.own_keys, layer.own_values):
                tensor[targets, :, :length] = tensor[sources, :, :length]

    def move_places(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Puts prompts where others were."""
        length = max((self.lengths[source] for source in sources), default=0)
        for source, target in zip(sources, targets, strict=True):
            self.lengths[target] = self.lengths[source]
        for layer in self.layers.values():
            for tensor in (layer.prompt_keys, layer.prompt_values):
                tensor[targets, :, :length] = tensor[sources, :, :length]

    def layer(self, number: int, key: torch.Tensor, value: torch.Tensor) -> _Layer:
        """The buffers of a layer, made at its first call. Zeros: what is masked is multiplied all the same."""
        if number not in self.layers:
            prompts, own = (self.num_places, self.prompt_tokens), (self.num_rows, self.answer_tokens)
            self.layers[number] = _Layer(_keys(key, *prompts), _values(value, *prompts), _keys(key, *own),
                                         _values(value, *own))  # fmt: skip
        return self.layers[number]


@dataclass(frozen=True)
class _Reading:
    """Prompts are read: each attends to itself, and its keys and values are kept."""

    cache: SharedPrompts
    pieces: list[tuple[int, int, int]]  # place, first and last + 1 of its tokens

    def attend(self, layer: _Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Any:
        repeats = query.size(1) // key.size(1)
        found = []
        for place, start, end in self.pieces:
            own_key, own_value = key[:, :, start:end], value[:, :, start:end]
            layer.prompt_keys[place, :, : end - start] = own_key[0]
            layer.prompt_values[place, :, : end - start] = own_value[0]
            found.append(
                torch.nn.functional.scaled_dot_product_attention(
                    query[:, :, start:end],
                    own_key.repeat_interleave(repeats, dim=1),
                    own_value.repeat_interleave(repeats, dim=1),
                    is_causal=True,
                    scale=scale,
                )
            )
        return torch.cat(found, dim=2).transpose(1, 2)


@dataclass(frozen=True)
class _Step:
    """Each row has one token more. A query's cell is that of its row's column at its place."""

    cache: SharedPrompts
    num_places: int
    num_columns: int
    cell_B: torch.Tensor
    row_B: torch.Tensor
    length_B: torch.Tensor
    own_mask: torch.Tensor  # [B, 1, 1, N], to be added
    prompt_mask: torch.Tensor  # [P, 1, 1, T]
    row_mask: torch.Tensor  # [B, 1, 1, T + N]: both of a row
    targets: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # by heads of keys

    @classmethod
    def of(cls, cache: SharedPrompts, rows: Sequence[Live]) -> "_Step":
        num_places = max(row.place for row in rows) + 1
        taken = [0] * num_places
        columns = []
        for row in rows:
            columns.append(taken[row.place])
            taken[row.place] += 1
        num_columns = max(taken)
        cells = [row.place * num_columns + column for row, column in zip(rows, columns, strict=True)]
        numbers = torch.tensor([cells, [row.length for row in rows], range(len(rows))], device=cache.model.device)
        lengths_P = torch.tensor(cache.lengths[:num_places], device=numbers.device)
        own_mask = _hidden(numbers[1] + 1, max(row.length for row in rows) + 1)
        prompt_mask = _hidden(lengths_P, max(cache.lengths[:num_places]))
        places = torch.tensor([row.place for row in rows], device=numbers.device)
        return cls(
            cache,
            num_places,
            num_columns,
            numbers[0],
            numbers[2],
            numbers[1],
            own_mask,
            prompt_mask,
            torch.cat([prompt_mask[places], own_mask], dim=-1),
        )

    def attend(self, layer: _Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Any:
        num_rows, heads, _, width = query.shape
        shared_heads = key.size(1)
        self._keep(layer.own_keys, key)
        self._keep(layer.own_values, value)
        own_tokens, prompt_tokens = self.own_mask.size(-1), self.prompt_mask.size(-1)
        query_BJGD = query.reshape(num_rows, shared_heads, heads // shared_heads, width)
        attend = self._by_fused if _is_fused(query) else self._by_products
        found = attend(
            query_BJGD,
            layer.own_keys[:num_rows, :, :own_tokens],
            layer.own_values[:num_rows, :, :own_tokens],
            layer.prompt_keys[: self.num_places, :, :prompt_tokens],
            layer.prompt_values[: self.num_places, :, :prompt_tokens],
            scale,
        )
        return found.reshape(num_rows, 1, heads, found.size(-1))

    def _by_fused(
        self, query: torch.Tensor, own_key: torch.Tensor, own_value: torch.Tensor, prompt_key: torch.Tensor,
        prompt_value: torch.Tensor, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """[B, J, G, D]; the two parts are joined by the log-sum-exps of their scores."""
        own, own_lse = _fused(query, own_key, own_value, attn_mask=self.own_mask, scale=scale)
        prompt, prompt_lse = _fused(
            self._in_cells(query), prompt_key, prompt_value, attn_mask=self.prompt_mask, scale=scale
        )
        share = torch.sigmoid(self._in_rows(prompt_lse[..., None]) - own_lse[..., None])
        return torch.lerp(own, self._in_rows(prompt), share)

    def _by_products(
        self, query: torch.Tensor, own_key: torch.Tensor, own_value: torch.Tensor, prompt_key: torch.Tensor,
        prompt_value: torch.Tensor, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """[B, J, G, D]; one softmax, in float32, over the scores of both parts. It takes half as many small steps."""
        query = query * scale
        prompt = self._in_rows(self._in_cells(query) @ prompt_key.transpose(-1, -2))
        scores = torch.cat([prompt, query @ own_key.transpose(-1, -2)], dim=-1) + self.row_mask
        weights = torch.softmax(scores, dim=-1).to(query.dtype)
        of_prompt, of_own = weights.split([prompt.size(-1), own_key.size(2)], dim=-1)
        return self._in_rows(self._in_cells(of_prompt) @ prompt_value) + of_own @ own_value

    def _keep(self, buffer: torch.Tensor, new: torch.Tensor) -> None:
        """Writes each row's new token behind its others."""
        heads = buffer.size(1)
        if heads not in self.targets:
            of_heads = self.row_B[:, None] * heads + torch.arange(heads, device=self.row_B.device)
            self.targets[heads] = (of_heads.flatten(), self.length_B.repeat_interleave(heads))
        buffer.flatten(0, 1).index_put_(self.targets[heads], new.reshape(-1, new.size(-1)))

    def _in_cells(self, query_BJGD: torch.Tensor) -> torch.Tensor:
        """[P, J, C x G, D]; cells of no row hold zeros."""
        _, shared_heads, group, width = query_BJGD.shape
        cells = query_BJGD.new_zeros(self.num_places * self.num_columns, shared_heads, group, width)
        cells.index_copy_(0, self.cell_B, query_BJGD)
        cells = cells.unflatten(0, (self.num_places, self.num_columns)).transpose(1, 2)
        return cells.reshape(self.num_places, shared_heads, self.num_columns * group, width)

    def _in_rows(self, found: torch.Tensor) -> torch.Tensor:
        """[P, J, C x G, D] as [B, J, G, D]."""
        found = found.unflatten(2, (self.num_columns, -1)).transpose(1, 2).flatten(0, 1)
        return found.index_select(0, self.cell_B)


def _is_fused(like: torch.Tensor) -> bool:
    """Whether attention is the CPU's fused kernel: in half precision two plain products are faster, by half."""
    return like.device.type == "cpu" and like.dtype == torch.float32


def _keys(like: torch.Tensor, count: int, tokens: int) -> torch.Tensor:
    """[count, J, tokens, D]. For plain products a head's tokens stand side by side, which doubles their speed."""
    if _is_fused(like):
        return _values(like, count, tokens)
    return like.new_zeros(count, like.size(1), like.size(-1), tokens).transpose(2, 3)


def _values(like: torch.Tensor, count: int, tokens: int) -> torch.Tensor:
    return like.new_zeros(count, like.size(1), tokens, like.size(-1))


def _hidden(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """[rows, 1, 1, width]: 0 below each length, minus infinity from there on."""
    beyond = torch.arange(width, device=lengths.device) >= lengths[:, None]
    return torch.zeros(beyond.shape, device=lengths.device).masked_fill_(beyond, -torch.inf)[:, None, None]


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    shared_prompts: Any = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What a model's layers call. Raises NotImplementedError for an attention that is more than this."""
    unknown = [name for name in UNKNOWN if options.get(name) is not None]
    window = options.get("sliding_window")
    if shared_prompts is None or unknown or attention_mask is not None:
        raise NotImplementedError(f"attention with {', '.join(unknown) or 'a mask'}")
    if window is not None and shared_prompts.cache.longest > window:
        raise NotImplementedError(f"a window of {window} tokens, shorter than the rows")
    layer = shared_prompts.cache.layer(module.layer_idx, key, value)
    scale = query.size(-1) ** -0.5 if scaling is None else scaling
    return shared_prompts.attend(layer, query, key, value, scale), None


AttentionInterface.register(NAME, _attention)


@contextlib.contextmanager
def attending(model: PreTrainedModel) -> Iterator[None]:
    """The model's attention is this file's inside."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
