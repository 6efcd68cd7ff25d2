"""The rows that stages exchange. Field names are TRL's column names, so a row is a training example without conversion.

A row carries `group_id`, the hash of its source dialog's first user message: a run is split into training,
validation and evaluation by group, so no dialog is ever on two sides, in any round, in any turn.

A row is validated when it is constructed. Validators raise WrongValue, which pydantic wraps into a ValidationError.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_schemas.errors import WrongValue
from data_schemas.text import normalise

Role = Literal["system", "user", "assistant", "tool"]
Strength = Literal["significantly_better", "better", "slightly_better", "marginally_better"]
JSONObject = dict[str, Any]
STRENGTHS: tuple[Strength, ...] = ("significantly_better", "better", "slightly_better", "marginally_better")


class Row(BaseModel):
    """Base of all rows: frozen, and without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_json(self) -> str:
        """One line of JSON with exactly the fields that were given, so that a stored row renders as the one read."""
        return json.dumps(self.model_dump(exclude_unset=True), ensure_ascii=False)

    def _fill(self, **derived: str) -> None:
        """Sets derived fields that were not given; only for validators, while the row is constructed."""
        for name, value in derived.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)  # the row is frozen for all other code
                self.__pydantic_fields_set__.add(name)


class Message(Row):
    """One turn. Keys that only some templates know (`name`, `reasoning_content`, …) are kept unchanged.

    `trained` is for the training stages, and no template sees it: false makes an assistant turn context.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Role
    content: str = ""
    tool_calls: list[JSONObject] | None = None
    trained: bool = True

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        if not self.content.strip() and not self.tool_calls and self.role in ("user", "assistant"):
            raise WrongValue("", "an empty message", "text")
        return self


def for_template(messages: Sequence[Message]) -> list[JSONObject]:
    """The messages as plain dictionaries, the form that chat templates take."""
    return [message.model_dump(exclude_unset=True, exclude={"trained"}) for message in messages]


def group_of(messages: Sequence[Message], *, with_system: bool = False) -> str:
    """16 hex digits of the SHA-256 of the normalised first user message, whatever the system prompt; or with it.

    Raises WrongValue for a dialog without a user message.
    """
    first = next((message.content for message in messages if message.role == "user"), None)
    if first is None:
        raise WrongValue("", "no user message", "at least one")
    text = normalise(first)
    if with_system and messages[0].role == "system":
        text = f"{normalise(messages[0].content)}\n{text}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_order(messages: Sequence[Message], *, ends_with: tuple[Role, ...]) -> None:
    if not messages:
        raise WrongValue("", "no messages", "at least one")
    if any(message.role == "system" for message in messages[1:]):
        raise WrongValue("", "a system message after the first message", "one only at the start")
    if messages[-1].role not in ends_with:
        expected = f"one from {' or '.join(map(repr, ends_with))}"
        raise WrongValue("", f"a last message from {messages[-1].role!r}", expected)


class Document(Row):
    """One text to pretrain on."""

    text: str
    source: str = ""  # the file that it is from, where a mix of sources needs it

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if not self.text.strip():
            raise WrongValue("text", "empty text", "text")
        return self


class Conversation(Row):
    """One dialog to train on, by SFT; the loss is on every assistant turn that is `trained`."""

    messages: list[Message]
    tools: list[JSONObject] | None = None
    group_id: str = ""
    source: str = ""  # the step or file that it is from, or what its file's column `source` says
    tag: str = ""  # the capability that it teaches, as in math; from its file, the recipe, or a user's rule
    difficulty: float | None = Field(default=None, allow_inf_nan=False)  # spread of the rewards of the prompt's answers
    score: float | None = Field(default=None, allow_inf_nan=False)  # the reward of its last answer; curation reads it

    @model_validator(mode="after")
    def _check_messages(self) -> Self:
        _check_order(self.messages, ends_with=("assistant",))
        self._fill(group_id=group_of(self.messages))
        if self.messages[0].role not in ("system", "user"):
            found = f"a first message from {self.messages[0].role!r}"
            raise WrongValue("", found, "one from 'user' or 'system' (write a greeting into a system message)")
        if not any(message.trained for message in self.messages if message.role == "assistant"):
            raise WrongValue("", "a dialog in which no turn is trained", "an assistant turn without weight 0")
        return self


class Prompt(Row):
    """One dialog up to the answer that a policy is to sample."""

    prompt: list[Message]
    tools: list[JSONObject] | None = None
    group_id: str = ""
    prompt_id: str = ""  # 16 hex digits of the hash of all messages and tools; sampling noise depends on it
    reference: str | None = None  # a good answer, for functions that judge; policies do not see it
    tag: str = ""  # the capability that it asks for

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        _check_order(self.prompt, ends_with=("user", "tool"))
        content = json.dumps([for_template(self.prompt), self.tools], sort_keys=True, ensure_ascii=False)
        self._fill(group_id=group_of(self.prompt), prompt_id=hashlib.sha256(content.encode()).hexdigest()[:16])
        return self


class PreferencePair(Row):
    """One comparison: `chosen` and `rejected` both answer `prompt`. With answers in `between` it is a ranking.

    A ranking's best answer is `chosen` and its worst `rejected`, so every ranking is also a pair. Llama 3's ranking
    edited > chosen > rejected (arXiv 2407.21783, 4.2.1) has the edited answer as `chosen`.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    between: list[list[Message]] | None = None  # ranked between the two, best first
    tools: list[JSONObject] | None = None
    group_id: str = ""
    tag: str = ""  # the capability that its prompt asks for
    strength: Strength | None = None  # by how much `chosen` is better than `rejected`
    disagreement: float | None = Field(default=None, ge=0, le=1)  # share of the annotators that prefer `rejected`
    chosen_from: str = ""  # the policy or file that the answer is from
    rejected_from: str = ""
    chosen_score: float | None = Field(default=None, allow_inf_nan=False)  # in the annotator's units
    rejected_score: float | None = Field(default=None, allow_inf_nan=False)

    @property
    def ranking(self) -> list[list[Message]]:
        """All answers, the best first; at least two."""
        return [self.chosen, *(self.between or []), self.rejected]

    @model_validator(mode="after")
    def _check_answers(self) -> Self:
        _check_order(self.prompt, ends_with=("user", "tool"))
        between = [(f"between.{place}", answer) for place, answer in enumerate(self.between or [])]
        for name, answer in (("chosen", self.chosen), ("rejected", self.rejected), *between):
            if not answer or answer[-1].role != "assistant":
                raise WrongValue(name, "an answer without a last assistant message", "one that ends with it")
            if not all(message.trained for message in answer):
                raise WrongValue(name, "an answer with a turn that is not trained", "answers that are compared in full")
        if self.chosen == self.rejected:
            raise WrongValue("chosen, rejected", "two identical answers", "two different answers")
        if any(answer in self.ranking[:place] for place, answer in enumerate(self.ranking)):
            raise WrongValue("ranking", "two identical answers", "different answers")
        self._fill(group_id=group_of(self.prompt))
        return self


class Candidate(Row):
    """One sampled answer."""

    text: str
    k: int  # the number of the answer among those to its prompt
    num_tokens: int  # including the end token
    ended: bool  # with the end token, not at the length limit
    score: float | None = Field(default=None, allow_inf_nan=False)
    policy: str = ""


class Candidates(Row):
    """All answers that were sampled for one prompt."""

    prompt: list[Message]
    prompt_id: str
    group_id: str
    tools: list[JSONObject] | None = None
    candidates: list[Candidate]
    tag: str = ""  # of the prompt
    spread: float | None = Field(default=None, allow_inf_nan=False)  # standard deviation of the scores
    kept: list[int] = []  # indices into `candidates`, best first
    dropped: str | None = None  # why none was kept: a named reason

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        _check_order(self.prompt, ends_with=("user", "tool"))
        return self


def tag_of(row: Conversation | Prompt | PreferencePair) -> dict[str, Any]:
    """The field `tag` for a row that is derived from this one; nothing where it has none, so that no row gets it."""
    return {"tag": row.tag} if row.tag else {}


@dataclass(frozen=True)
class Dropped:
    """In place of a row that is not kept; `reason` is a fixed name, by which dropped rows are counted and reported."""

    reason: str
