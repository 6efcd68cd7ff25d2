"""What a curation rule returns in place of a row that it does not keep."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dropped:
    """Nothing is kept, and why."""

    reason: str  # the rule's name, under which drops are counted
