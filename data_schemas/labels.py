"""Labelled answers (KTO): rows with one answer each, and a label that says whether it is a good one.

Preferences are made of the rows of a prompt that has good and bad answers. A bad answer is never an example to train
on: dialects.py sets such a row of instructions aside.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data_schemas.disk_list import DiskList
from data_schemas.errors import SetAside, WrongValue
from data_schemas.files import short_digest
from data_schemas.formats import Line, Lines, describe
from data_schemas.messages import ROW_TRAINING_KEYS, Fields, unpacked
from data_schemas.nesting import is_too_deep

LABELS = ("label", "kto_tag")  # TRL's and LLaMA-Factory's
WORDS = {"true": True, "1": True, "false": False, "0": False}  # of CSV files


def label_of(raw: Fields) -> tuple[str, object]:
    """The column with the row's label, and its value; an empty name where there is none."""
    column = next((column for column in LABELS if raw.get(column) is not None), "")
    return column, raw.get(column)


def as_label(value: object) -> bool | None:
    """Whether the label says that the answer is good; None for a value that is no label, as the name of a class."""
    if isinstance(value, str):
        return WORDS.get(value.lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def read_label(raw: Fields) -> bool:
    """Whether the row's answer is a good one. Raises WrongValue for a label that is neither true nor false."""
    column, value = label_of(raw)
    label = as_label(value)
    if label is None:
        raise WrongValue(column, describe(value), "true for a good answer, or false for a bad one (KTO)")
    return label


def unpaired(raw: Fields) -> Fields:
    """Raises SetAside: the answer is in no pair, because its prompt has no answer with the other label."""
    kind = "good" if read_label(raw) else "bad"
    raise SetAside(label_of(raw)[0], f"only {kind} answers to this prompt", "a good and a bad one, which make a pair")


class _Labelled(NamedTuple):
    line: Line
    raw: Fields
    prompt: object
    answer: object
    is_good: bool

    @property
    def group(self) -> bytes:
        """A key that the answers to a prompt share."""
        return short_digest(_as_text([self.prompt, self.raw.get("system"), self.raw.get("tools")]))


def pairs_of_labels(lines: Lines) -> Lines:
    """The lines of a file, with pairs in place of labelled answers where a prompt has good and bad ones.

    Every answer is used: of two good and three bad ones the first good one is in two pairs. The pairs of a prompt are
    where its first answer was. Labelled answers without another are left as they are. Raises DataError where the
    temporary folder can't be written.
    """
    paired = _Paired(lines)
    return paired if paired.groups else lines


class _Paired:
    """Lines whose labelled answers are on the disk until all answers to a prompt are together.

    In memory is an index, of 16 bytes an answer and about 250 a prompt, and all answers to the prompt that is read. Of
    a file that changes meanwhile its reader reports that at its end.
    """

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.answers = DiskList[_Labelled]()
        self.is_labelled = bytearray()  # of each line
        first_and_places: dict[bytes, array[int]] = {}  # of a prompt: its first line, then the places of its answers
        for number, line in enumerate(lines):
            answer = _labelled(line)
            self.is_labelled.append(answer is not None)
            if answer is not None:
                first_and_places.setdefault(answer.group, array("q", [number])).append(len(self.answers))
                self.answers.append(answer)
        self.groups = {numbers[0]: numbers[1:] for numbers in first_and_places.values()}

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[Line]:
        for number, line in enumerate(self.lines):
            if number in self.groups:
                yield from _pairs_of([self.answers[place] for place in self.groups[number]])
            elif number >= len(self.is_labelled) or not self.is_labelled[number]:
                yield line


def _as_text(value: object) -> str:
    """A text that is the same for equal values: also for those of a table that JSON has no form for, as binary data."""
    try:
        return json.dumps(value, sort_keys=True, default=repr)
    except (TypeError, ValueError):  # keys of several types
        return repr(value)


def _labelled(line: Line) -> _Labelled | None:
    raw = line.raw
    if line.error or not isinstance(raw, dict) or (label := as_label(label_of(raw)[1])) is None or is_too_deep(raw):
        return None
    if any(raw.get(name) is not None and not raw[name] for name in ROW_TRAINING_KEYS):
        return None  # it is set aside
    prompt, answer, messages = raw.get("prompt"), raw.get("completion"), unpacked(raw.get("messages"))
    if prompt is not None and answer is not None:
        return _Labelled(line, raw, prompt, answer, label)
    return _Labelled(line, raw, messages[:-1], messages[-1:], label) if isinstance(messages, list) else None


def _pairs_of(group: Sequence[_Labelled]) -> list[Line]:
    good, bad = [[each for each in group if each.is_good is side] for side in (True, False)]
    if not good or not bad:
        return [labelled.line for labelled in group]
    good_texts, bad_texts = [{_as_text(each.answer) for each in side} for side in (good, bad)]
    contradicted = good_texts & bad_texts
    if contradicted:
        error = WrongValue("label", "an answer with true and with false", "one label for each answer to a prompt")
        return [Line(each.line.number, each.line.raw, error) for each in group]
    return [
        _pair(good[place % len(good)], bad[place % len(bad)], is_of_good=place < len(good))
        for place in range(max(len(good), len(bad)))
    ]


def _pair(good: _Labelled, bad: _Labelled, *, is_of_good: bool) -> Line:
    kept = {name: value for name, value in good.raw.items() if name not in ("messages", "completion", *LABELS)}
    raw = kept | {"prompt": good.prompt, "chosen": good.answer, "rejected": bad.answer}
    return Line(good.line.number if is_of_good else bad.line.number, raw)
