"""The run's one split: which side a dialog is on is decided by the hash of its group alone.

So a row's side depends on no other row: rows may be added, reordered or come again in another file, and none moves.
Evaluation comes first on the line, so growing another share never moves a dialog out of evaluation.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from data_schemas.errors import ConfigError

Place = Literal["evaluation", "judge", "judge_validation", "validation", "train"]

JUDGE_VALIDATION_SHARE = 0.15  # of the judge's groups


@dataclass(frozen=True)
class Shares:
    """Shares of all groups; the rest is training."""

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
    """The group's side. `evaluation_groups`, a set, are evaluation whatever their hash and wherever they come from."""
    unit = _unit(group_id)
    if group_id in evaluation_groups or unit < shares.evaluation:
        return "evaluation"
    if unit < shares.evaluation + shares.judge:
        return "judge_validation" if _unit(f"judge_validation:{group_id}") < JUDGE_VALIDATION_SHARE else "judge"
    return "validation" if unit < shares.evaluation + shares.judge + shares.validation else "train"


def becomes_instruction(group_id: str, share: float) -> bool:
    """Whether the chosen dialogs of this group of pairs serve as instructions; independent of the group's side."""
    return _unit(f"instruction:{group_id}") < share


def _unit(text: str) -> float:
    """A number in [0, 1) from the hash of the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
