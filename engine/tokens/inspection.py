"""Encodes the rows of a training stage, keeps those that fit into max_length, and reports what is unusual about them.

The training stages do this while they tokenize; `alignloop check` prints the same report without training. A row that
a stage can't train on (a turn without a labelled end token, a dialog without an answer, a tool call that the template
leaves out) is an error of `engine.tokens.template`; here the row's number is added to it, or the row is set aside.
"""

import itertools
import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from data_schemas.errors import ConfigError, DataError
from data_schemas.reading import BadRow, OnBadRow
from data_schemas.rows import Conversation, Dropped, PreferencePair
from data_schemas.text import printable
from engine.runtime import progress
from engine.runtime.stage import format_counts
from engine.tokens.completeness import REASONING
from engine.tokens.positions import check_positions
from engine.tokens.rendering import TemplateLimit
from engine.tokens.token_rows import TokenRow

DialogType = TypeVar("DialogType", Conversation, PreferencePair)
# One row in tokens, or several where the chat template renders earlier turns differently. Raises ValueError for a row
# that can't be trained on.
Encode = Callable[[DialogType], Sequence[TokenRow]]
NUM_NAMED_ROWS = 3  # long rows that a warning names
NUM_CHARACTERS = 40  # shown of the first user message of such a row
EXPECTED = "a row whose turns the chat template renders completely"  # of a row that is set aside
NUM_CHARACTERS_IN_ERROR = 160  # shown of the JSON of a row that is refused


