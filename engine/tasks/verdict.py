"""Whether fine-tuning is needed: candidates beside each other, in a table and one sentence.

The win rate is that of a candidate's answers against the baseline's answers to the same instructions, ties as half. Its
interval is a bootstrap over instructions, or for tasks whose answers are right or wrong Tango's interval (grades.py).
A training pays off after N answers, where N = its cost / (cost of an answer without it - cost of an answer with it).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.tasks.candidates import Measures
from engine.tasks.grades import Interval

Compare = Callable[[str, str], Interval]  # the win rate of one candidate over another
HEADS = ("candidate", "score", "wins", "characters", "seconds", "cost / 1,000", "pays off after")


@dataclass(frozen=True)
class Assessed:
    """A candidate with everything that was found out about it."""

    name: str
    is_endpoint: bool
    training_cost: float | None  # None: it is not trained
    score: float | None  # mean of its answers, where the judge scores single ones
    wins: Interval | None  # against the baseline; None: this is the baseline
    characters: float  # of an answer, mean
    measures: Measures


def best(candidates: Sequence[Assessed]) -> Assessed | None:
    return max(candidates, key=lambda one: one.wins.mean if one.wins else 0.5, default=None)


def untrained(candidates: Sequence[Assessed]) -> list[Assessed]:
    return [one for one in candidates if one.training_cost is None]


def answers_to_pay_off(trained: Assessed, other: Assessed | None) -> float | None:
    """After how many answers a training has saved its cost beside another candidate; infinite where it never does, None
    where a cost is not known."""
    if trained.training_cost is None or other is None:
        return None
    before, after = other.measures.money, trained.measures.money
    if before is None or after is None:
        return None
    return trained.training_cost / (before - after) if before > after else float("inf")


def rows(candidates: Sequence[Assessed]) -> list[tuple[str, ...]]:
    """The cells of the table, one row for each candidate, under HEADS."""
    other = best(untrained(candidates))
    return [
        (
            one.name,
            _number(one.score),
            f"{one.wins.mean:.3f} [{one.wins.low:.2f}, {one.wins.high:.2f}]" if one.wins else "baseline",
            f"{one.characters:.0f}",
            _number(one.measures.latency, digits=2),
            _money(one.measures.money, times=1000),
            _count(answers_to_pay_off(one, other)),
        )
        for one in candidates
    ]


def verdict(candidates: Sequence[Assessed], compare: Compare) -> str:
    """One sentence: what training gains over the best candidate without it, or whether it could gain anything."""
    without = best(untrained(candidates))
    trained = best([one for one in candidates if one.training_cost is not None])
    if without is None or trained is None:
        return _without_training(candidates, compare)
    wins = compare(trained.name, without.name)
    against = f"{trained.name} wins {_percent(wins)} against {without.name}, the best candidate without training"
    costs = _costs(trained, without)
    if wins.low > 0.5:
        return f"Training is worth it: {against}{costs}."
    if wins.high < 0.5:
        return f"Training is not worth it: {against}{costs}."
    return f"No gain of training is shown: {against}, an interval that contains one half{costs}."


def _costs(trained: Assessed, other: Assessed) -> str:
    count = answers_to_pay_off(trained, other)
    if count is None:
        return ""
    if count == float("inf"):
        return "; its answers cost no less, so the cost of training is not won back"
    return f"; its lower cost pays for the training after {_count(count)} answers"


def _without_training(candidates: Sequence[Assessed], compare: Compare) -> str:
    own = best([one for one in candidates if not one.is_endpoint])
    served = best([one for one in candidates if one.is_endpoint])
    if own is None or served is None:
        only = best(candidates)
        assert only is not None, "an assessment has two candidates"
        found = f"no candidate wins more often than {only.name}, the baseline"
        if only.wins:
            found = f"{only.name} has the most wins ({_percent(only.wins)} against the baseline)"
        return (
            f"This does not show whether training helps: {found}, and no candidate is trained or a larger model to "
            "reach; add one of these."
        )
    wins = compare(served.name, own.name)
    against = f"{served.name} wins {_percent(wins)} against {own.name}, the best model of your own"
    if wins.low > 0.5:
        return f"There is room for training: {against}."
    return f"Prompting may be enough: {against}, so it is not shown to be better."


def _percent(wins: Interval) -> str:
    return f"{wins.mean:.0%} [{wins.low:.0%}, {wins.high:.0%}]"


def _number(value: float | None, *, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _money(value: float | None, *, times: int) -> str:
    """With two decimals, or with two digits where that would show less of them."""
    if value is None:
        return "-"
    return f"{value * times:,.2f}" if value * times >= 0.1 or not value else f"{value * times:.2g}"


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    return "never" if value == float("inf") else f"{value:,.0f}"


def text_table(cells: Sequence[Sequence[str]], heads: Sequence[str] = HEADS) -> str:
    """A Markdown table whose columns are aligned."""
    widths = [max(len(row[place]) for row in [heads, *cells]) for place in range(len(heads))]
    lines = [heads, ["-" * width for width in widths], *cells]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
