"""A look at rows in tokens before anything trains on them: what is cut, what is trained, what reads oddly.

The training stages take it while they tokenize, `alignloop check` shows it. What a stage can't train on (a turn without
a labelled end token, a dialog without an answer, a template that renders an answer otherwise in the dialog) is an error
of `engine.template`, which names the row.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from data_schemas.errors import ConfigError
from data_schemas.rows import Row
from data_schemas.text import printable

# A row is what a training stage's `encode` makes: `input_ids` and `labels` (SFT), `answers` (reward model), or
# `prompt_ids` with `chosen_ids`, `rejected_ids` and their `_trained` flags (DPO).
TokenRow = dict[str, Any]
RowType = TypeVar("RowType", bound=Row)
Encode = Callable[[RowType], TokenRow]  # raises ValueError for a row that can't be trained on
SIDES = ("chosen", "rejected")
NUM_NAMED, NUM_CHARACTERS = 3, 40  # long rows that a warning names, and of each what the user says first


@dataclass
class TokenReport:
    """What was found in the rows of one side (train or eval) of a stage."""

    rows: int = 0
    left_out: int = 0  # rows with nothing left within max_length
    cut: int = 0  # rows that lost a part to max_length: their end, or of a ranking some answers
    is_truncated: bool = False  # rows over max_length are cut off at their end
    long: list[str] = field(default_factory=list)  # the first rows over max_length
    tokens: int = 0  # of all rows, as they came
    tokens_left_out: int = 0
    trained: int = 0  # tokens that a loss sees, of the rows that are kept
    lengths: list[int] = field(default_factory=list)  # of the sequences that are kept
    doubled_bos: list[int] = field(default_factory=list)  # numbers of rows, from 1
    without_bos: int = 0  # rows that lack the token with which the tokenizer itself begins every text
    control: list[int] = field(default_factory=list)  # rows whose own words hold a special token

    @property
    def share_left_out(self) -> float:
        return self.tokens_left_out / max(1, self.tokens)

    @property
    def summary(self) -> str:
        lengths = self.lengths or [0]
        kept = self.tokens - self.tokens_left_out
        return (
            f"{self.rows - self.left_out} rows, median {statistics.median(lengths):.0f} and at most {max(lengths)} "
            f"tokens, {self.trained / max(1, kept):.0%} trained"
        )

    def warnings(self) -> Iterator[str]:
        """One line for each thing that a user would want to know."""
        if self.long:
            cut = f", answers of {self.cut} more" if self.cut else ""
            done = f"{self.left_out} of {self.rows} rows left out{cut} (longer than max_length)"
            if self.is_truncated:
                nothing = f", {self.left_out} left out (cut, they train nothing)" if self.left_out else ""
                done = f"{self.cut} of {self.rows} rows cut off at max_length, without their end token{nothing}"
            yield f"{done}: {self.share_left_out:.1%} of all tokens; the first: {', '.join(self.long)}"
        if self.doubled_bos:
            yield f"{len(self.doubled_bos)} rows begin with two BOS tokens, the first is row {self.doubled_bos[0]}"
        if self.without_bos:
            yield (
                f"{self.without_bos} rows do not begin with the BOS token that the tokenizer begins a text with: "
                "the chat template leaves it out"
            )
        if self.control:
            yield (
                f"{len(self.control)} rows hold special tokens in their own words, which the model reads as control "
                f"tokens; the first is row {self.control[0]}"
            )


def sequences_of(row: TokenRow) -> list[list[int]]:
    """Everything the model reads of a row, in tokens."""
    if "input_ids" in row:
        return [row["input_ids"]]
    if "answers" in row:
        return row["answers"]
    return [row["prompt_ids"] + row[f"{side}_ids"] for side in SIDES]


def trained_of(row: TokenRow) -> list[list[bool]]:
    """Which tokens of `sequences_of(row)` a loss sees. A reward is read at the last token."""
    if "input_ids" in row:
        return [[label >= 0 for label in row["labels"]]]
    if "answers" in row:
        return [[False] * (len(ids) - 1) + [True] for ids in row["answers"]]
    return [[False] * len(row["prompt_ids"]) + row[f"{side}_trained"] for side in SIDES]


def fit(row: TokenRow, max_length: int | None) -> TokenRow | None:
    """The row within max_length, or None. A ranking loses its longer answers, any other row is left out whole: cut in
    the middle of an answer it would teach a turn without its end token."""
    if _fits(row, max_length):
        return row
    kept = [ids for ids in row.get("answers", []) if len(ids) <= (max_length or 0)]
    return {"answers": kept} if len(kept) > 1 else None


def truncated(row: TokenRow, max_length: int | None) -> TokenRow | None:
    """The row's first max_length tokens; None where nothing is left to train, or no two answers that differ.

    Of answers that are cut to the same tokens a ranking keeps the better one.
    """
    if _fits(row, max_length):
        return row
    if "answers" in row:
        kept = list(dict.fromkeys(tuple(ids[:max_length]) for ids in row["answers"]))
        return {"answers": [list(ids) for ids in kept]} if len(kept) > 1 else None
    if "input_ids" in row:
        cut = {name: values[:max_length] for name, values in row.items()}
        return cut if any(label >= 0 for label in cut["labels"]) else None
    room = max(0, (max_length or 0) - len(row["prompt_ids"]))
    cut = {name: values if name == "prompt_ids" else values[:room] for name, values in row.items()}
    trains = all(any(flags) for name, flags in cut.items() if name.endswith(("_trained", "_content")))
    return cut if trains and cut["chosen_ids"] != cut["rejected_ids"] else None


def _first_words(row: Any) -> str:
    """Of what the user says, to find a row again: its number is that in its side of the split."""
    messages = getattr(row, "messages", None) or row.prompt
    text = " ".join(next((message.content for message in messages if message.role == "user"), "").split())
    return printable(text if len(text) <= NUM_CHARACTERS else f"{text[:NUM_CHARACTERS]}…")


def _fits(row: TokenRow, max_length: int | None) -> bool:
    return max_length is None or all(len(ids) <= max_length for ids in sequences_of(row))


def encode_all(
    name: str,
    rows: Sequence[RowType],
    encode: Encode[RowType],
    tokenizer: Any,
    *,
    max_length: int | None,
    on_long_row: str = "leave_out",
) -> tuple[list[TokenRow], TokenReport]:
    """The rows in tokens, those that fit, and what a look at all of them found.

    Raises ConfigError naming the row that can't be trained on, or is too long where that is an error, and where the
    template begins every row with two BOS.
    """
    look, found, bos = TokenReport(is_truncated=on_long_row == "truncate"), [], tokenizer.bos_token_id
    begins_with_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    for number, row in enumerate(rows, 1):
        text = row.to_json()
        try:
            encoded = encode(row)
        except ValueError as error:
            raise ConfigError(f"{name} row {number}: {error}: {text[:160]}") from error
        kept = (truncated if on_long_row == "truncate" else fit)(encoded, max_length)
        if kept is not None:
            found.append(kept)
        before, after = sequences_of(encoded), sequences_of(kept) if kept else []
        look.rows += 1
        look.tokens += sum(map(len, before))
        look.tokens_left_out += sum(map(len, before)) - sum(map(len, after))
        look.left_out += kept is None
        look.cut += kept is not None and kept is not encoded
        if kept is not encoded:
            longest = max(map(len, before))
            if on_long_row == "error":
                raise ConfigError(
                    f"{name} row {number}: {longest} tokens, over max_length={max_length}: raise it, or "
                    f"set on_long_row: leave_out or truncate: {text[:160]}"
                )
            if len(look.long) < NUM_NAMED:
                look.long.append(f"row {number} ({longest} tokens, {_first_words(row)!r})")
        look.lengths += map(len, after)
        look.trained += sum(sum(flags) for flags in trained_of(kept)) if kept else 0
        if bos is not None and any(ids[:2] == [bos, bos] for ids in before):
            look.doubled_bos.append(number)
        look.without_bos += begins_with_bos and any(ids[:1] != [bos] for ids in before)
        if any(token in text for token in special):
            look.control.append(number)
    if rows and len(look.doubled_bos) == len(rows):
        raise ConfigError(
            f"{name}: every row begins with two BOS tokens: the chat template writes one too many; "
            "run prepare_base with a chat_template that writes one"
        )
    return found, look
