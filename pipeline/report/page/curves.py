"""The curves of a training step, from its metrics.jsonl: loss and accuracy in training and on held-out rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_schemas.metrics import read_metrics

# An x value (the training step) and a y value.
Point = tuple[float, float]
MAX_POINTS = 240  # of a curve; a longer one keeps the smallest and the largest value of every stretch
MAX_ROWS = 30  # evaluations in the table of a step; of more, every n-th is listed, and the best and the last
# In training and on held-out rows; the first pair of which a step has a metric is shown.
SECOND_METRICS = (
    ("rewards/accuracies", "eval_rewards/accuracies"),
    ("accuracy", "eval_accuracy"),
    ("reward", "eval_reward"),
    ("mean_token_accuracy", "eval_mean_token_accuracy"),
)
OVERFITS = 0.01  # rise of the held-out loss above its minimum, relative to it, from which overfitting is reported


@dataclass(frozen=True)
class Curves:
    """What a training step has logged so far. Values that are not finite are left out and counted."""

    loss: Sequence[Point]
    eval_loss: Sequence[Point]
    second: str  # name of the second metric, as "rewards/accuracies"; empty if there is none
    second_train: Sequence[Point]
    second_eval: Sequence[Point]
    num_not_finite: int
    evaluations: Sequence[Mapping[str, float]]  # rows with `step`, the held-out loss and the second metric
    best_step: float | None  # the one whose model is saved; until that is known, with the lowest held-out loss

    @property
    def is_empty(self) -> bool:
        return not (self.loss or self.eval_loss)

    def listed(self) -> list[Mapping[str, float]]:
        """The evaluations for the table."""
        every = -(-len(self.evaluations) // MAX_ROWS)
        last = len(self.evaluations) - 1
        return [
            row
            for number, row in enumerate(self.evaluations)
            if number % every == 0 or number == last or row["step"] == self.best_step
        ]

    @property
    def remark(self) -> str:
        """Overfitting, or a held-out loss that did not fall, in a sentence; empty if there is neither."""
        if len(self.eval_loss) < 2:
            return ""
        (first, start), (last, end) = self.eval_loss[0], self.eval_loss[-1]
        best, lowest = min(self.eval_loss, key=lambda point: (point[1], point[0]))
        if self.second == "reward":  # of RL, whose loss is minus the reward of a few sampled answers
            return (
                f"The held-out reward never rose above its value at the start, {-start:.4g}." if best == first else ""
            )
        if best == first:
            return (
                f"The held-out loss never fell below its value at the start, {start:.4g}: the learning rate is too "
                "high, or what the rows teach is not what the held-out rows ask."
            )
        if best < last and end - lowest > OVERFITS * abs(lowest):
            return (
                f"The model overfits: the held-out loss was lowest at step {best:g} ({lowest:.4g}) and rose to "
                f"{end:.4g} by step {last:g}."
            )
        return ""


def read_curves(path: Path, *, saved_step: object = None) -> Curves:
    """The curves in a metrics.jsonl, which a running step may still be writing. A damaged line is left out.

    `saved_step` is the metric `best_step` of a finished step."""
    logged = _read(path)
    train, held_out = _by_step(logged, "loss"), _by_step(logged, "eval_loss")
    names = {name for _, name in logged}
    pair = next((pair for pair in SECOND_METRICS if names & set(pair)), ("", ""))
    second_eval = _by_step(logged, pair[1])
    evaluations = [
        {"step": step, "eval_loss": value} | ({pair[1]: second_eval[step]} if step in second_eval else {})
        for step, value in sorted(held_out.items())
    ]
    lowest = min(held_out, key=lambda step: (held_out[step], step), default=None)
    losses = [value for (_, name), value in logged.items() if name in ("loss", "eval_loss")]
    return Curves(
        loss=thinned(sorted(train.items())),
        eval_loss=thinned(sorted(held_out.items())),
        second=pair[0],
        second_train=thinned(sorted(_by_step(logged, pair[0]).items())),
        second_eval=thinned(sorted(second_eval.items())),
        num_not_finite=sum(isinstance(value, float) and not math.isfinite(value) for value in losses),
        evaluations=evaluations,
        best_step=next((step for step in held_out if step == saved_step), lowest),
    )


def _read(path: Path) -> dict[tuple[int, str], float]:
    try:
        return read_metrics(path)
    except OSError:  # the page shows the other steps
        return {}


def _by_step(logged: Mapping[tuple[int, str], float], name: str) -> dict[float, float]:
    """The finite values of a metric by step. Of a step that a resumed run logged again, the later one."""
    found = {step: value for (step, key), value in logged.items() if key == name}
    return {float(step): float(value) for step, value in found.items() if _is_number(step) and _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MAX_POINTS points: the smallest and the largest of every stretch, so that no spike disappears."""
    if len(points) <= MAX_POINTS:
        return list(points)
    num_stretches = MAX_POINTS // 2
    kept: list[Point] = []
    for number in range(num_stretches):
        stretch = points[number * len(points) // num_stretches : (number + 1) * len(points) // num_stretches]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept
