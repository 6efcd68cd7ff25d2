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

from engine.choosing import choose
from engine.models import ordinary_tokens
from engine.saved import TOLERANCES
from engine.shared_prompts import Live, SharedPrompts, attending

READ_TOKENS = 1024  # of prompts read in one call; fewer make small products, more wait long for their answers
READ_PROMPTS = 8
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """One answer to the prompt of this number, by these uniform numbers."""

    prompt: int
    temperature: float
    noise_N: np.ndarray


class How(TypedDict):
    """What an answer may be, and how many are written at a time."""

    max_new_tokens: int
    end_ids: set[int]
    top_p: float
    num_live: int


@dataclass
class _Prompt:
    """A prompt that was read. `unfinished` counts its answers, those that wait included."""

    number: int
    place: int
    unfinished: int
    logits_V: torch.Tensor  # after it


@dataclass
class _Row:
    """An answer that is being written."""

    answer: int
    prompt: _Prompt
    ids: list[int] = field(default_factory=list)


def write_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[Wanted],
    **how: Unpack[How],
) -> list[list[int]]:
    """The answers' tokens, end token included, in the order of `wanted`, in which a prompt's answers stand together."""
    with torch.inference_mode(), attending(model):
        return _Writing(model, prompts, wanted, how).run()


class _Writing:
    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], wanted: Sequence[Wanted], how: How
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
        self.cache = SharedPrompts(
            model,
            num_places=min(len(self.order), self.num_live + READ_PROMPTS),
            num_rows=min(len(wanted), self.num_live),
            prompt_tokens=max(map(len, prompts)),
            answer_tokens=self.max_new_tokens,
        )
        self.places: list[_Prompt | None] = []
        self.rows: list[_Row | None] = []
        self.answers: list[list[int]] = [[] for _ in wanted]
        self.num_begun = self.num_read = 0  # answers and prompts, in order

    def run(self) -> list[list[int]]:
        while True:
            self._begin_answers()
            self._close_gaps()
            rows = [row for row in self.rows if row is not None]
            if not rows:
                return self.answers
            live = [Live(row.ids[-1], row.prompt.place, len(row.ids) - 1) for row in rows]
            self._go_on(list(range(len(rows))), self.cache.step(live))

    def _begin_answers(self) -> None:
        """Waiting answers take the free rows, and their first token from what was read."""
        while True:
            free = [slot for slot, row in enumerate(self.rows) if row is None]
            free += range(len(self.rows), self.num_live)
            slots = free[: len(self.wanted) - self.num_begun]
            if not slots:
                return
            self.rows += [None] * (max(slots) + 1 - len(self.rows))
            for slot in slots:
                prompt = self._prompt_of(self.wanted[self.num_begun].prompt)
                self.rows[slot] = _Row(self.num_begun, prompt)
                self.num_begun += 1
            # Some may end with their first token, and leave their row to others.
            self._go_on(slots, torch.stack([self._row(slot).prompt.logits_V for slot in slots]))

    def _prompt_of(self, number: int) -> _Prompt:
        while True:
            found = next((one for one in self.places if one is not None and one.number == number), None)
            if found is not None:
                return found
            self._read_prompts()

    def _read_prompts(self) -> None:
        """The next ones, up to READ_PROMPTS and READ_TOKENS, into the free places."""
        chosen: list[int] = []
        for number in self.order[self.num_read : self.num_read + READ_PROMPTS]:
            if chosen and sum(len(self.prompts[one]) for one in [*chosen, number]) > READ_TOKENS:
                break
            chosen.append(number)
        free = [place for place, one in enumerate(self.places) if one is None]
        free += range(len(self.places), len(self.places) + len(chosen))
        places = free[: len(chosen)]
        self.places += [None] * (max(places) + 1 - len(self.places))
        logits_PV = self.cache.read([(place, self.prompts[one]) for place, one in zip(places, chosen, strict=True)])
        for place, number, logits_V in zip(places, chosen, logits_PV, strict=True):
            self.places[place] = _Prompt(number, place, self.num_asked[number], logits_V)
        self.num_read += len(chosen)

    def _row(self, slot: int) -> _Row:
        row = self.rows[slot]
        assert row is not None
        return row

    def _go_on(self, slots: Sequence[int], logits_BV: torch.Tensor) -> None:
        """Each of these rows takes its next token; those that are done leave, and their prompts after the last one."""
        rows = [self._row(slot) for slot in slots]
        answer_B, position_B = torch.tensor(
            [[row.answer for row in rows], [len(row.ids) for row in rows]], device=logits_BV.device
        )
        noise_B = self.noise_AN[answer_B, position_B]
        token_B = choose(logits_BV, noise_B, self.temperature_A[answer_B], top_p=self.top_p).tolist()
        for slot, row, token in zip(slots, rows, token_B, strict=True):
            row.ids.append(token)
            if token not in self.end_ids and len(row.ids) < self.max_new_tokens:
                continue
            self.answers[row.answer] = row.ids
            self.rows[slot] = None
            row.prompt.unfinished -= 1
            if not row.prompt.unfinished:
                self.places[row.prompt.place] = None

    def _close_gaps(self) -> None:
        """The last rows and prompts take the places that stay empty: a step reads from the first to the last."""
        sources, targets = _moves(self.rows)
        if sources:
            length = max(len(row.ids) for row in self.rows if row is not None)
            self.cache.move_rows(sources, targets, length)
        sources, targets = _moves(self.places)
        if sources:
            self.cache.move_places(sources, targets)
            for place, one in enumerate(self.places):
                if one is not None:
                    one.place = place


def _moves(items: list[Any]) -> tuple[list[int], list[int]]:
    """Moves the last items into the gaps, in place; from where, and to where."""
    count = sum(item is not None for item in items)
    targets = [place for place in range(count) if items[place] is None]
    sources = [place for place in range(count, len(items)) if items[place] is not None]
    for source, target in zip(sources, targets, strict=True):
        items[target] = items[source]
    del items[count:]
    return sources, targets


def goes_with_shared_prompts(model: PreTrainedModel, *, longest: int) -> bool:
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
    cache = SharedPrompts(model, num_places=2, num_rows=3, prompt_tokens=7, answer_tokens=2, longest=longest)
    found: list[torch.Tensor] = []
    wanted: list[torch.Tensor] = []
    try:
        with torch.inference_mode():
            with attending(model):
                found += cache.read(list(enumerate(prompts)))
                for length in range(2):
                    found += cache.step([Live(ids[length], place, length) for place, ids in answers])
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