@dataclass
class TokenReport:
    """Counts and findings for the rows of one side (train or eval) of a stage. Row numbers start at 1."""

    is_truncated: bool = False  # rows over max_length are cut, not left out
    num_rows: int = 0  # in tokens: a dialog may become several
    num_left_out: int = 0  # rows of which nothing is left within max_length
    num_shortened: int = 0  # rows that lost a part to max_length: their end, or some answers of a ranking
    long_rows: list[str] = field(default_factory=list)  # descriptions of the first rows over max_length
    num_tokens: int = 0  # of all rows, before any are left out or shortened
    num_tokens_left_out: int = 0
    num_trained_tokens: int = 0  # tokens that a loss sees, in the rows that are kept
    lengths: list[int] = field(default_factory=list)  # tokens of each sequence that is kept
    rows_with_two_bos: list[int] = field(default_factory=list)
    num_without_bos: int = 0  # rows that lack the BOS token although the tokenizer itself adds one to a text
    rows_with_special_tokens: list[int] = field(default_factory=list)  # rows whose own text contains a special token
    num_split: int = 0  # dialogs that became several rows
    num_rows_of_split: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # rows dropped after they were encoded, by reason
    num_answers_dropped: int = 0  # of rankings that are kept, because they have the tokens of a better answer
    unnamed_keys: dict[str, int] = field(default_factory=dict)  # keys of messages that the template does not name
    refused: list[BadRow] = field(default_factory=list)  # rows that were set aside

    def count(self, encoded: TokenRow, kept: TokenRow | None) -> None:
        """Adds one row: as it was encoded, and what max_length leaves of it."""
        num_before = sum(map(len, encoded.sequences))
        lengths = [len(ids) for ids in kept.sequences] if kept else []
        self.num_rows += 1
        self.num_tokens += num_before
        self.num_tokens_left_out += num_before - sum(lengths)
        self.num_left_out += kept is None
        self.num_shortened += kept is not None and kept is not encoded
        self.lengths += lengths
        self.num_trained_tokens += sum(sum(flags) for flags in kept.trained) if kept else 0

    def counts(self, side: str) -> dict[str, int]:
        """Rows that were dropped or set aside, by the name of their metric: those of the held-out side begin with
        `eval_`, as the Trainer's do. A dialog that became several rows counts with each of them that is too long."""
        counts = {f"dropped_{reason}": count for reason, count in self.dropped.items()}
        if self.num_left_out:
            counts["dropped_after_cut" if self.is_truncated else "dropped_too_long"] = self.num_left_out
        if self.refused:
            counts["set_aside_by_template"] = len(self.refused)
        return {f"{'eval_' if side == 'eval' else ''}{name}": count for name, count in counts.items()}

    @property
    def share_left_out(self) -> float:
        """Share of all tokens that max_length removes."""
        return self.num_tokens_left_out / max(1, self.num_tokens)

    @property
    def summary(self) -> str:
        lengths = self.lengths or [0]
        num_kept = self.num_tokens - self.num_tokens_left_out
        return (
            f"{self.num_rows - self.num_left_out} rows, median {statistics.median(lengths):.0f} and at most "
            f"{max(lengths)} tokens, {self.num_trained_tokens / max(1, num_kept):.0%} trained"
        )

    def warnings(self) -> Iterator[str]:
        """One line for each finding that a user would want to know about."""
        if self.num_split:
            yield (
                f"the chat template renders earlier turns differently: {self.num_split} dialogs became "
                f"{self.num_rows_of_split} rows, so that each assistant turn is trained as it is generated"
            )
        for reason, count in self.dropped.items():
            yield f"{count} rows dropped ({reason}): their answers are the same tokens under the chat template"
        if self.num_answers_dropped:
            yield f"{self.num_answers_dropped} answers of rankings dropped: they are the same tokens as a better answer"
        if self.unnamed_keys:
            keys = ", ".join(f"{key} ({count})" for key, count in self.unnamed_keys.items())
            yield f"ignored keys of messages, which the chat template does not name: {printable(keys)}"
        if self.refused:
            yield (
                f"{len(self.refused)} rows set aside, which can't be trained on under the chat template; the first is "
                f"row {self.refused[0].line}: {self.refused[0].found}"
            )
        if self.long_rows:
            yield f"{self._effect_of_max_length()}: {self.share_left_out:.1%} of all tokens; the first: " + ", ".join(
                self.long_rows
            )
        if self.rows_with_two_bos:
            first = self.rows_with_two_bos[0]
            yield f"{len(self.rows_with_two_bos)} rows begin with two BOS tokens, the first is row {first}"
        if self.num_without_bos:
            yield (
                f"{self.num_without_bos} rows do not begin with a BOS token, although the tokenizer adds one to a "
                "text: the chat template leaves it out"
            )
        if self.rows_with_special_tokens:
            yield (
                f"{len(self.rows_with_special_tokens)} rows contain special tokens in their own text, which the model "
                f"reads as control tokens; the first is row {self.rows_with_special_tokens[0]}"
            )

    def _effect_of_max_length(self) -> str:
        if not self.is_truncated:
            shortened = f", answers of {self.num_shortened} more" if self.num_shortened else ""
            return f"{self.num_left_out} of {self.num_rows} rows left out{shortened} (longer than max_length)"
        left_out = f", {self.num_left_out} left out (nothing to train after the cut)" if self.num_left_out else ""
        return f"{self.num_shortened} of {self.num_rows} rows cut at max_length, without their end token{left_out}"


