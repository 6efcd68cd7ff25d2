"""The sections of the page: each figure with the table of its numbers and the files that they come from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report import calibration, terminal
from pipeline.report.page import svg
from pipeline.report.page.answers import Evaluated, win_rate
from pipeline.report.page.curves import MAX_ROWS
from pipeline.report.page.facts import StepFacts
from pipeline.report.page.svg import Group, Series
from pipeline.report.rounds import number
from pipeline.state.summary import Summary

TRAINING_SIZE = (275, 180)  # pixels of a chart: two steps with two charts each have room beside each other


@dataclass(frozen=True)
class Table:
    """A table of text cells. A cell of the first column is a heading of its row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A chart, what it shows in words, its numbers, and the files that hold them."""

    title: str
    picture: Markup
    table: Table
    files: Sequence[str]  # relative to the run's folder
    note: str = ""


def over_kl(summary: Summary, files: Mapping[str, str]) -> list[Figure]:
    """The means of judge and proxy over the square root of the KL divergence (Gao et al., arXiv 2210.10760)."""
    rows = [row for row in summary["rounds"] if isinstance(row["judge_mean"], int | float)]
    first = next((_number(row["judge_mean"]) for row in rows), None)
    judge, proxy, gains, table = [], [], [], []
    for row in rows:
        # The first policy is its own reference.
        kl = 0.0 if row is rows[0] and row["kl_to_first"] is None else _number(row["kl_to_first"])
        if kl is None or first is None:
            continue
        x, label = math.sqrt(max(0.0, kl)), str(row["policy"] if row["round"] is None else row["round"])
        mean = _number(row["judge_mean"]) or 0.0
        judge.append((x, mean, label))
        low, high = _number(row.get("score_gain_vs_first_low")), _number(row.get("score_gain_vs_first_high"))
        gains.append((first + low, first + high) if low is not None and high is not None else (mean, mean))
        if (proxy_mean := _number(row["proxy_mean"])) is not None:
            proxy.append((x, proxy_mean, label))
        table.append([str(row["policy"]), f"{x:.3f}", number(row["judge_mean"]), number(row["proxy_mean"])])
    if len(judge) < 2:
        return []
    numbers = Table(("policy", "√KL to the first", "judge's mean", "proxy's mean"), table)
    sources = list(files.values())
    figures = [
        Figure(
            "Judge's mean over √KL",
            _scatter(judge, "judge's mean", colour=0, intervals=gains),
            numbers,
            sources,
            "A label is a round. The bars are the 95 % interval of the gain over the first policy.",
        )
    ]
    if proxy:
        note = "Each round's reward model scores its own policy, so the levels of two rounds compare two models."
        figures.append(
            Figure("Proxy's mean over √KL", _scatter(proxy, "proxy's mean", colour=1), numbers, sources, note)
        )
    return figures


def _scatter(
    points: Sequence[tuple[float, float, str]],
    name: str,
    *,
    colour: int,
    intervals: Sequence[tuple[float, float]] = (),
) -> Markup:
    series = Series(
        name,
        [(x, y) for x, y, _ in points],
        colour,
        has_markers=True,
        intervals=intervals,
        labels=[label for _, _, label in points],
    )
    return svg.chart([series], title=f"{name} over √KL", x_label="√KL to the first policy (√nats)", y_label=name)


def training(steps: Sequence[StepFacts]) -> Iterator[tuple[StepFacts, list[Figure]]]:
    """Loss and accuracy of every training step, in training and on held-out rows, with the best step marked."""
    for step in steps:
        curves = step.curves
        if curves is None or curves.is_empty:
            continue
        metric = f"eval_{curves.second}" if curves.second else ""
        columns = ["step", "held-out loss", *([curves.second] if metric else [])]
        rows = [
            [f"{row['step']:g}", f"{row['eval_loss']:.4f}", *([number(row.get(metric))] if metric else [])]
            for row in curves.listed()
        ]
        files = [f"{step.entry['folder']}/metrics.jsonl"]
        note = curves.remark
        if curves.num_not_finite:
            note += f" {curves.num_not_finite} values that are not finite are left out."
        pictures = {"loss": (curves.loss, curves.eval_loss), curves.second: (curves.second_train, curves.second_eval)}
        figures = [
            Figure(
                name,
                _training_chart(step.name, name, train, held_out, best=curves.best_step),
                Table(columns, rows),
                files,
                note.strip() if name == "loss" else "",
            )
            for name, (train, held_out) in pictures.items()
            if train or held_out
        ]
        yield step, figures


def _training_chart(
    step: str, name: str, train: Sequence[svg.Point], held_out: Sequence[svg.Point], *, best: float | None
) -> Markup:
    few = len(held_out) <= MAX_ROWS
    series = [Series("in training", train, 5), Series("held-out rows", held_out, 0, has_markers=few)]
    return svg.chart(
        series, title=f"{name} of {step}", x_label="training step", y_label=name, mark=best, size=TRAINING_SIZE
    )


def distributions(evaluations: Sequence[Evaluated]) -> list[Figure]:
    """How the judge's scores, the proxy's scores and the lengths of answers are distributed, by policy."""
    measures = {
        "Judge's scores": ("score", [one.scores for one in evaluations]),
        "Proxy's scores": ("reward", [one.proxies for one in evaluations]),
        "Lengths of answers": ("tokens", [one.lengths for one in evaluations]),
    }
    figures = []
    for title, (unit, values_by_policy) in measures.items():
        groups = [
            Group(one.policy, values, colour)
            for colour, (one, values) in enumerate(zip(evaluations, values_by_policy, strict=True))
            if values
        ]
        if picture := svg.histograms(groups, title=f"{title} by policy", x_label=unit):
            rows = [[group.name, f"{len(group.values):,}", *_quantiles(group.values)] for group in groups]
            table = Table(("policy", "answers", "mean", "10 %", "median", "90 %"), rows)
            note = "The vertical line is the mean. Each row is scaled to its own highest bar."
            figures.append(Figure(title, picture, table, [one.file for one in evaluations], note))
    return figures


def _quantiles(values: Sequence[float]) -> list[str]:
    ordered = sorted(values)
    places = (int(share * (len(ordered) - 1)) for share in (0.1, 0.5, 0.9))
    return [f"{sum(ordered) / len(ordered):.3f}", *(f"{ordered[place]:.3f}" for place in places)]


@dataclass(frozen=True)
class Wins:
    """How often the policy of a row wins over that of a column."""

    policies: Sequence[str]
    rates: Sequence[Sequence[float | None]]  # a row for each policy; None on the diagonal

    def shade(self, rate: float) -> str:
        """The class of a cell's colour, in eleven steps from 0 to 1."""
        return f"w{round(rate * 10)}"


