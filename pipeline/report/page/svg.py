"""Charts as inline SVG: text that can be selected, printed and read aloud, without a script.

Colours are classes (`c0` … `c7`), which the page's style sheet gives a colour-blind palette in light and dark. Every
line also has its own dashes and its own marker, so that it can be told apart without colour.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from data_schemas.text import printable
from pipeline.report.page.curves import Point

NUM_COLOURS = 8
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 12, 40  # margins of a chart, in pixels


@dataclass(frozen=True)
class Series:
    """A line, or separate markers, of a chart."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    is_line: bool = True
    has_markers: bool = False
    intervals: Sequence[tuple[float, float]] = ()  # low and high of every point
    labels: Sequence[str] = ()  # of every point


@dataclass(frozen=True)
class Group:
    """The values of one histogram."""

    name: str
    values: Sequence[float]
    colour: int


@dataclass(frozen=True)
class Axes:
    """The place of values in a chart."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int
    height: int
    x_ticks: Sequence[float] = ()
    y_ticks: Sequence[float] = ()
    margin: int = LEFT  # left of the chart

    @classmethod
    def around(cls, points: Sequence[Point], *, width: int, height: int) -> "Axes":
        """Axes with round ticks that hold all points."""
        x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), max(3, width // 85))
        y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), 4)
        return cls((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]), width, height, x_ticks, y_ticks)

    def x_of(self, x: float) -> float:
        share = (x - self.x[0]) / (self.x[1] - self.x[0])
        return round(self.margin + share * (self.width - self.margin - RIGHT), 1)

    def y_of(self, y: float) -> float:
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return round(self.height - BOTTOM - share * (self.height - TOP - BOTTOM), 1)


def words(text: str) -> Markup:
    """A text with its control characters visible, escaped for HTML."""
    return escape(printable(text))


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers, of which the first is at most `low` and the last at least `high`."""
    if low == high:
        low, high = low - (abs(low) / 10 or 0.5), high + (abs(high) / 10 or 0.5)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    distance = next((factor * power for factor in (1, 2, 5, 10) if factor * power >= rough), 10 * power)
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [round(number * distance, 12) for number in range(first, last + 1)]


def chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    mark: float | None = None,
    size: tuple[int, int] = (420, 230),
) -> Markup:
    """A chart of lines and markers; `mark` is an x value that is shown as a vertical line. Empty without points."""
    drawn = [one for one in series if one.points]
    every = [point for one in drawn for point in one.points]
    every += [(x, y) for one in drawn for (x, _), ends in zip(one.points, one.intervals, strict=False) for y in ends]
    if not every:
        return Markup()
    axes = Axes.around(every, width=size[0], height=size[1])
    parts = [*_frame(axes, x_label, y_label)]
    if mark is not None and axes.x[0] <= mark <= axes.x[1]:
        parts.append(f'<path class="mark" d="M{axes.x_of(mark)} {TOP}V{axes.height - BOTTOM}"/>')
    for one in drawn:
        parts += _draw(one, axes)
    return _svg(parts, title=title, width=axes.width, height=axes.height)


def _draw(series: Series, axes: Axes) -> Iterable[str]:
    colour = f"c{series.colour % NUM_COLOURS}"
    places = [(axes.x_of(x), axes.y_of(y)) for x, y in series.points]
    if series.is_line and len(places) > 1:
        yield f'<path class="line {colour}" d="M{"L".join(f"{x:g} {y:g}" for x, y in places)}"/>'
    for (x, _), (low, high) in zip(places, series.intervals, strict=False):
        yield f'<path class="error {colour}" d="M{x:g} {axes.y_of(low):g}V{axes.y_of(high):g}"/>'
    if series.has_markers or len(places) == 1:
        for number, ((x, y), value) in enumerate(zip(places, series.points, strict=True)):
            label = series.labels[number] if number < len(series.labels) else series.name
            hint = words(f"{label}: {value[1]:.4g} at {value[0]:.4g}")
            yield f'<circle class="dot {colour}" cx="{x:g}" cy="{y:g}" r="3.5"><title>{hint}</title></circle>'
            if series.labels:
                is_right = x > (axes.margin + axes.width) / 2
                place = f'x="{x - 6:g}" text-anchor="end"' if is_right else f'x="{x + 6:g}"'
                yield f'<text class="label" {place} y="{y - 6:g}">{words(label)}</text>'


