"""The rules that look at one row: those of a user. Needs no torch."""

from collections.abc import Callable
from typing import Any

from data_schemas.errors import ConfigError
from data_schemas.text import shown
from engine.curation.content import Content, Finding, RawRow
from engine.curation.table import RowRule


def own_rule(reference: str, function: Callable[[RawRow], Any]) -> RowRule:
    """A user's rule `module:function(row) -> reason | None`. Its name is the function's; the reason is its value.

    The rule raises ConfigError where the function raises, or returns something else.
    """
    name = reference.rpartition(":")[2]

    def rule(row: RawRow, _: Content) -> Finding | None:
        try:
            reason = function(row)
        except Exception as error:
            raise ConfigError(f"{reference} raised {type(error).__name__}: {error}") from None
        if reason is None:
            return None
        if not isinstance(reason, str) or not reason:
            raise ConfigError(f"{reference} returned {shown(reason)}; expected a reason as text, or None")
        return Finding(name, reason)

    return rule