def encode_all(
    name: str,
    rows: Sequence[DialogType],
    encode: Encode[DialogType],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    on_long_row: str = "leave_out",
    on_bad_row: OnBadRow = "error",
    max_positions: int | None = None,
) -> tuple[list[TokenRow], TokenReport]:
    """Encodes all rows; returns those that fit into max_length tokens, and the report on all of them.

    `on_long_row` is "leave_out", "truncate" or "error"; `max_positions` is the number of tokens that the model has
    positions for. Raises DataError naming the row that can't be trained on (unless such rows are set aside), or that is
    too long where that is an error; ConfigError where the template begins every row with two BOS tokens, or where rows
    are longer than `max_positions`.
    """
    report = TokenReport(is_truncated=on_long_row == "truncate")
    token_rows: list[TokenRow] = []
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    special_tokens = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    template = str(tokenizer.chat_template)
    counted = progress.each(rows, f"tokenizing {name} rows", total=len(rows), unit="rows")
    for number, row in enumerate(counted, 1):
        text = row.to_json()
        for key in _keys_of(row):
            if not re.search(rf"\b{re.escape(key)}\b", template):
                report.unnamed_keys[key] = report.unnamed_keys.get(key, 0) + 1
        try:
            encoded = encode(row)
        except TemplateLimit:
            raise
        except ValueError as error:
            if on_bad_row == "error":
                raise DataError(f"{name} row {number}: {error}: {text[:NUM_CHARACTERS_IN_ERROR]}") from error
            report.refused.append(BadRow(name, number, "messages", str(error), EXPECTED, json.loads(text)))
            continue
        if len(encoded) > 1:
            report.num_split += 1
            report.num_rows_of_split += len(encoded)
        for one in encoded:
            token_row = one.distinct()
            if isinstance(token_row, Dropped):
                report.dropped[token_row.reason] = report.dropped.get(token_row.reason, 0) + 1
                continue
            report.num_answers_dropped += len(one.sequences) - len(token_row.sequences)
            kept = token_row.within(max_length, truncate=on_long_row == "truncate")
            if kept is not None:
                token_rows.append(kept)
            report.count(token_row, kept)
            if kept is token_row:
                continue
            longest = max(map(len, token_row.sequences))
            if on_long_row == "error":
                raise DataError(
                    f"{name} row {number}: {longest} tokens, over max_length={max_length}: raise it, or "
                    f"set on_long_row: leave_out or truncate: {text[:NUM_CHARACTERS_IN_ERROR]}"
                )
            if len(report.long_rows) < NUM_NAMED_ROWS:
                report.long_rows.append(f"row {number} ({longest} tokens, {_first_words(row)!r})")
        sequences = [ids for token_row in encoded for ids in token_row.sequences]
        if bos is not None and any(ids[:2] == [bos, bos] for ids in sequences):
            report.rows_with_two_bos.append(number)
        report.num_without_bos += adds_bos and any(ids[:1] != [bos] for ids in sequences)
        if any(token in text for token in special_tokens):
            report.rows_with_special_tokens.append(number)
    if rows and len(report.rows_with_two_bos) == len(rows):
        raise ConfigError(
            f"{name}: every row begins with two BOS tokens: the chat template writes one too many; "
            "run prepare_base with a chat_template that writes one"
        )
    check_positions(name, report.lengths, max_positions)
    return token_rows, report


def check_rows_left(name: str, encoded: Sequence[TokenRow], num_rows: int, counts: Mapping[str, int]) -> None:
    """Raises DataError where none of the rows is left after encoding; `counts` are those dropped or set aside."""
    if not encoded:
        found = format_counts(counts) if counts else "all are too long, or have nothing to train"
        raise DataError(
            f"{name}: nothing is left of {num_rows} rows ({found}); raise max_length, or give rows that fit"
        )


def _keys_of(row: Conversation | PreferencePair) -> set[str]:
    """The keys of a row's messages that only a chat template can read. Those of thoughts are compared with the text."""
    answers = [] if isinstance(row, Conversation) else row.ranking
    messages = itertools.chain(row.messages if isinstance(row, Conversation) else row.prompt, *answers)
    keys = {key for message in messages for key in message.model_extra or {}}
    return keys.difference(REASONING, ("tool_call_id",))


def _first_words(row: Conversation | PreferencePair) -> str:
    """The beginning of the first user message, to find the row: its number counts within one side of the split."""
    messages = row.messages if isinstance(row, Conversation) else row.prompt
    text = " ".join(next((message.content for message in messages if message.role == "user"), "").split())
    return printable(text if len(text) <= NUM_CHARACTERS else f"{text[:NUM_CHARACTERS]}…")
