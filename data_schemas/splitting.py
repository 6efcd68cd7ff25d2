"""The run's one split: the hash of a dialog's group decides which side it is on.

So a row's side depends on no other row: rows may be added, reordered or repeated in another file, and none moves.
Evaluation has the lowest hashes, so that growing another share never moves a dialog out of evaluation.
"""

import hashlib
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from data_schemas.errors import ConfigError
from data_schemas.rows import Document

Place = Literal["evaluation", "judge", "judge_validation", "validation", "train"]

JUDGE_VALIDATION_SHARE = 0.15  # of the judge's groups


@dataclass(frozen=True)
class Shares:
    """Shares of all groups; the rest is training. Raises ConfigError for shares that cannot be."""

    evaluation: float
    judge: float = 0.0  # pairs for the judge of evaluate_policy, which no round optimises
    validation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("evaluation", "judge", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}_share={getattr(self, name)} is not a share; expected 0 <= share < 1")
        if self.evaluation + self.judge + self.validation >= 1:
            raise ConfigError(
                f"evaluation_share={self.evaluation} + judge_share={self.judge} + validation_share={self.validation} "
                "leave nothing to train on; expected a sum below 1"
            )


def assign(group_id: str, shares: Shares, *, evaluation_groups: Collection[str] = frozenset()) -> Place:
    """The group's side. `evaluation_groups` are evaluation whatever their hash; give a set, for speed."""
    unit = _unit(group_id)
    if group_id in evaluation_groups or unit < shares.evaluation:
        return "evaluation"
    if unit < shares.evaluation + shares.judge:
        return "judge_validation" if _unit(f"judge_validation:{group_id}") < JUDGE_VALIDATION_SHARE else "judge"
    return "validation" if unit < shares.evaluation + shares.judge + shares.validation else "train"


def split_documents(documents: Iterable[Document], *, validation_share: float) -> tuple[list[Document], list[Document]]:
    """Training and validation documents. A document's text is its group, so equal texts are on the same side."""
    shares = Shares(evaluation=0.0, validation=validation_share)
    sides: dict[Place, list[Document]] = {"train": [], "validation": []}
    for document in documents:
        sides[assign(document.text, shares)].append(document)
    return sides["train"], sides["validation"]


def lowest_groups(group_ids: Collection[str], share: float) -> frozenset[str]:
    """The share of the groups with the lowest hashes, at least one and not all: for so few that no hash is below it.

    Empty for a share of 0 and for fewer than two groups.
    """
    distinct = sorted(set(group_ids), key=_unit)
    if not share or len(distinct) < 2:
        return frozenset()
    return frozenset(distinct[: min(max(1, round(share * len(distinct))), len(distinct) - 1)])


def becomes_instruction(group_id: str, share: float) -> bool:
    """Whether the chosen answers of this group's pairs become instructions; independent of the group's side."""
    return _unit(f"instruction:{group_id}") < share


def num_copies(unit: str, share: float) -> int:
    """How often the rows of a unit (a dialog's group, a document's text) occur where a source has this share.

    1.5 gives every row once, and a second time half of the units, by their hashes; 0.5 keeps half of them.
    """
    if share == 1:
        return 1
    complete = math.floor(share)
    return complete + (_unit(f"share:{unit}") < share - complete)


def _unit(text: str) -> float:
    """A number in [0, 1) from the hash of the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
