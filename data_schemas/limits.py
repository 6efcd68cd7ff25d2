"""The numbers that a key may have: its declared limits, and those of every number of its type."""

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

Number = int | float
# For every key of the type. Larger ones overflow where a library keeps them in 32 or 64 bits.
LARGEST: Mapping[str, Number] = {"int": 2**63 - 1, "float": 3.4e38}


class Limits(BaseModel):
    """A range of finite numbers; `also` lists values outside of it that have a separate meaning, as max_steps=-1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum: Number | None = None
    above: Number | None = None
    maximum: Number | None = None
    below: Number | None = None
    whole_from_1: bool = False  # a number of steps, or below 1 a share of all steps
    also: tuple[Number, ...] = ()

    def __str__(self) -> str:
        parts = [
            *([f"{self.minimum} or more"] if self.minimum is not None else []),
            *([f"above {self.above}"] if self.above is not None else []),
            *([f"at most {self.maximum}"] if self.maximum is not None else []),
            *([f"below {self.below}"] if self.below is not None else []),
            *(["whole from 1 on"] if self.whole_from_1 else []),
            *([f"or {' or '.join(map(str, self.also))}"] if self.also else []),
        ]
        return ", ".join(parts)

    def holds(self, value: Number) -> bool:
        """Whether the value is allowed."""
        if value in self.also:
            return True
        return (
            _is_finite(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
            and not (self.whole_from_1 and value >= 1 and value != int(value))
        )


def _is_finite(value: Number) -> bool:
    return isinstance(value, int) or math.isfinite(value)


def problem_of(value: Number, limits: Limits | None) -> str:
    """What was expected in place of the value, as in `a number 1 or more`; the empty string where it is allowed."""
    if limits is not None and not limits.holds(value):
        return f"a number {limits}"
    kind = "int" if isinstance(value, int) else "float"
    if not (_is_finite(value) and abs(value) <= LARGEST[kind]):
        return f"a number from {-LARGEST[kind]} to {LARGEST[kind]}"
    return ""
