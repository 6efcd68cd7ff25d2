"""What curation sees of a stored row: its words, without system prompt, template and tools. Needs no torch.

Rows are the lines of the files that prepare_data and the generating stages write, as dictionaries: they have been
validated when they were written, and a curation step reads a million of them.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["documents", "instructions", "preferences", "prompts"]
KINDS: tuple[Kind, ...] = ("documents", "instructions", "preferences", "prompts")
RawRow = Mapping[str, Any]  # a stored row
_STEP_OF_A_ROUND = re.compile(r"round-\d+\.rejection_sampling\b")


@dataclass(frozen=True, slots=True)
class Content:
    """The text of a row. `answers` has the trained assistant turns of a dialog; of a preference row its answers, best
    first; of a document its text only; of a prompt nothing."""

    prompt: str
    answers: tuple[str, ...]
    tag: str = ""  # capability, where the row has one

    @property
    def text(self) -> str:
        return "\n".join([self.prompt, *self.answers]) if self.prompt else "\n".join(self.answers)


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a row is dropped: the rule's name, the value that it found, the threshold, and for a duplicate or a leak the
    row (by id) or the evaluation prompt that it repeats."""

    rule: str
    value: float | str
    threshold: float | str | None = None
    partner: str = ""


Rule = Callable[[Content], Finding | None]


def content_of(kind: Kind, row: RawRow) -> Content:
    """The content of a stored row of a kind."""
    if kind == "documents":
        return Content("", (str(row["text"]),))
    tag = str(row.get("tag") or "")
    if kind == "instructions":
        messages = row["messages"]
        answers = [m for m in messages if m["role"] == "assistant" and m.get("trained", True)]
        return Content(_joined(messages, "user"), tuple(_text(message) for message in answers), tag)
    if kind == "prompts":
        return Content(_joined(row["prompt"], "user"), (), tag)
    ranking = [row["chosen"], *(row.get("between") or []), row["rejected"]]
    return Content(_joined(row["prompt"], "user"), tuple(_joined(answer, "assistant") for answer in ranking), tag)


def is_of_a_round(source: str) -> bool:
    """Whether the source of a row is the step of a round that samples answers, and not a file."""
    return _STEP_OF_A_ROUND.match(source) is not None


def row_id(row: RawRow) -> str:
    """16 hex digits of the SHA-256 of the row's fields: equal for equal rows, in whatever file and order."""
    content = json.dumps(row, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _joined(messages: Sequence[RawRow], role: str) -> str:
    return "\n".join(_text(message) for message in messages if message["role"] == role)


def _text(message: RawRow) -> str:
    return str(message.get("content") or "")
