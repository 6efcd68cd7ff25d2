"""The rules that look at all kept rows of a table together: shares of phrases, and the mix of sources.

Needs no torch.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from data_schemas.curation_rules import is_mix
from data_schemas.errors import ConfigError, DataError
from data_schemas.stage_keys import MOST_LISTED
from data_schemas.text import nearest
from engine.curation.arguments import CurateArguments
from engine.curation.content import Kind, is_of_a_round
from engine.curation.mixing import mix_rows
from engine.curation.phrases import PhraseFinder, balance_phrases, overused_phrases
from engine.curation.table import Table

MIXED_KINDS: tuple[Kind, ...] = ("documents", "instructions")
log = logging.getLogger(__name__)


def drop_overused_phrases(table: Table, arguments: CurateArguments) -> None:
    """Drops the worst conversations with a phrase until at most `max_phrase_share` of them have it.

    Policy answers are those of rows from a step of the run (rejection sampling); all others are people's.
    """
    assert arguments.max_phrase_share is not None
    phrases = list(arguments.phrases)
    rows = list(table.kept())
    answers = {row: "\n".join(table.content(row).answers) for row in rows}
    if arguments.find_phrases:
        policy = [text for row, text in answers.items() if table.is_of_a_policy(row)]
        human = [text for row, text in answers.items() if not table.is_of_a_policy(row)]
        phrases += [found.phrase for found in overused_phrases(policy, human)] if policy and human else []
    finder = PhraseFinder(dict.fromkeys(phrases))
    carriers: dict[str, list[int]] = defaultdict(list)
    for row, text in answers.items():
        for phrase in finder.phrases_in(text):
            carriers[phrase].append(row)
    table.findings |= balance_phrases(
        carriers, max_share=arguments.max_phrase_share, ids=table.ids, quality=table.quality, excluded=table.findings
    )


def weights_of(arguments: CurateArguments) -> dict[str, float]:
    """The given weights, by source or tag. YAML reads a name of digits as a number."""
    return {str(name): weight for name, weight in (arguments.mix_weights or {}).items()}


def check_names_of_mix(tables: Sequence[Table], arguments: CurateArguments) -> None:
    """Raises ConfigError for a weight of a source or tag that no row has. Steps of rounds may be of later ones."""
    mixed = [table for table in tables if table.rows.kind in MIXED_KINDS]
    known = sorted({name for table in mixed for name in _names(table, arguments)})
    for name in weights_of(arguments):
        if name not in known and not (arguments.mix_by == "source" and is_of_a_round(name)):
            hint = nearest(name, known)
            raise ConfigError(f"mix_weights: no row has the {arguments.mix_by} {name!r}; known: {_listed(known)}{hint}")


def _names(table: Table, arguments: CurateArguments) -> list[str]:
    """The source or the tag of each row, which a mix weighs."""
    names = table.tags if arguments.mix_by == "tag" else table.sources
    return [name or "none" for name in names]


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join([*listed[:MOST_LISTED], *(["…"] if len(listed) > MOST_LISTED else [])])


def mix(table: Table, arguments: CurateArguments) -> None:
    """Chooses how often each kept row is written, where the keys of the mix ask for it.

    Rows that the mix leaves out are not dropped by a rule. Raises DataError where it leaves out all.
    """
    budget = arguments.mix_words if table.unit == "words" else arguments.mix_tokens
    if not is_mix(vars(arguments)):
        return
    rows = list(table.kept())
    names = _names(table, arguments)
    mixed = mix_rows(
        [names[row] for row in rows],
        table.size_N[rows].tolist(),
        ids=[table.ids[row] for row in rows],
        weights=weights_of(arguments),
        temperature=arguments.mix_temperature,
        max_epochs=arguments.max_epochs,
        token_budget=budget,
        unit=table.unit,
        seed=arguments.seed,
    )
    if rows and not mixed.copies.any():
        size = f"mix_{table.unit}={budget} is too small for a row" if budget else "all weights are 0"
        raise DataError(
            f"the mix of {table.rows.kind} has none of the {len(rows)} rows: {size}; expected a larger "
            f"mix_{table.unit}, or a weight above 0 for one of {_listed(line.source for line in mixed.table)}"
        )
    changed = np.flatnonzero(mixed.copies != 1)
    table.copies = {rows[place]: int(mixed.copies[place]) for place in changed}
    table.mix = mixed.table
    for line in table.mix:
        log.info("mix of %s: %s: %s", table.rows.kind, line.source, line)
