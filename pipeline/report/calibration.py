"""The judges, reward models and people of a run in one table, by what their steps have recorded.

`alignloop calibrate RUN` prints it, and the page of the run has it. COLUMNS says what its numbers mean.
"""

import itertools
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import MARKDOWN
from rich.table import Table
from rich.text import Text

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError, DataError
from pipeline.report.rounds import number
from pipeline.state.summary import Summary

NUM_BINS = 10  # of the confidence, from one half to 1
PRIOR_SD, NUM_STEPS = 5.0, 25  # of the slope, and of Newton's method
COLUMNS = {  # of the table -> what the number means
    "pairs": "compared pairs of answers",
    "accuracy": "share of the pairs with the same winner: of a reward model and the judge, of a judge and people",
    "error": "expected calibration error of sigmoid(difference of the rewards) in ten bins (arXiv 1706.04599)",
    "first": "share of the decisions for the answer that was shown first; 0.5 is neutral",
    "longer": "share of the decisions for the longer answer; 0.5 is neutral",
    "slope": "coefficient of tanh(length difference / its deviation) in a logistic model of decisions; 0 is neutral",
    "consistent": "share of the pairs with the same verdict in both orders",
    "ties": "share of the pairs without a winner",
    "kappa": "Cohen's kappa of people, on the winner",
    "alpha": "Krippendorff's ordinal alpha of people, on the strengths",
}


@dataclass(frozen=True)
class Pair:
    """Two answers, and how much better each of two raters finds the first one; 0 is a tie."""

    length_difference: int  # in characters
    judged: float
    reward: float | None = None


@dataclass(frozen=True)
class Rater:
    """A row of the table."""

    who: str
    step: str
    numbers: Mapping[str, object]  # by column


def raters_of(summary: Summary, folder: Path) -> list[Rater]:
    """The raters of a run in the order of its steps.

    Raises ConfigError where nobody compared anything, DataError for a file that is not as its step wrote it.
    """
    found: list[Rater] = []
    for step in summary["steps"]:
        record = Artifact.read(folder / step["folder"]) if step["folder"] else None
        if record is not None and step["folder"]:
            found += raters_of_step(step["name"], folder / step["folder"], record)
    if not found:
        raise ConfigError(f"{folder}: no judge, reward model or person has compared answers in a finished step yet")
    return found


def raters_of_step(step: str, folder: Path, record: Artifact) -> list[Rater]:
    """The raters of a finished step. Raises DataError for a file that is not as the step wrote it."""
    try:
        return list(_of_step(step, folder, record))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{folder} is not as its step wrote it ({error}); see verify") from None


def _of_step(step: str, folder: Path, record: Artifact) -> Iterator[Rater]:
    metrics, agree = record.metrics, record.metrics.get("people_agree_with_model")
    pairs = list(_answer_pairs(folder, record))
    compared = _lines(folder, record, "comparisons")
    for prefix in ("annotator", "judge"):
        if metrics.get(f"{prefix}_comparisons"):
            found = [
                Pair(len(one["one"]) - len(one["other"]), 2 * one["points_of_one"] - 1)
                for one in compared
                if one["points_of_one"] is not None
            ]
            numbers: dict[str, object] = {
                "pairs": metrics[f"{prefix}_comparisons"],
                "accuracy": agree,
                "first": metrics.get(f"{prefix}_prefers_first"),
                "longer": metrics.get(f"{prefix}_prefers_longer"),
                "slope": length_slope([(one.length_difference, one.judged) for one in found]),
                "consistent": metrics.get(f"{prefix}_position_consistency"),
                "ties": metrics.get(f"{prefix}_tie_rate"),
            }
            yield Rater(f"{metrics.get(prefix)}", step, numbers)
    if pairs:
        yield Rater(
            f"{metrics.get('judge')}", step, _of_scores([one.judged for one in pairs], pairs) | {"accuracy": agree}
        )
    if rewarded := [one for one in pairs if one.reward is not None and one.judged]:
        numbers = _of_scores([one.reward or 0.0 for one in rewarded], rewarded)
        yield Rater("reward model", step, numbers | accuracy_and_error(rewarded))
    if labels := metrics.get("people_labels"):
        ties = float(metrics.get("people_ties") or 0) / float(labels)
        yield Rater(
            "people",
            step,
            {
                "pairs": labels,
                "first": metrics.get("people_prefer_first"),
                "ties": ties,
                "kappa": metrics.get("people_kappa"),
                "alpha": metrics.get("people_alpha"),
            },
        )


