"""The rules that look at one row, in the order in which they are applied: a user's own, then those of curation.

Needs no torch.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from data_schemas.errors import ConfigError
from data_schemas.rows import Prompt
from data_schemas.text import shown
from engine.curation.contamination import EvaluationIndex
from engine.curation.content import Content, Finding, RawRow, Rule, content_of
from engine.curation.table import RowRule


def of_content(rule: Rule) -> RowRule:
    """The rule of a row's content as one of the row."""
    return lambda _, content: rule(content)


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


def evaluation_index(sets: Mapping[str, Iterable[Prompt]], *, max_covered: float) -> EvaluationIndex:
    """The prompts of evaluation sets, as training rows are compared with them: their user messages."""
    texts = {
        name: [content_of("prompts", prompt.model_dump()).prompt for prompt in prompts]
        for name, prompts in sets.items()
    }
    return EvaluationIndex(texts, max_covered=max_covered)
