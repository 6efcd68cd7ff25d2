"""What people did, and how far they agree: Cohen's kappa on the winner, Krippendorff's ordinal alpha on the levels."""

import itertools
import statistics
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from data_schemas.people import Label
from engine.judging.comparison import Metric

NO_AGREEMENT = ("people_kappa", "people_alpha")


def cohen_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """(p_o - p_e) / (1 - p_e) of two raters' categories (Cohen, 1960).

    None where chance alone would make them agree always, and without pairs.
    """
    if not pairs:
        return None
    observed = sum(one == other for one, other in pairs) / len(pairs)
    ones, others = (Counter(pair[place] for pair in pairs) for place in (0, 1))
    expected = sum(ones[category] * others[category] for category in ones) / len(pairs) ** 2
    return (observed - expected) / (1 - expected) if expected < 1 else None


def ordinal_alpha(units: Sequence[Sequence[int]]) -> float | None:
    """1 - D_o / D_e with ordinal distances (Krippendorff, 2011); a unit has the values of those who rated it.

    Units with one value are left out. None where no two values can differ.
    """
    units = [unit for unit in units if len(unit) > 1]
    values = sorted({value for unit in units for value in unit})
    if len(values) < 2:
        return None
    # Shapes: C = different values. coincidences_CC[c, k] counts pairs (c, k) inside units, each unit by 1 / (size - 1).
    place = {value: number for number, value in enumerate(values)}
    coincidences_CC = np.zeros((len(values), len(values)))
    for unit in units:
        for one, other in itertools.permutations(unit, 2):
            coincidences_CC[place[one], place[other]] += 1 / (len(unit) - 1)
    counts_C = coincidences_CC.sum(axis=1)
    middles_C = counts_C.cumsum() - counts_C / 2  # the distance of two values is what lies between their middles
    distances_CC = (middles_C[:, None] - middles_C[None, :]) ** 2
    expected_CC = np.outer(counts_C, counts_C) - np.diag(counts_C)
    disagreement = (coincidences_CC * distances_CC).sum() / ((expected_CC * distances_CC).sum() / (counts_C.sum() - 1))
    return float(1 - disagreement)


def agreement_metrics(labels: Sequence[Mapping[str, Label]]) -> dict[str, float | None]:
    """Cohen's kappa, the mean over pairs of people, and Krippendorff's alpha; `labels` are the labels of each row."""
    levels = [{name: level for name, label in row.items() if (level := label.level) is not None} for row in labels]
    names = sorted({name for row in levels for name in row})
    kappas = [
        cohen_kappa([(_sign(row[one]), _sign(row[other])) for row in levels if one in row and other in row])
        for one, other in itertools.combinations(names, 2)
    ]
    known = [kappa for kappa in kappas if kappa is not None]
    return {
        "people_kappa": sum(known) / len(known) if known else None,
        "people_alpha": ordinal_alpha([list(row.values()) for row in levels]),
    }


def _sign(level: int) -> int:
    return (level > 0) - (level < 0)


def people_metrics(labels: Mapping[str, Mapping[str, Label]]) -> dict[str, Metric]:
    """What people did, from the labels of each row: counts, speed, a preference for A, and agreement."""
    given = [label for row in labels.values() for label in row.values()]
    if not given:
        return {"people_rows": 0}
    decided = [label for label in given if label.verdict in ("one", "other")]
    return {
        "people_rows": len(labels),
        "people_labels": len(given),
        "people_skipped": sum(label.verdict == "skipped" for label in given),
        "people_ties": sum(label.verdict == "tie" for label in given),
        "people_edited": sum(label.edited is not None for label in given),
        "people_seconds_per_row": statistics.median(label.seconds for label in given),
        "people_prefer_first": share([label.verdict == label.first for label in decided]),
        **agreement_metrics(list(labels.values())),
    }


def share(holds: Sequence[bool]) -> float | None:
    """The share of what holds; None of nothing."""
    return sum(holds) / len(holds) if holds else None