def _answer_pairs(folder: Path, record: Artifact) -> Iterator[Pair]:
    """Each two answers to a prompt that a judge has scored one by one; with the rewards where there are some."""
    if record.metrics.get("judge_comparisons") is not None or "answers" not in record.outputs:
        return
    rewards: list[float] = []
    if "proxy_scores" in record.outputs:
        rewards = json.loads((folder / record.outputs["proxy_scores"]).read_text(encoding="utf-8"))
    start = 0
    for row in _lines(folder, record, "answers"):
        candidates = row["candidates"]
        for i, j in itertools.combinations(range(len(candidates)), 2):
            one, other = candidates[i], candidates[j]
            if one.get("score") is not None and other.get("score") is not None:
                reward = rewards[start + i] - rewards[start + j] if rewards else None
                yield Pair(len(one["text"]) - len(other["text"]), one["score"] - other["score"], reward)
        start += len(candidates)


def _lines(folder: Path, record: Artifact, output: str) -> list[dict]:
    if output not in record.outputs:
        return []
    text = (folder / record.outputs[output]).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _of_scores(differences: Sequence[float], pairs: Sequence[Pair]) -> dict[str, object]:
    decided = [
        (difference > 0) == (pair.length_difference > 0)
        for difference, pair in zip(differences, pairs, strict=True)
        if difference and pair.length_difference
    ]
    decisions = [(pair.length_difference, _sign(value)) for value, pair in zip(differences, pairs, strict=True)]
    return {
        "pairs": len(pairs),
        "longer": sum(decided) / len(decided) if decided else None,
        "slope": length_slope(decisions),
        "ties": sum(not value for value in differences) / len(differences),
    }


def accuracy_and_error(pairs: Sequence[Pair]) -> dict[str, object]:
    """How often the sign of the reward difference is the judge's, and the expected calibration error: over bins of the
    confidence c = sigmoid(|difference|), the mean distance of c from the share that is right, by their sizes."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for pair in pairs:
        size = abs(pair.reward or 0.0)
        confidence = 1 / (1 + math.exp(-size))
        right = 0.5 if not pair.reward else float((pair.reward > 0) == (pair.judged > 0))
        place = min(NUM_BINS - 1, int((confidence - 0.5) * 2 * NUM_BINS))
        bins.setdefault(place, []).append((confidence, right))
    everything = [one for inside in bins.values() for one in inside]
    gaps = (abs(sum(confidence - right for confidence, right in inside)) for inside in bins.values())
    return {"accuracy": statistics.fmean(right for _, right in everything), "error": sum(gaps) / len(everything)}


def length_slope(decisions: Sequence[tuple[float, float]]) -> float | None:
    """The coefficient b of P(first wins) = sigmoid(b tanh(d / sd)) for (length difference d, decision 1, 0 or -1), with
    a weak Gaussian prior. None where no lengths differ."""
    deviation = math.sqrt(statistics.fmean(d * d for d, _ in decisions)) if decisions else 0.0
    if not deviation:
        return None
    rows = [(math.tanh(d / deviation), (1 + decision) / 2) for d, decision in decisions]
    slope = 0.0
    for _ in range(NUM_STEPS):
        won = [0.5 * (1 + math.tanh(slope * x / 2)) for x, _ in rows]
        gradient = sum((y - p) * x for (x, y), p in zip(rows, won, strict=True)) - slope / PRIOR_SD**2
        curvature = sum(p * (1 - p) * x * x for (x, _), p in zip(rows, won, strict=True)) + 1 / PRIOR_SD**2
        step = max(-2.0, min(2.0, gradient / curvature))
        slope += step
        if abs(step) < 1e-9:
            break
    return slope


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def rows(raters: Sequence[Rater]) -> list[list[str]]:
    """The cells of a table: who, of which step, and a number for each of COLUMNS; `-` is one that it does not have."""
    return [[one.who, one.step, *(number(one.numbers.get(column)) for column in COLUMNS)] for one in raters]


def table(raters: Sequence[Rater]) -> Table:
    """The table that `alignloop calibrate` prints."""
    made = Table("rater", "step", *COLUMNS, box=MARKDOWN)
    for row in rows(raters):
        made.add_row(*map(Text, row))
    return made
