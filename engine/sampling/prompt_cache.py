"""The keys and values of prompts and answers, and attention over them: each prompt's are kept once for all its answers.

A decoding step is four batched products: the queries of all answers to a prompt with the prompt's keys, the queries of
each answer with the keys of each of its pages, and both again with the values; one softmax over all scores of an answer
joins them. With grouped-query attention the query heads that share keys are further queries: keys are never repeated.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import AttentionInterface, PreTrainedModel

from engine.sampling import page_pool
from engine.sampling.page_pool import CachedAnswer, CachedTokens, PagePool

# Shapes: B = rows (answers), P = prompts, U = columns (the most answers to one prompt), R = pages of answers,
# S = tokens of such a page, C = chunks (the most pages of one answer), T = tokens of a prompt's page, H = heads of
# queries, J = heads of keys, G = H / J, D = width of a head, L = prefilled tokens, V = vocabulary.
NAME = "shared_prompts"  # of this attention, in a model's config
UNSUPPORTED_OPTIONS = ("softcap", "s_aux", "position_bias", "head_mask")  # with which a model may call its attention


class PromptCache:
    """Keys and values of prompts and of answers to them, for one model."""

    def __init__(self, model: PreTrainedModel, *, longest: int) -> None:
        """`longest`: tokens of the longest prompt with its answer. A model whose window is shorter is refused."""
        self.model, self.longest = model, longest
        self.prompt_pages, self.answer_pages = PagePool(), PagePool()

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[list[CachedTokens], torch.Tensor]:
        """Prefills prompts, packed into one row: their tokens in the cache, and the logits after each, [P, V]."""
        cached = [CachedTokens() for _ in prompts]
        self.prompt_pages.fit(max(map(len, prompts)))
        for tokens, ids in zip(cached, prompts, strict=True):
            self.prompt_pages.add(tokens, len(ids))
        positions = [position for ids in prompts for position in range(len(ids))]
        ids = list(itertools.chain.from_iterable(prompts))
        last_P = torch.tensor([tokens.length for tokens in cached], device=self.model.device).cumsum(0) - 1
        return cached, self._forward([ids], [positions], Prefill.of(self, cached), logits_to_keep=last_P)[0]

    def step(self, answers: Sequence[CachedAnswer], tokens: Sequence[int]) -> torch.Tensor:
        """Adds one token to each of the answers, which must be all unfinished ones; the logits after it, [B, V]."""
        positions = [[answer.prompt.length + answer.length] for answer in answers]
        for answer in answers:
            self.answer_pages.add(answer, 1)
        self.answer_pages.close_gaps()
        self.prompt_pages.close_gaps()
        self.prompt_pages.fit()
        step = DecodingStep.of(self, answers)
        return self._forward([[token] for token in tokens], positions, step, logits_to_keep=1)[:, -1]

    def free_answer(self, answer: CachedAnswer) -> None:
        self.answer_pages.remove(answer)

    def free_prompt(self, prompt: CachedTokens) -> None:
        self.prompt_pages.remove(prompt)

    def _forward(
        self,
        ids: list[list[int]],
        positions: list[list[int]],
        attention: "CachedAttention",
        *,
        logits_to_keep: int | torch.Tensor,
    ) -> torch.Tensor:
        device = self.model.device
        output = self.model(  # pyright: ignore[reportCallIssue]
            input_ids=torch.tensor(ids, device=device),
            position_ids=torch.tensor(positions, device=device),
            use_cache=False,
            shared_prompts=attention,
            logits_to_keep=logits_to_keep,
        )
        return output.logits


class CachedAttention(Protocol):
    """The attention of one forward pass, which writes its tokens into the cache."""

    @property
    def cache(self) -> PromptCache: ...

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Query [rows, H, tokens, D], key and value [rows, J, tokens, D] -> output [rows, tokens, H, D]. `scale`
        multiplies the scores. `layer` is the layer's number."""
        ...