def wins(evaluations: Sequence[Evaluated]) -> Wins | None:
    """The win rates of every pair of judged policies; None where fewer than two are judged."""
    judged = [one for one in evaluations if one.scores]
    if len(judged) < 2:
        return None
    rates: list[list[float | None]] = [[None] * len(judged) for _ in judged]
    for row, policy in enumerate(judged):
        for column, other in enumerate(judged[:row]):
            rate = win_rate(policy, other)
            rates[row][column] = rate
            rates[column][row] = None if rate is None else 1 - rate
    return Wins([one.policy for one in judged], rates)


def calibration_table(steps: Sequence[StepFacts]) -> Table | None:
    """The table of `alignloop calibrate`; None where nobody has compared answers."""
    rows = calibration.rows([rater for step in steps for rater in step.raters])
    return Table(("rater", "step", *calibration.COLUMNS), rows) if rows else None


def dropped(steps: Sequence[StepFacts]) -> Table | None:
    """Rows that were not used, by step and reason; None where every row was."""
    rows = [[step.name, name, f"{count:,}"] for step in steps for name, count in step.dropped.items()]
    return Table(("step", "metric", "rows"), rows) if rows else None


def times(steps: Sequence[StepFacts]) -> Figure | None:
    """The seconds of every finished step, by part."""
    rows = [(step.name, _parts(step)) for step in steps if step.entry["seconds"]]
    picture = svg.bars(rows, title="Time of every step by part", x_label="s")
    if not picture:
        return None
    names = list(dict.fromkeys(name for _, parts in rows for name, _ in parts))
    table = [
        [label, *(_seconds(dict(parts).get(name)) for name in names), _seconds(sum(value for _, value in parts))]
        for label, parts in rows
    ]
    total = [_seconds(sum(dict(parts).get(name, 0.0) for _, parts in rows)) for name in names]
    everything = sum(value for _, parts in rows for _, value in parts)
    table.append(["all steps", *total, _seconds(everything)])
    files = [f"{step.entry['folder']}/outcome.json" for step in steps if step.entry["folder"] and step.seconds_by_part]
    return Figure("Seconds by step and part", picture, Table(("step", *names, "total"), table), files)


def costs(steps: Sequence[StepFacts]) -> Table | None:
    """What each finished step was estimated to need, beside what it took; None where no step was estimated."""
    rows = [
        [step.name, f"{cost['seconds']:.1f}", *terminal.cost_cells(cost)]
        for step in steps
        if (cost := step.entry.get("cost"))
    ]
    return Table(("step", "seconds", *terminal.COSTS), rows) if rows else None


def _parts(step: StepFacts) -> list[tuple[str, float]]:
    """The parts of a step's time; the rest is what passes outside of the stage's own parts."""
    parts = [(name, value) for name, value in step.seconds_by_part.items() if name != "other"]
    rest = max(0.0, step.entry["seconds"] - sum(value for _, value in parts))
    return [*parts, ("rest", rest)]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
