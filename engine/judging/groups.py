"""An evaluation's numbers by group of prompts, as by the capability that the prompts' tags name.

A group's numbers have the names `<kind>/<group>/<metric>`, as `tag/math/score_gain_vs_best_low`. Each is the mean over
the group's prompts with its 95 % bootstrap interval; comparisons are paired by prompt. A group of less than MIN_PROMPTS
prompts has means without intervals, as a bootstrap of few values is too narrow, and the gate does not see it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from data_schemas.errors import ConfigError
from data_schemas.intervals import paired_interval
from data_schemas.rows import Prompt
from engine.judging.comparison import Metric, wins
from engine.runtime import notices

# Shapes: P = prompts, K = answers to each prompt.
GroupKind = Literal["tag"]
MIN_PROMPTS = 10  # of a group with intervals
UNTAGGED = "untagged"
log = logging.getLogger(__name__)


def groups_of(tags_P: Sequence[str], kind: GroupKind = "tag") -> dict[str, np.ndarray]:
    """The prompts of each tag, as indices by `tag/<tag>`. Empty where no prompt has a tag."""
    if not any(tags_P):
        return {}
    names_P = np.array([tag or UNTAGGED for tag in tags_P], dtype=object)
    return {f"{kind}/{name}": np.flatnonzero(names_P == name) for name in sorted(set(names_P))}


def values_by_prompt(
    judge_PK: np.ndarray, points: Mapping[str, np.ndarray], earlier: Mapping[str, np.ndarray | None]
) -> dict[str, np.ndarray]:
    """What is compared, by the metric's name, each [P]; nan for a prompt without a verdict.

    `points` are an LLM judge's, against each other policy; without them, `earlier` are the other policies' scores.
    """
    judged_PK = ~np.isnan(judge_PK)
    values = {"judge_mean": _mean(judge_PK, judged_PK)}
    for name, points_PK in points.items():
        rate_P = _mean(points_PK, ~np.isnan(points_PK))
        values |= {f"win_rate_vs_{name}": rate_P, f"score_gain_vs_{name}": rate_P - 0.5}
    for name, other_PK in earlier.items() if not points else ():
        if other_PK is not None:
            values[f"win_rate_vs_{name}"] = wins(judge_PK, other_PK)
            values[f"score_gain_vs_{name}"] = (judge_PK - other_PK).mean(axis=1)
    return values


def group_metrics(
    groups: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray], *, seed: int
) -> dict[str, Metric]:
    """The numbers of each group: its prompts, and the mean of each value with its interval."""
    metrics: dict[str, Metric] = {}
    for group, members in groups.items():
        metrics[f"{group}/prompts"] = len(members)
        for name, values_P in values.items():
            judged = values_P[members][~np.isnan(values_P[members])]
            if len(judged) >= MIN_PROMPTS:
                mean, low, high = paired_interval(judged, seed=seed)
                metrics |= {f"{group}/{name}": mean, f"{group}/{name}_low": low, f"{group}/{name}_high": high}
            elif len(judged):
                metrics[f"{group}/{name}"] = float(judged.mean())
    return metrics


def check_tags(prompts: Sequence[Prompt], max_tag_fall: float | None) -> None:
    """Raises ConfigError for a rule by tag where no tag has enough prompts; warns of the tags that it does not see."""
    if max_tag_fall is None:
        return
    sizes = {name.partition("/")[2]: len(members) for name, members in groups_of([row.tag for row in prompts]).items()}
    few = [name for name, size in sizes.items() if size < MIN_PROMPTS]
    if len(few) == len(sizes):
        raise ConfigError(
            f"gate_max_tag_fall={max_tag_fall:g}: no tag has {MIN_PROMPTS} of the {len(prompts)} evaluation prompts or "
            "more; give the prompts a column tag, or leave the rule out"
        )
    if few:
        notices.warn(log, "gate_max_tag_fall: %s: less than %d prompts, not checked", ", ".join(few), MIN_PROMPTS)


def lowest_gains(metrics: Mapping[str, Metric], kind: GroupKind) -> Iterator[tuple[str, float, float]]:
    """Each group of a kind that has intervals: its name, its gain over the best policy so far, and the gain's lower
    bound."""
    suffix = "/score_gain_vs_best_low"
    for name, low in metrics.items():
        if name.startswith(f"{kind}/") and name.endswith(suffix) and isinstance(low, int | float):
            gain = metrics[name.removesuffix("_low")]
            assert isinstance(gain, int | float), "group_metrics writes both"
            yield name.removeprefix(f"{kind}/").removesuffix(suffix), float(gain), float(low)


def _mean(values_PK: np.ndarray, is_there_PK: np.ndarray) -> np.ndarray:
    """The mean over each prompt's values that are there; nan where there is none."""
    counts_P = is_there_PK.sum(axis=1)
    sums_P = np.where(is_there_PK, values_PK, 0.0).sum(axis=1)
    return np.where(counts_P > 0, sums_P / np.maximum(counts_P, 1), np.nan)