def _frame(axes: Axes, x_label: str, y_label: str) -> Iterable[str]:
    right, bottom = axes.width - RIGHT, axes.height - BOTTOM
    for y in axes.y_ticks:
        yield f'<path class="grid" d="M{axes.margin} {axes.y_of(y):g}H{right}"/>'
        yield f'<text class="tick" x="{axes.margin - 6}" y="{axes.y_of(y) + 4:g}" text-anchor="end">{_number(y)}</text>'
    for x in axes.x_ticks:
        yield f'<text class="tick" x="{axes.x_of(x):g}" y="{bottom + 16}" text-anchor="middle">{_number(x)}</text>'
    yield f'<path class="axis" d="M{axes.margin} {bottom}H{right}"/>'
    center, middle = (axes.margin + right) / 2, (TOP + bottom) / 2
    for place, label in (
        (f"translate({center:g} {axes.height - 6})", x_label),
        (f"translate(12 {middle:g}) rotate(-90)", y_label),
    ):
        yield f'<text class="tick" transform="{place}" text-anchor="middle">{words(label)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 and value == int(value) else f"{value:.6g}"


def histograms(groups: Sequence[Group], *, title: str, x_label: str) -> Markup:
    """A histogram for each group, one below the other, on one x axis, with the mean marked. Empty without values."""
    every = [value for group in groups for value in group.values]
    if not every:
        return Markup()
    height_of_row, num_bins = 34, 40
    axis = ticks(min(every), max(every), 5)
    height = TOP + BOTTOM + height_of_row * len(groups)
    margin = max(LEFT, 16 + 6 * max(len(group.name) for group in groups))
    axes = Axes((axis[0], axis[-1]), (0, 1), 380, height, axis, margin=margin)
    parts = [*_frame(axes, x_label, "")]
    for number, group in enumerate(groups):
        name, values = group.name, group.values
        base = TOP + height_of_row * (number + 1)
        counts = _counts(values, axes.x, num_bins)
        tallest = max(counts) or 1
        path, width = [f"M{axes.margin} {base}"], (axes.width - axes.margin - RIGHT) / num_bins
        for count in counts:
            path.append(f"V{base - count / tallest * (height_of_row - 8):.1f}h{width:.2f}")
        parts.append(f'<path class="bars c{group.colour % NUM_COLOURS}" d="{"".join(path)}V{base}Z"/>')
        parts.append(f'<text class="tick" x="{axes.margin - 6}" y="{base - 4}" text-anchor="end">{words(name)}</text>')
        if values:
            mean = sum(values) / len(values)
            parts.append(
                f'<path class="mean" d="M{axes.x_of(mean)} {base - height_of_row + 8}V{base}"><title>'
                f"{words(f'{name}: mean {mean:.4g} of {len(values):,}')}</title></path>"
            )
    return _svg(parts, title=title, width=axes.width, height=axes.height)


def _counts(values: Sequence[float], ends: tuple[float, float], num_bins: int) -> list[int]:
    counts = [0] * num_bins
    for value in values:
        counts[min(num_bins - 1, int((value - ends[0]) / (ends[1] - ends[0]) * num_bins))] += 1
    return counts


def bars(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, title: str, x_label: str) -> Markup:
    """A horizontal bar for each row, stacked of parts. A part has the same colour in all rows. Empty without values."""
    longest = max((sum(value for _, value in parts) for _, parts in rows), default=0.0)
    if longest <= 0:
        return Markup()
    names = list(dict.fromkeys(name for _, parts in rows for name, _ in parts))
    height_of_row, left, width = 20, 190, 860
    scale = (width - left - 70) / longest
    drawn: list[str] = []
    for number, (label, parts) in enumerate(rows):
        top, x = TOP + number * height_of_row, float(left)
        drawn.append(f'<text class="tick" x="{left - 6}" y="{top + 12}" text-anchor="end">{words(label)}</text>')
        for name, value in parts:
            hint = words(f"{label}: {name} {value:,.1f} {x_label}")
            drawn.append(
                f'<rect class="part c{names.index(name) % NUM_COLOURS}" x="{x:.1f}" y="{top}" '
                f'width="{value * scale:.1f}" height="{height_of_row - 5}"><title>{hint}</title></rect>'
            )
            x += value * scale
        total = sum(value for _, value in parts)
        drawn.append(f'<text class="tick" x="{x + 5:.1f}" y="{top + 12}">{total:,.1f}</text>')
    return _svg(drawn, title=title, width=width, height=TOP + height_of_row * len(rows) + 6)


def _svg(parts: Iterable[str], *, title: str, width: int, height: int) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{words(title)}">'
        f"{''.join(parts)}</svg>"
    )
