"""Continuous batching: each prompt of a group is prefilled once for all its answers; finished answers free their slot.

At most `num_slots` answers are generated at a time. Where one finishes, the next waiting answer takes its slot, and the
next prompts are prefilled when an answer to them begins. What is computed together depends only on the group, so a
group that is generated again, or by another process, has the same answers bit by bit.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from engine.models.loading import ordinary_tokens
from engine.models.precision import TOLERANCES
from engine.runtime import progress
from engine.sampling.page_pool import CachedAnswer, CachedTokens
from engine.sampling.prompt_cache import PromptCache, cached_attention
from engine.sampling.token_choice import choose

# Shapes: A = answers of a group, B = answers in a batch, P = prompts, N = new tokens at most, V = vocabulary.
# Prefilled in one call: with fewer tokens the matrix products are small, with more the answers wait for long.
PREFILL_TOKENS = 1024
PREFILL_PROMPTS = 8
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodingRequest:
    """A request for one answer to the prompt of this number, sampled with these uniform numbers."""

    prompt: int
    temperature: float
    noise_N: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SamplingLimits:
    """What ends an answer, which tokens it is sampled from, and how many are generated at a time."""

    max_new_tokens: int
    end_ids: set[int]
    top_p: float
    num_slots: int


@dataclass(eq=False)
class _PrefilledPrompt:
    tokens: CachedTokens
    num_unfinished: int  # answers, those that wait included
    logits_V: torch.Tensor  # after its last token


@dataclass(eq=False)
class _LiveAnswer:
    """An answer that is being generated."""

    number: int
    prompt: _PrefilledPrompt
    tokens: CachedAnswer
    ids: list[int] = field(default_factory=list)


def generate_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    requests: Sequence[DecodingRequest],
    limits: SamplingLimits,
) -> list[list[int]]:
    """The tokens of each answer, the end token included, in the order of the requests.

    The requests for answers to one prompt must be adjacent.
    """
    with torch.inference_mode(), cached_attention(model):
        return _ContinuousBatch(model, prompts, requests, limits).run()


class _ContinuousBatch:
    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        requests: Sequence[DecodingRequest],
        limits: SamplingLimits,
    ) -> None:
        self.prompts, self.requests, self.limits = prompts, requests, limits
        self.num_requests = Counter(request.prompt for request in requests)
        self.prompt_order = list(self.num_requests)  # a Counter keeps the order in which prompts were first met
        device = model.device
        self.noise_AN = torch.from_numpy(np.stack([request.noise_N for request in requests])).to(device)
        temperatures = [request.temperature for request in requests]
        self.temperature_A = torch.tensor(temperatures, dtype=torch.float64, device=device)
        self.cache = PromptCache(model, longest=max(map(len, prompts)) + limits.max_new_tokens)
        self.prefilled: dict[int, _PrefilledPrompt] = {}  # by number, while answers to them are unfinished
        self.live: list[_LiveAnswer] = []
        self.answers: list[list[int]] = [[] for _ in requests]
        self.num_begun = self.num_prefilled = 0  # answers and prompts, in order

    def run(self) -> list[list[int]]:
        while True:
            self._fill_slots()
            if not self.live:
                return self.answers
            cached, last_tokens = [answer.tokens for answer in self.live], [answer.ids[-1] for answer in self.live]
            self._add_tokens(self.live, self.cache.step(cached, last_tokens))

    def _fill_slots(self) -> None:
        """Waiting answers take the free slots; their first token comes from the prefilled prompt."""
        # Some may end with their first token, and free their slot at once.
        while count := min(self.limits.num_slots - len(self.live), len(self.requests) - self.num_begun):
            begun = []
            for number in range(self.num_begun, self.num_begun + count):
                prompt = self._prompt_of(self.requests[number].prompt)
                begun.append(_LiveAnswer(number, prompt, CachedAnswer(prompt=prompt.tokens)))
            self.num_begun += count
            self.live += begun
            self._add_tokens(begun, torch.stack([answer.prompt.logits_V for answer in begun]))

    def _prompt_of(self, number: int) -> _PrefilledPrompt:
        while number not in self.prefilled:
            self._prefill_next()
        return self.prefilled[number]

    def _prefill_next(self) -> None:
        """Prefills the next prompts, up to PREFILL_PROMPTS and PREFILL_TOKENS, one at least."""
        chosen: list[int] = []
        for number in self.prompt_order[self.num_prefilled : self.num_prefilled + PREFILL_PROMPTS]:
            if chosen and sum(len(self.prompts[other]) for other in [*chosen, number]) > PREFILL_TOKENS:
                break
            chosen.append(number)
        cached, logits_PV = self.cache.prefill([self.prompts[number] for number in chosen])
        for number, tokens, logits_V in zip(chosen, cached, logits_PV, strict=True):
            self.prefilled[number] = _PrefilledPrompt(tokens, self.num_requests[number], logits_V)
        self.num_prefilled += len(chosen)

    def _add_tokens(self, answers: Sequence[_LiveAnswer], logits_BV: torch.Tensor) -> None:
        """Chooses the next token of each of these answers; those that end with it free their slot."""
        answer_B, position_B = torch.tensor(
            [[answer.number for answer in answers], [len(answer.ids) for answer in answers]], device=logits_BV.device
        )
        noise_B = self.noise_AN[answer_B, position_B]
        token_B = choose(logits_BV, noise_B, self.temperature_A[answer_B], top_p=self.limits.top_p).tolist()
        for answer, token in zip(answers, token_B, strict=True):
            answer.ids.append(token)
            if token in self.limits.end_ids or len(answer.ids) == self.limits.max_new_tokens:
                self._finish(answer)
        self.live = [answer for answer in self.live if not self.answers[answer.number]]

    def _finish(self, answer: _LiveAnswer) -> None:
        """Keeps the answer's tokens and frees its pages; those of its prompt too after the prompt's last answer."""
        self.answers[answer.number] = answer.ids
        self.cache.free_answer(answer.tokens)
        progress.advance()
        answer.prompt.num_unfinished -= 1
        if not answer.prompt.num_unfinished:
            self.cache.free_prompt(answer.prompt.tokens)
            del self.prefilled[self.requests[answer.number].prompt]


def supports_shared_prompts(model: PreTrainedModel, *, longest: int) -> bool:
    """Whether the model's logits with a shared prompt are those of separate rows: tried on short prompts.

    Not supported are models whose attention differs (a state, a window shorter than `longest` tokens, soft caps,
    sinks), and models whose positions depend on the longest row of a batch.
    """
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        return False
    if any(kind in str(getattr(config, "rope_parameters", None)) for kind in ("dynamic", "longrope")):
        return False
    tokens = ordinary_tokens(config, 17)
    prompts, answers = [tokens[:7], tokens[7:11]], [(0, tokens[11:13]), (0, tokens[13:15]), (1, tokens[15:])]
    cache = PromptCache(model, longest=longest)
    shared: list[torch.Tensor] = []
    separate: list[torch.Tensor] = []
    try:
        with torch.inference_mode():
            with cached_attention(model):
                cached, logits_PV = cache.prefill(prompts)
                rows = [CachedAnswer(prompt=cached[place]) for place, _ in answers]
                shared += logits_PV
                for length in range(2):
                    shared += cache.step(rows, [ids[length] for _, ids in answers])
            with computed_precision(model) as precisions:
                for ids in [*prompts, *(prompts[place] + ids[:end] for end in (1, 2) for place, ids in answers)]:
                    output = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)  # pyright: ignore[reportCallIssue]
                    separate.append(output.logits[0, -1])
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError) as error:
        log.info("the model does not support shared prompts: %s", error)
        return False
    shared_RV, separate_RV = torch.stack(shared[2:]).float(), torch.stack(separate[2:]).float()
    errors_R = (shared_RV - separate_RV).abs().amax(1) / separate_RV.abs().amax(1)
    # In half precision one row in ten of a real model is beyond the tolerance by rounding; a fault is in every row.
    precision = precisions.pop() if precisions else model.dtype
    tolerance = TOLERANCES.get(str(precision).removeprefix("torch."), TOLERANCES["bfloat16"])
    return float(errors_R.max() if precision == torch.float32 else errors_R.median()) <= tolerance


@contextlib.contextmanager
def computed_precision(model: PreTrainedModel) -> Iterator[set[torch.dtype]]:
    """The precision in which the model computes in the block: that of its weights, or that of autocast, by which a
    policy in training is wrapped."""
    found, device = set[torch.dtype](), model.device.type

    def note(*_: object) -> None:
        found.add(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype)

    hook = model.get_input_embeddings().register_forward_pre_hook(note)
    try:
        yield found
    finally:
        hook.remove()
