"""The rules that look at one row, in the order in which they are applied: a user's own, then those of curation.

Needs no torch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_schemas.errors import ConfigError
from data_schemas.files import digest
from data_schemas.reading import read_prompts
from data_schemas.sources import Source, SourceValue
from data_schemas.text import shown
from engine.curation.analysis import RowRule
from engine.curation.arguments import CurateArguments
from engine.curation.contamination import MAX_COVERED, EvaluationIndex
from engine.curation.content import Content, Finding, Kind, RawRow, Rule, content_of
from engine.curation.dialog_rules import dialog_rules
from engine.curation.document_rules import document_rules
from engine.curation.dropping import Marks
from engine.curation.language import language_rules
from engine.curation.table import Table
from engine.runtime.functions import find_function, function_hash

# The keys that decide what the rules for single rows find.
ROW_KEYS = (
    "row_rules",
    "document_rules",
    "dialog_rules",
    "thresholds",
    "languages",
    "contamination_rules",
    "contaminated_share",
    "near_duplicates",
    "mask_personal_data",
)


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


def marks_of(reference: str, table: Table) -> Marks:
    """The marks that a user's function gives rows of the table; nan for None.

    Raises ConfigError where there is no such function, and, called, where it raises or returns something else.
    """
    function: Callable[[RawRow], Any] = find_function(reference)

    def mark_of(index: int) -> float:
        try:
            mark = function(table.row(index))
        except Exception as error:
            place = table.rows.users_place(index)
            raise ConfigError(f"{reference} raised {type(error).__name__}: {error}, on {place}") from None
        if mark is None:
            return math.nan
        if isinstance(mark, bool) or not isinstance(mark, int | float) or not math.isfinite(mark):
            place = table.rows.users_place(index)
            raise ConfigError(f"{reference} returned {shown(mark)}; expected a number, or None, on {place}")
        return float(mark)

    return mark_of


def evaluation_sets(arguments: CurateArguments) -> EvaluationIndex | None:
    """The prompts of a curation's evaluation sets. None where there is none."""
    given = [*(arguments.evaluation_prompts or []), *(arguments.decontaminate_against or [])]
    return evaluation_index(given, max_covered=arguments.contaminated_share)


def evaluation_index(given: Sequence[SourceValue], *, max_covered: float = MAX_COVERED) -> EvaluationIndex | None:
    """The prompts of these files, by the name of their file; files of one name are one set. None for no file.

    Raises DataError for a file that has no prompts.
    """
    texts: dict[str, list[str]] = {}
    for value in given:
        prompts = read_prompts([value]).rows
        of_set = texts.setdefault(Path(Source.of(value).path).name.partition(".")[0], [])
        of_set += [content_of("prompts", prompt.model_dump()).prompt for prompt in prompts]
    return EvaluationIndex(texts, max_covered=max_covered) if texts else None


def settings_of(
    kind: Kind, arguments: CurateArguments, evaluation: EvaluationIndex | None, contract: Mapping[str, str] | None
) -> str:
    """A digest of all that the results of the rules for single rows depend on, besides the rows. `contract` is that of
    the tokenizer that counts tokens."""
    content = {
        "kind": kind,
        "keys": {name: getattr(arguments, name) for name in ROW_KEYS},
        "functions": {reference: function_hash(reference) for reference in arguments.row_rules or []},
        "evaluation": evaluation.digest if evaluation else "",
        "contract": contract,
        "languages": version("py3langid") if arguments.languages else "",
    }
    return digest(content)


def row_rules(kind: Kind, arguments: CurateArguments, evaluation: EvaluationIndex | None) -> list[RowRule]:
    """The rules that look at one row of a kind, in their order."""
    own = [own_rule(reference, find_function(reference)) for reference in arguments.row_rules or []]
    rules: list[Rule] = []
    if kind == "documents":
        known = document_rules(arguments.thresholds)
        is_on = {name for name in known if name.partition("_")[0] in arguments.document_rules}
    else:
        known = dialog_rules(arguments.thresholds, kind)
        is_on = set(arguments.dialog_rules)
    is_on |= set(arguments.thresholds or {})  # a threshold switches its rule on
    rules += [rule for name, rule in known.items() if name in is_on]
    if arguments.languages:
        rules += language_rules(arguments.languages, kind).values()
    if evaluation:
        rules.append(_all_of([evaluation.rules()[name] for name in arguments.contamination_rules]))
    return [*own, *map(of_content, rules)]


def _all_of(rules: Sequence[Rule]) -> Rule:
    """The first finding of these rules, all of which see every row: they count what they find."""

    def rule(content: Content) -> Finding | None:
        found = [one(content) for one in rules]
        return next(filter(None, found), None)

    return rule