@dataclass(frozen=True)
class Prefill:
    """Prompts in one packed row: each attends to itself, causally, and its keys and values are kept."""

    cache: PromptCache
    lengths: list[int]  # of the prompts
    place_2L: torch.Tensor  # (page, slot) of each token

    @classmethod
    def of(cls, cache: PromptCache, prompts: Sequence[CachedTokens]) -> "Prefill":
        places = [(prompt.pages[0], slot) for prompt in prompts for slot in range(prompt.length)]
        return cls(cache, [prompt.length for prompt in prompts], torch.tensor(places, device=cache.model.device).T)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Query [1, H, L, D], key and value [1, J, L, D] -> output [1, L, H, D]."""
        self.cache.prompt_pages.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1), self.place_2L)
        group = query.size(1) // key.size(1)
        prompts = zip(*(tensor.split(self.lengths, dim=2) for tensor in (query, key, value)), strict=True)
        outputs = [
            torch.nn.functional.scaled_dot_product_attention(
                prompt_query,
                prompt_key.repeat_interleave(group, dim=1),
                prompt_value.repeat_interleave(group, dim=1),
                is_causal=True,
                scale=scale,
            )
            for prompt_query, prompt_key, prompt_value in prompts
        ]
        return torch.cat(outputs, dim=2).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class DecodingStep:
    """One more token of each answer. An answer is in a cell (prompt, column). Empty cells and chunks point to row 0 or
    page 0; what is computed there is masked, or never read."""

    cache: PromptCache
    num_columns: int
    prompt_B: torch.Tensor  # page of each answer's prompt
    column_B: torch.Tensor
    row_PU: torch.Tensor  # the answer in each cell
    place_2B: torch.Tensor  # (page, slot) of the tokens
    page_BC: torch.Tensor
    row_R: torch.Tensor  # the answer that owns a page
    chunk_R: torch.Tensor  # which of the answer's pages it is
    page_R: torch.Tensor  # the pages of the first answer, then those of the second, and so on
    start_B: torch.Tensor  # index in `page_R` of each answer's first page
    mask: torch.Tensor  # [B, 1, 1, T + C x S], added to the scores

    @classmethod
    def of(cls, cache: PromptCache, answers: Sequence[CachedAnswer]) -> "DecodingStep":
        cells: list[list[int]] = [[] for _ in cache.prompt_pages.owners]
        columns: list[int] = []
        owners = [(0, 0)] * len(cache.answer_pages.owners)  # (answer, chunk) of each page
        for number, answer in enumerate(answers):
            cell = cells[answer.prompt.pages[0]]
            columns.append(len(cell))
            cell.append(number)
            for chunk, page in enumerate(answer.pages):
                owners[page] = (number, chunk)
        num_columns, num_chunks = max(map(len, cells)), max(len(answer.pages) for answer in answers)
        num_pages = [len(answer.pages) for answer in answers]
        prompt_mask = _mask([answer.prompt.length for answer in answers], cache.prompt_pages.size)
        answer_mask = _mask([answer.length for answer in answers], num_chunks * page_pool.PAGE)
        device = cache.model.device

        def tensor(numbers: list[int] | list[list[int]]) -> torch.Tensor:
            return torch.tensor(numbers, device=device)

        return cls(
            cache=cache,
            num_columns=num_columns,
            prompt_B=tensor([answer.prompt.pages[0] for answer in answers]),
            column_B=tensor(columns),
            row_PU=tensor([cell + [0] * (num_columns - len(cell)) for cell in cells]),
            place_2B=tensor(
                [[answer.pages[-1] for answer in answers], [(one.length - 1) % page_pool.PAGE for one in answers]]
            ),
            page_BC=tensor([answer.pages + [0] * (num_chunks - len(answer.pages)) for answer in answers]),
            row_R=tensor([number for number, _ in owners]),
            chunk_R=tensor([chunk for _, chunk in owners]),
            page_R=tensor([page for answer in answers for page in answer.pages]),
            start_B=tensor(list(itertools.accumulate(num_pages, initial=0))[:-1]),
            mask=torch.cat([prompt_mask, answer_mask], dim=-1).to(device, cache.model.dtype),
        )

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Query [B, H, 1, D], key and value [B, J, 1, D] -> output [B, 1, H, D]."""
        num_rows, heads, _, width = query.shape
        key_RJSD, value_RJSD = self.cache.answer_pages.write(layer, key[:, :, 0], value[:, :, 0], self.place_2B)
        key_PJTD, value_PJTD = self.cache.prompt_pages.read(layer)
        query_BJGD = query.reshape(num_rows, key.size(1), -1, width) * scale
        to_prompt_BJGT = self._by_row(self._by_prompt(query_BJGD) @ key_PJTD.mT)
        to_chunks_BCJGS = (query_BJGD.index_select(0, self.row_R) @ key_RJSD.mT)[self.page_BC]
        to_answer = to_chunks_BCJGS.permute(0, 2, 3, 1, 4).flatten(3)  # [B, J, G, C x S]
        # The softmax sums in float32, whatever the precision of the scores.
        weights = torch.softmax(torch.cat([to_prompt_BJGT, to_answer], dim=-1).add_(self.mask), dim=-1)
        prompt_BJGT, answer = weights.split([to_prompt_BJGT.size(-1), to_answer.size(-1)], dim=-1)
        weights_RJGS = answer.unflatten(-1, (-1, page_pool.PAGE)).permute(0, 3, 1, 2, 4)[self.row_R, self.chunk_R]
        # The outputs of an answer's pages are summed: they are the bag of that answer.
        from_pages = (weights_RJGS @ value_RJSD).flatten(1)  # [R, J x G x D]
        output = torch.nn.functional.embedding_bag(self.page_R, from_pages, self.start_B, mode="sum")
        output += self._by_row(self._by_prompt(prompt_BJGT) @ value_PJTD).flatten(1)
        return output.reshape(num_rows, 1, heads, -1)

    def _by_prompt(self, rows: torch.Tensor) -> torch.Tensor:
        """[B, J, G, D] -> [P, J, U x G, D]."""
        return rows[self.row_PU].transpose(1, 2).flatten(2, 3)

    def _by_row(self, prompts: torch.Tensor) -> torch.Tensor:
        """[P, J, U x G, D] -> [B, J, G, D]."""
        return prompts.unflatten(2, (self.num_columns, -1))[self.prompt_B, :, self.column_B]


def _mask(lengths: Sequence[int], width: int) -> torch.Tensor:
    """[rows, 1, 1, width]: 0 below each length, minus infinity from there on."""
    is_beyond = torch.arange(width) >= torch.tensor(lengths)[:, None]
    return torch.zeros(is_beyond.shape).masked_fill_(is_beyond, -torch.inf)[:, None, None]


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    shared_prompts: CachedAttention | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """The function that a model's layers call. Raises NotImplementedError for options that it does not support."""
    unknown = [name for name in UNSUPPORTED_OPTIONS if options.get(name) is not None]
    window = options.get("sliding_window")
    if shared_prompts is None or unknown or attention_mask is not None:
        raise NotImplementedError(f"attention with {', '.join(unknown) or 'a mask'}")
    if isinstance(window, int) and shared_prompts.cache.longest > window:
        raise NotImplementedError(f"a window of {window} tokens, shorter than the rows")
    scale = query.size(-1) ** -0.5 if scaling is None else scaling
    return shared_prompts.attend(int(module.layer_idx), query, key, value, scale), None  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def cached_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's layers attend through the cache; it must be called by a PromptCache there."""
    AttentionInterface.register(NAME, _attention)
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
