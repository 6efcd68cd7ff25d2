"""The rows that stages exchange. Field names are TRL's column names, so a row is a training example as it stands.

A row carries `group_id`, the hash of its source dialog's first user message: a run is split into training,
validation and evaluation by group, so no dialog is ever on two sides, in any round, in any turn.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_schemas.text import normalise

Role = Literal["system", "user", "assistant", "tool"]
Strength = Literal["significantly_better", "better", "slightly_better", "marginally_better"]
STRENGTHS: tuple[Strength, ...] = ("significantly_better", "better", "slightly_better", "marginally_better")


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_json(self) -> str:
        """One line of JSON with exactly the fields that were given: what is stored renders as what was read."""
        return json.dumps(self.model_dump(exclude_unset=True), ensure_ascii=False)

    def _fill(self, **derived: str) -> None:
        """Sets derived fields that the row came without; only while it is being made."""
        for name, value in derived.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)  # the row is frozen for everybody else
                self.__pydantic_fields_set__.add(name)


class Message(Row):
    """One turn. Keys that only some templates know (`name`, `reasoning_content`, …) are kept as they came."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Role
    content: str = ""
    tool_calls: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.content.strip() and not self.tool_calls and self.role in ("user", "assistant"):
            raise ValueError(f"the {self.role} message is empty")
        return self


def for_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as plain dictionaries, the form chat templates take."""
    return [message.model_dump(exclude_unset=True) for message in messages]


def group_of(messages: Sequence[Message]) -> str:
    """16 hex digits of the SHA-256 of the normalised first user message; the system prompt does not count."""
    first = next((message.content for message in messages if message.role == "user"), None)
    if first is None:
        raise ValueError("the dialog has no user message")
    return hashlib.sha256(normalise(first).encode()).hexdigest()[:16]


def _check_order(messages: Sequence[Message], *, ends_with: tuple[Role, ...]) -> None:
    if not messages:
        raise ValueError("no messages")
    if any(message.role == "system" for message in messages[1:]):
        raise ValueError("a system message can only come first")
    if messages[-1].role not in ends_with:
        raise ValueError(
            f"the last message is from {messages[-1].role!r}, expected {' or '.join(map(repr, ends_with))}"
        )


class Document(Row):
    """One text to pretrain on."""

    text: str

    @model_validator(mode="after")
    def _has_text(self) -> Self:
        if not self.text.strip():
            raise ValueError("the text is empty")
        return self


class Conversation(Row):
    """One dialog to learn from: every assistant turn is trained."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    group_id: str = ""
    source: str = ""  # the step or file it came from
    difficulty: float | None = Field(default=None, allow_inf_nan=False)  # spread of the rewards of the prompt's answers

    @model_validator(mode="after")
    def _is_a_dialog(self) -> Self:
        _check_order(self.messages, ends_with=("assistant",))
        self._fill(group_id=group_of(self.messages))
        return self


class Prompt(Row):
    """One dialog up to the answer that is asked for."""

    prompt: list[Message]
    tools: list[dict[str, Any]] | None = None
    group_id: str = ""
    prompt_id: str = ""  # 16 hex digits of the hash of the whole prompt: the sampling noise hangs on it

    @model_validator(mode="after")
    def _asks(self) -> Self:
        _check_order(self.prompt, ends_with=("user", "tool"))
        content = json.dumps([for_template(self.prompt), self.tools], sort_keys=True, ensure_ascii=False)
        self._fill(group_id=group_of(self.prompt), prompt_id=hashlib.sha256(content.encode()).hexdigest()[:16])
        return self


class PreferencePair(Row):
    """One comparison: `chosen` and `rejected` both answer `prompt`. With answers in `between` it is a ranking.

    A ranking's best answer is `chosen` and its worst `rejected`, so every ranking is a pair as it stands; Llama 3's
    edited > chosen > rejected (arXiv 2407.21783, 4.2.1) has the edited answer as `chosen`.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    between: list[list[Message]] | None = None  # ranked between the two, best first
    tools: list[dict[str, Any]] | None = None
    group_id: str = ""
    strength: Strength | None = None  # by how much `chosen` is better than `rejected`
    disagreement: float | None = Field(default=None, ge=0, le=1)  # share of the annotators that prefer `rejected`
    chosen_from: str = ""  # the policy or file each answer came from
    rejected_from: str = ""
    chosen_score: float | None = Field(default=None, allow_inf_nan=False)  # the annotator's units
    rejected_score: float | None = Field(default=None, allow_inf_nan=False)

    @property
    def ranking(self) -> list[list[Message]]:
        """All answers, the best first; at least two."""
        return [self.chosen, *(self.between or []), self.rejected]

    @model_validator(mode="after")
    def _is_a_comparison(self) -> Self:
        _check_order(self.prompt, ends_with=("user", "tool"))
        between = [(f"between.{place}", answer) for place, answer in enumerate(self.between or [])]
        for name, answer in (("chosen", self.chosen), ("rejected", self.rejected), *between):
            if not answer or answer[-1].role != "assistant":
                raise ValueError(f"{name} does not end with an assistant message")
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected are identical")
        if any(answer in self.ranking[:place] for place, answer in enumerate(self.ranking)):
            raise ValueError("two answers of the ranking are identical")
        self._fill(group_id=group_of(self.prompt))
        return self


class Candidate(Row):
    """One sampled answer."""

    text: str
    k: int  # the k-th answer of its prompt
    num_tokens: int  # the end token included
    ended: bool  # by the end token, not by the length limit
    score: float | None = Field(default=None, allow_inf_nan=False)
    policy: str = ""


class Candidates(Row):
    """All answers drawn for one prompt, one group a row."""

    prompt: list[Message]
    prompt_id: str
    group_id: str
    tools: list[dict[str, Any]] | None = None
    candidates: list[Candidate]
    spread: float | None = Field(default=None, allow_inf_nan=False)  # standard deviation of the scores
    kept: list[int] = []  # indices into `candidates`, best first
    dropped: str | None = None  # why none was kept


@dataclass(frozen=True)
class Dropped:
    """In place of a row that is not kept; `reason` is a fixed name, by which dropped rows are counted and reported."""

    reason: str
