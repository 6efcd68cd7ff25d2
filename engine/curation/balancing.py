"""The rules that look at all kept rows of a table together: shares of phrases, and the mix of sources.

Needs no torch.
"""

import logging
from collections import defaultdict

import numpy as np

from engine.curation.arguments import CurateArguments
from engine.curation.mixing import mix_rows
from engine.curation.phrases import PhraseFinder, balance_phrases, overused_phrases
from engine.curation.table import Table

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


def mix(table: Table, arguments: CurateArguments) -> None:
    """Chooses how often each kept row is written, where the keys of the mix ask for it.

    Rows that the mix leaves out are not dropped by a rule.
    """
    budget = arguments.mix_words if table.unit == "words" else arguments.mix_tokens
    if not arguments.mix_weights and not budget and arguments.mix_temperature == 1:
        return
    rows = list(table.kept())
    names = table.tags if arguments.mix_by == "tag" else table.sources
    mixed = mix_rows(
        [names[row] or "none" for row in rows],
        table.size_N[rows].tolist(),
        ids=[table.ids[row] for row in rows],
        weights={name: 1.0 if weight is None else weight for name, weight in (arguments.mix_weights or {}).items()},
        temperature=arguments.mix_temperature,
        max_epochs=arguments.max_epochs,
        token_budget=budget,
        unit=table.unit,
        seed=arguments.seed,
    )
    changed = np.flatnonzero(mixed.copies != 1)
    table.copies = {rows[place]: int(mixed.copies[place]) for place in changed}
    table.mix = mixed.table
    for line in table.mix:
        log.info("mix of %s: %s: %s", table.rows.kind, line.source, line)
