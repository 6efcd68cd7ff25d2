"""Attention of answers that are being written: each prompt's keys and values are kept once, for all its answers.

A prompt has one page, as wide as the longest prompt; an answer so far has as many pages of PAGE tokens as it needs. A
step is four batched products: the keys of each prompt with the queries of all its answers, the keys of each page of an
answer with its own, and both again with the values; one softmax over all scores of a row joins them. Heads that share
keys are further queries: keys are never repeated.

A product reads the first pages of a buffer, whole: of a part of each matrix, batched products of a CPU would first make
a copy, at every step. So what others leave empty is filled from the end.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

# Shapes: B = rows (answers), P = prompts, U = columns (most rows of one prompt), R = pages, S = tokens of a page,
# C = chunks (most pages of one answer), T = S of prompts, H = heads, J = heads of keys, G = H / J, D = width of a head,
# L = tokens that are read.
NAME = "shared_prompts"
PAGE = 32  # tokens; matrices of odd sizes take three times as long
UNSUPPORTED_OPTIONS = ("softcap", "s_aux", "position_bias", "head_mask")  # what attention may also be asked for


@dataclass(eq=False)
class CachedTokens:
    """Tokens whose keys and values are kept: a prompt."""

    length: int = 0
    pages: list[int] = field(default_factory=list)


@dataclass(eq=False)
class CachedAnswer(CachedTokens):
    """An answer that is being written: all of its tokens but the last."""

    prompt: CachedTokens = field(kw_only=True)


class SharedPrompts:
    """Keys and values of prompts and of answers to them, for one model."""

    def __init__(self, model: PreTrainedModel, *, longest: int) -> None:
        """`longest` row that is ever to be read: a model that looks back less far is refused."""
        self.model, self.longest = model, longest
        self.of_prompts, self.of_answers = _Pages(), _Pages()

    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[list[CachedTokens], torch.Tensor]:
        """Reads prompts, packed in one row; what was read, and the logits after each, [P, V]."""
        read = [CachedTokens() for _ in prompts]
        self.of_prompts.fit(max(map(len, prompts)))
        for kept, ids in zip(read, prompts, strict=True):
            self.of_prompts.add(kept, len(ids))
        positions = [position for ids in prompts for position in range(len(ids))]
        ids = list(itertools.chain.from_iterable(prompts))
        last_P = torch.tensor([kept.length for kept in read], device=self.model.device).cumsum(0) - 1
        return read, self._call([ids], [positions], _Reading.of(self, read), logits_to_keep=last_P)[0]

    def step(self, rows: Sequence[CachedAnswer], tokens: Sequence[int]) -> torch.Tensor:
        """One token more of each row, which are all that have not ended; logits after it, [B, V]."""
        positions = [[row.prompt.length + row.length] for row in rows]
        for row in rows:
            self.of_answers.add(row, 1)
        self.of_answers.close_gaps()
        self.of_prompts.close_gaps()
        self.of_prompts.fit()
        return self._call([[token] for token in tokens], positions, _Step.of(self, rows), logits_to_keep=1)[:, -1]

    def end(self, row: CachedAnswer) -> None:
        """Its pages are free for others."""
        self.of_answers.remove(row)

    def forget(self, prompt: CachedTokens) -> None:
        """Its pages are free for others."""
        self.of_prompts.remove(prompt)

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


class _Pages:
    """Pages, and whose they are: prompts' or answers'."""

    def __init__(self) -> None:
        self.size = PAGE  # tokens
        self.owners: list[CachedTokens | None] = []
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # keys and values, with room for more pages

    def fit(self, tokens: int = 0) -> None:
        """Pages that hold so many tokens, and the longest owner: each has one."""
        longest = max([tokens, *(owner.length for owner in self.owners if owner)])
        self.size = -(-longest // PAGE) * PAGE

    def add(self, owner: CachedTokens, count: int) -> None:
        """Takes pages for so many tokens more."""
        owner.length += count
        while len(owner.pages) * self.size < owner.length:
            page = next((page for page, other in enumerate(self.owners) if other is None), len(self.owners))
            self.owners[page : page + 1] = [owner]
            owner.pages.append(page)

    def remove(self, owner: CachedTokens) -> None:
        for page in owner.pages:
            self.owners[page] = None

    def close_gaps(self) -> None:
        """The last pages go where others were."""
        count = sum(owner is not None for owner in self.owners)
        targets = [page for page in range(count) if self.owners[page] is None]
        sources = [page for page in range(count, len(self.owners)) if self.owners[page] is not None]
        for source, target in zip(sources, targets, strict=True):
            owner = self.owners[target] = self.owners[source]
            assert owner is not None
            owner.pages[owner.pages.index(source)] = target
        del self.owners[count:]
        for tensor in itertools.chain.from_iterable(self.layers.values()) if sources else ():
            tensor[targets] = tensor[sources]

    def keep(
        self, layer: int, key_LJD: torch.Tensor, value_LJD: torch.Tensor, place_2L: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes tokens to their (page, slot) in a layer; keys and values of all pages there, [R, J, S, D]."""
        if layer not in self.layers:
            self.layers[layer] = (key_LJD[:0, :, None], value_LJD[:0, :, None])
        keys, values = self.kept(layer)
        page_L, slot_L = place_2L
        keys[page_L, :, slot_L] = key_LJD
        values[page_L, :, slot_L] = value_LJD
        return keys, values

    def kept(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all pages, [R, J, S, D]."""
        keys, values = self.layers[layer]
        count = len(self.owners)
        if len(keys) < count or keys.size(2) != self.size:
            room = len(keys) if len(keys) >= count else count * 3 // 2
            # In memory the keys of a head lie by width: products read them twice as fast.
            keys = _resized(keys.mT, room, keys.size(-1), self.size).mT
            values = _resized(values, room, self.size, values.size(-1))
            self.layers[layer] = (keys, values)
        return keys[:count], values[:count]


@dataclass(frozen=True)
class _Reading:
    """Prompts are read: each attends to itself, and its keys and values are kept."""

    cache: SharedPrompts
    lengths: list[int]
    place_2L: torch.Tensor

    @classmethod
    def of(cls, cache: SharedPrompts, read: Sequence[CachedTokens]) -> "_Reading":
        places = [(kept.pages[0], token) for kept in read for token in range(kept.length)]
        return cls(cache, [kept.length for kept in read], torch.tensor(places, device=cache.model.device).T)

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Any:
        self.cache.of_prompts.keep(layer, key[0].transpose(0, 1), value[0].transpose(0, 1), self.place_2L)
        repeats = query.size(1) // key.size(1)
        pieces = zip(*(tensor.split(self.lengths, dim=2) for tensor in (query, key, value)), strict=True)
        found = [
            torch.nn.functional.scaled_dot_product_attention(
                own_query,
                own_key.repeat_interleave(repeats, dim=1),
                own_value.repeat_interleave(repeats, dim=1),
                is_causal=True,
                scale=scale,
            )
            for own_query, own_key, own_value in pieces
        ]
        return torch.cat(found, dim=2).transpose(1, 2)


@dataclass(frozen=True)
class _Step:
    """Each row has one token more. A row is in a cell of its prompt, a column; where there is none, what is written is
    row 0 or page 0, and hidden or never read."""

    cache: SharedPrompts
    num_columns: int
    prompt_B: torch.Tensor
    column_B: torch.Tensor
    row_PU: torch.Tensor
    place_2B: torch.Tensor  # (page, slot) of the tokens
    page_BC: torch.Tensor
    row_R: torch.Tensor
    chunk_R: torch.Tensor
    pages: torch.Tensor  # of the first row, of the second, …
    starts_B: torch.Tensor  # where those of each begin
    mask: torch.Tensor  # [B, 1, 1, T + C x S], to be added to the scores

    @classmethod
    def of(cls, cache: SharedPrompts, rows: Sequence[CachedAnswer]) -> "_Step":
        cells: list[list[int]] = [[] for _ in cache.of_prompts.owners]
        columns, owners = [], [(0, 0)] * len(cache.of_answers.owners)
        for number, row in enumerate(rows):
            cell = cells[row.prompt.pages[0]]
            columns.append(len(cell))
            cell.append(number)
            for chunk, page in enumerate(row.pages):
                owners[page] = (number, chunk)
        num_columns, num_chunks = max(map(len, cells)), max(len(row.pages) for row in rows)
        row_R, chunk_R = zip(*owners, strict=True)
        numbers = {
            "prompt_B": [row.prompt.pages[0] for row in rows],
            "column_B": columns,
            "row_PU": [cell + [0] * (num_columns - len(cell)) for cell in cells],
            "place_2B": [[row.pages[-1] for row in rows], [(row.length - 1) % PAGE for row in rows]],
            "page_BC": [row.pages + [0] * (num_chunks - len(row.pages)) for row in rows],
            "row_R": row_R,
            "chunk_R": chunk_R,
            "pages": [page for row in rows for page in row.pages],
            "starts_B": list(itertools.accumulate((len(row.pages) for row in rows), initial=0))[:-1],
        }
        device, dtype = cache.model.device, cache.model.dtype
        mask = torch.cat(
            [
                _hidden([row.prompt.length for row in rows], cache.of_prompts.size),
                _hidden([row.length for row in rows], num_chunks * PAGE),
            ],
            dim=-1,
        )
        tensors = {name: torch.tensor(some, device=device) for name, some in numbers.items()}
        return cls(cache=cache, num_columns=num_columns, mask=mask.to(device, dtype), **tensors)

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Any:
        num_rows, heads, _, width = query.shape
        keys, values = self.cache.of_answers.keep(layer, key[:, :, 0], value[:, :, 0], self.place_2B)
        prompt_keys, prompt_values = self.cache.of_prompts.kept(layer)
        query = query.reshape(num_rows, key.size(1), -1, width) * scale
        of_prompt = self._of_rows(self._of_prompts(query) @ prompt_keys.mT)
        of_chunks = (query.index_select(0, self.row_R) @ keys.mT)[self.page_BC]
        of_answer = of_chunks.permute(0, 2, 3, 1, 4).flatten(3)
        # The softmax sums in float32, whatever the precision of the scores.
        weights = torch.softmax(torch.cat([of_prompt, of_answer], dim=-1).add_(self.mask), dim=-1)
        to_prompt, to_answer = weights.split([of_prompt.size(-1), of_answer.size(-1)], dim=-1)
        to_pages = to_answer.unflatten(-1, (-1, PAGE)).permute(0, 3, 1, 2, 4)[self.row_R, self.chunk_R]
        # A bag is what belongs to one row.
        of_pages = (to_pages @ values).flatten(1)
        found = torch.nn.functional.embedding_bag(self.pages, of_pages, self.starts_B, mode="sum")
        found += self._of_rows(self._of_prompts(to_prompt) @ prompt_values).flatten(1)
        return found.reshape(num_rows, 1, heads, -1)

    def _of_prompts(self, of_rows: torch.Tensor) -> torch.Tensor:
        """[B, J, G, D] as [P, J, U x G, D]."""
        return of_rows[self.row_PU].transpose(1, 2).flatten(2, 3)

    def _of_rows(self, of_prompts: torch.Tensor) -> torch.Tensor:
        """[P, J, U x G, D] as [B, J, G, D]."""
        return of_prompts.unflatten(2, (self.num_columns, -1))[self.prompt_B, :, self.column_B]


def _hidden(lengths: Sequence[int], width: int) -> torch.Tensor:
    """[rows, 1, 1, width]: 0 below each length, minus infinity from there on."""
    beyond = torch.arange(width) >= torch.tensor(lengths)[:, None]
    return torch.zeros(beyond.shape).masked_fill_(beyond, -torch.inf)[:, None, None]


def _resized(old: torch.Tensor, count: int, rows: int, columns: int) -> torch.Tensor:
    """A copy of [·, J, ·, ·], cut or with zeros behind: what is hidden is multiplied all the same."""
    new = old.new_zeros(count, old.size(1), rows, columns)
    kept = tuple(slice(min(both)) for both in zip(old.shape, new.shape, strict=True))
    new[kept] = old[kept]
    return new


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
    unknown = [name for name in UNSUPPORTED_OPTIONS if options.get(name) is not None]
    window = options.get("sliding_window")
    if shared_prompts is None or unknown or attention_mask is not None:
        raise NotImplementedError(f"attention with {', '.join(unknown) or 'a mask'}")
    if window is not None and shared_prompts.cache.longest > window:
        raise NotImplementedError(f"a window of {window} tokens, shorter than the rows")
    scale = query.size(-1) ** -0.5 if scaling is None else scaling
    return shared_prompts.attend(module.layer_idx, query, key, value, scale), None


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
