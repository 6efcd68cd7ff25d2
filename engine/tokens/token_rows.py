"""The rows of the training stages in tokens: one type for each kind of row.

| type | stage | one row |
|---|---|---|
| `TokenDialog` | sft, pretrain | one sequence with labels |
| `TokenRanking` | reward_model | the answers to one prompt, the best first |
| `TokenPair` | dpo | one prompt with a chosen and a rejected answer |
| `TokenPrompt` | rl | one prompt, to which the policy samples answers while it is trained |

A field's name is the name of its column in the tables on disk and in the trainers' datasets: `row.columns()` writes
the columns and `Type.from_columns(...)` reads them. Both keep the order of the fields, so renaming or reordering a
field invalidates tables that earlier runs wrote.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Self

from data_schemas.rows import Dropped
from engine.tokens.template import IGNORED

EQUAL_IN_TOKENS = "equal_in_tokens"  # reason for which a pair or ranking is dropped


class TokenRow(ABC):
    """What all kinds of token rows have in common. A subclass is a frozen dataclass whose fields are lists."""

    @property
    @abstractmethod
    def sequences(self) -> list[list[int]]:
        """Every sequence that the model reads for this row, as token ids."""

    @property
    @abstractmethod
    def trained(self) -> list[list[bool]]:
        """For each token of `sequences`, whether a loss sees it."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """A display name for each of `sequences`; empty where the row has only one."""

    def distinct(self) -> Self | Dropped:
        """The row without an answer that has the same tokens as a better one; dropped where nothing is compared then.

        Texts that differ may be the same tokens, as under a template that trims white space.
        """
        return self

    def within(self, max_length: int | None, *, truncate: bool = False) -> Self | None:
        """What a limit of max_length tokens a sequence leaves of the row; None where that is nothing to train on.

        A row whose sequences all fit, or without a limit (None), is returned itself. Otherwise it is left out, or with
        `truncate` its sequences are cut at the end: then it teaches a turn without an end token.
        """
        if max_length is None or all(len(ids) <= max_length for ids in self.sequences):
            return self
        return self._truncated(max_length) if truncate else self._without_long_sequences(max_length)

    @abstractmethod
    def _truncated(self, max_length: int) -> Self | None:
        """The row with its sequences cut after max_length tokens; None where nothing is left to train."""

    def _without_long_sequences(self, max_length: int) -> Self | None:
        """The row without its sequences over max_length tokens; None where the others can't be trained on."""
        return None

    def columns(self) -> dict[str, list]:
        """The row as one row of a table."""
        return {name: getattr(self, name) for name in self.column_names()}

    @classmethod
    def from_columns(cls, columns: Mapping[str, list]) -> Self:
        """The row from one row of a table. Columns that the type does not have are ignored, as TRL adds some."""
        return cls(**{name: columns[name] for name in cls.column_names()})

    @classmethod
    def column_names(cls) -> tuple[str, ...]:
        """The names of the table's columns, in order."""
        return tuple(column.name for column in fields(cls))  # pyright: ignore[reportArgumentType] - all are dataclasses


@dataclass(frozen=True)
class TokenDialog(TokenRow):
    """One sequence for a next-token loss: a dialog (SFT), or a block of documents (pretraining)."""

    input_ids: list[int]
    labels: list[int]  # the token itself, or IGNORED where no loss sees it

    @property
    def sequences(self) -> list[list[int]]:
        return [self.input_ids]

    @property
    def trained(self) -> list[list[bool]]:
        return [[label != IGNORED for label in self.labels]]

    @property
    def names(self) -> list[str]:
        return [""]

    def _truncated(self, max_length: int) -> Self | None:
        cut = type(self)(self.input_ids[:max_length], self.labels[:max_length])
        return cut if any(cut.trained[0]) else None


@dataclass(frozen=True)
class TokenRanking(TokenRow):
    """All answers to one prompt, the best first, at least two. Each sequence is the prompt followed by the answer."""

    answers: list[list[int]]
    margin: list[float] = field(default_factory=list)  # of the best answer's reward over the worst's; empty: none

    @property
    def sequences(self) -> list[list[int]]:
        return self.answers

    @property
    def trained(self) -> list[list[bool]]:
        """True at the last token of each answer only, which is where the reward is read."""
        return [[False] * (len(ids) - 1) + [True] for ids in self.answers]

    @property
    def names(self) -> list[str]:
        return [f"rank {rank}" for rank in range(1, len(self.answers) + 1)]

    def distinct(self) -> Self | Dropped:
        answers = dict.fromkeys(map(tuple, self.answers))
        if len(answers) == len(self.answers):
            return self
        return self._with_at_least_two([list(ids) for ids in answers]) or Dropped(EQUAL_IN_TOKENS)

    def _without_long_sequences(self, max_length: int) -> Self | None:
        """The ranking without the answers that are too long; None where fewer than two answers are left."""
        return self._with_at_least_two([ids for ids in self.answers if len(ids) <= max_length])

    def _truncated(self, max_length: int) -> Self | None:
        """The ranking with its answers cut. Of answers that become identical only the better one is kept; None where
        fewer than two different answers are left."""
        distinct = dict.fromkeys(tuple(ids[:max_length]) for ids in self.answers)
        return self._with_at_least_two([list(ids) for ids in distinct])

    def _with_at_least_two(self, answers: list[list[int]]) -> Self | None:
        return type(self)(answers, self.margin) if len(answers) > 1 else None


@dataclass(frozen=True)
class TokenPair(TokenRow):
    """One prompt with two answers, and two masks over the tokens of each answer.

    `*_trained` covers every token of the answer's turns (the NLL term), `*_content` leaves out the header and
    termination tokens (the preference term); see `engine.training.dpo`.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    chosen_trained: list[bool]
    chosen_content: list[bool]
    rejected_ids: list[int]
    rejected_trained: list[bool]
    rejected_content: list[bool]

    @property
    def sequences(self) -> list[list[int]]:
        return [self.prompt_ids + self.chosen_ids, self.prompt_ids + self.rejected_ids]

    @property
    def trained(self) -> list[list[bool]]:
        prompt = [False] * len(self.prompt_ids)
        return [prompt + self.chosen_trained, prompt + self.rejected_trained]

    @property
    def names(self) -> list[str]:
        return ["chosen", "rejected"]

    def distinct(self) -> Self | Dropped:
        return self if self.chosen_ids != self.rejected_ids else Dropped(EQUAL_IN_TOKENS)

    def _truncated(self, max_length: int) -> Self | None:
        """The pair with its answers cut; None where the answers become identical or a mask has nothing left."""
        room = max(0, max_length - len(self.prompt_ids))
        columns: Mapping[str, Sequence] = self.columns()
        cut = type(self)(
            **{name: values if name == "prompt_ids" else values[:room] for name, values in columns.items()}
        )
        masks = (cut.chosen_trained, cut.chosen_content, cut.rejected_trained, cut.rejected_content)
        return cut if all(map(any, masks)) and cut.chosen_ids != cut.rejected_ids else None


@dataclass(frozen=True)
class TokenPrompt(TokenRow):
    """One prompt with its generation prompt. The answers that train are not part of the row."""

    prompt_ids: list[int]

    @property
    def sequences(self) -> list[list[int]]:
        return [self.prompt_ids]

    @property
    def trained(self) -> list[list[bool]]:
        return [[False] * len(self.prompt_ids)]

    @property
    def names(self) -> list[str]:
        return [""]

    def _truncated(self, max_length: int) -> Self | None:
        """None: a prompt that is cut has no generation prompt."""
        return None
