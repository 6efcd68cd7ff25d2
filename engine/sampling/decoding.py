"""Answers to a group of prompts, written together: a prompt is read once for all its answers, and who is done leaves.

At most `num_live` answers are written at a time; where one ends, the next that waits goes on in its place, reading
the next prompts where they are not read yet. What is written together hangs on the group alone, so a group done again,
or by another process, gives the same answers bit by bit.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from transformers import PreTrainedModel

from engine.models.loading import ordinary_tokens
from engine.models.precision import TOLERANCES
from engine.sampling.prompt_cache import CachedAnswer, CachedTokens, SharedPrompts, attending
from engine.sampling.token_choice import choose

READ_TOKENS = 1024  # of prompts read in one call; fewer make small products, more wait long for their answers
READ_PROMPTS = 8
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodingRequest:
    """One answer to the prompt of this number, by these uniform numbers."""

    prompt: int
    temperature: float
    noise_N: np.ndarray


class SamplingLimits(TypedDict):
    """What an answer may be, and how many are written at a time."""

    max_new_tokens: int
    end_ids: set[int]
    top_p: float
    num_live: int


@dataclass(eq=False)
class _Prompt:
    """A prompt that was read. `unfinished` counts its answers, those that wait included."""

    read: CachedTokens
    unfinished: int
    logits_V: torch.Tensor  # after it


@dataclass(eq=False)
class _Answer:
    """An answer that is being written."""

    number: int
    prompt: _Prompt
    row: CachedAnswer
    ids: list[int] = field(default_factory=list)


def write_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[DecodingRequest],
    **how: Unpack[SamplingLimits],
) -> list[list[int]]:
    """The answers' tokens, end token included, in the order of `wanted`, in which a prompt's answers stand together."""
    with torch.inference_mode(), attending(model):
        return _Batch(model, prompts, wanted, how).run()


class _Batch:
    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        wanted: Sequence[DecodingRequest],
        how: SamplingLimits,
    ) -> None:
        self.prompts, self.wanted, self.num_live = prompts, wanted, how["num_live"]
        self.max_new_tokens, self.end_ids, self.top_p = how["max_new_tokens"], how["end_ids"], how["top_p"]
        self.order = list(dict.fromkeys(one.prompt for one in wanted))  # of the prompts
        self.num_asked = dict.fromkeys(self.order, 0)
        for one in wanted:
            self.num_asked[one.prompt] += 1
        device = model.device
        self.noise_AN = torch.from_numpy(np.stack([one.noise_N for one in wanted])).to(device)
        self.temperature_A = torch.tensor([one.temperature for one in wanted], dtype=torch.float64, device=device)
        self.cache = SharedPrompts(model, longest=max(map(len, prompts)) + self.max_new_tokens)
        self.read: dict[int, _Prompt] = {}  # by number, while answers to them are unfinished
        self.live: list[_Answer] = []
        self.answers: list[list[int]] = [[] for _ in wanted]
        self.num_begun = self.num_read = 0  # answers and prompts, in order

    def run(self) -> list[list[int]]:
        while True:
            self._begin_answers()
            if not self.live:
                return self.answers
            rows, tokens = [one.row for one in self.live], [one.ids[-1] for one in self.live]
            self._go_on(self.live, self.cache.step(rows, tokens))

    def _begin_answers(self) -> None:
        """Waiting answers take the places of those that are done, and their first token from what was read."""
        # Some may end with their first token, and leave their place to others.
        while count := min(self.num_live - len(self.live), len(self.wanted) - self.num_begun):
            begun = []
            for number in range(self.num_begun, self.num_begun + count):
                prompt = self._prompt_of(self.wanted[number].prompt)
                begun.append(_Answer(number, prompt, CachedAnswer(prompt=prompt.read)))
            self.num_begun += count
            self.live += begun
            self._go_on(begun, torch.stack([one.prompt.logits_V for one in begun]))

    def _prompt_of(self, number: int) -> _Prompt:
        while number not in self.read:
            self._read_prompts()
        return self.read[number]

    def _read_prompts(self) -> None:
        """The next ones, up to READ_PROMPTS and READ_TOKENS."""
        chosen: list[int] = []
        for number in self.order[self.num_read : self.num_read + READ_PROMPTS]:
            if chosen and sum(len(self.prompts[one]) for one in [*chosen, number]) > READ_TOKENS:
                break
            chosen.append(number)
        read, logits_PV = self.cache.read([self.prompts[number] for number in chosen])
        for number, prompt, logits_V in zip(chosen, read, logits_PV, strict=True):
            self.read[number] = _Prompt(prompt, self.num_asked[number], logits_V)
        self.num_read += len(chosen)

    def _go_on(self, answers: Sequence[_Answer], logits_BV: torch.Tensor) -> None:
        """Each of these takes its next token; those that are done leave, and their prompts after the last one."""
        answer_B, position_B = torch.tensor(
            [[one.number for one in answers], [len(one.ids) for one in answers]], device=logits_BV.device
        )
        noise_B = self.noise_AN[answer_B, position_B]
        token_B = choose(logits_BV, noise_B, self.temperature_A[answer_B], top_p=self.top_p).tolist()
        for one, token in zip(answers, token_B, strict=True):
            one.ids.append(token)
            if token in self.end_ids or len(one.ids) == self.max_new_tokens:
                self._end(one)
        self.live = [one for one in self.live if not self.answers[one.number]]

    def _end(self, one: _Answer) -> None:
        self.answers[one.number] = one.ids
        self.cache.end(one.row)
        one.prompt.unfinished -= 1
        if not one.prompt.unfinished:
            self.cache.forget(one.prompt.read)
            del self.read[self.wanted[one.number].prompt]


def supports_shared_prompts(model: PreTrainedModel, *, longest: int) -> bool:
    """Whether the model says of shared prompts what it says of rows of their own: tried on short ones.

    Not where attention is another (a state, a window shorter than the `longest` row, soft caps, sinks), nor where
    positions hang on the longest row of a batch.
    """
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        return False
    if any(kind in str(getattr(config, "rope_parameters", None)) for kind in ("dynamic", "longrope")):
        return False
    some = ordinary_tokens(config, 17)
    prompts, answers = [some[:7], some[7:11]], [(0, some[11:13]), (0, some[13:15]), (1, some[15:])]
    cache = SharedPrompts(model, longest=longest)
    found: list[torch.Tensor] = []
    wanted: list[torch.Tensor] = []
    try:
        with torch.inference_mode():
            with attending(model):
                read, logits_PV = cache.read(prompts)
                rows = [CachedAnswer(prompt=read[place]) for place, _ in answers]
                found += logits_PV
                for length in range(2):
                    found += cache.step(rows, [ids[length] for _, ids in answers])
            for ids in [*prompts, *(prompts[place] + ids[:end] for end in (1, 2) for place, ids in answers)]:
                logits: Any = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits  # pyright: ignore[reportCallIssue]
                wanted.append(logits[0, -1])
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError) as error:
        log.info("shared prompts: %s", error)
        return False
    found_RV, wanted_RV = torch.stack(found[2:]).float(), torch.stack(wanted[2:]).float()
    errors_R = (found_RV - wanted_RV).abs().amax(1) / wanted_RV.abs().amax(1)
    # In half precision a real model says of one row in ten what its rounding makes it say; a fault is in all of them.
    is_half = model.dtype != torch.float32
    tolerance = TOLERANCES.get(str(model.dtype).removeprefix("torch."), TOLERANCES["bfloat16"])
    return float(errors_R.median() if is_half else errors_R.max()) <= tolerance
