"""The run as a graph: a column for what comes before the rounds and one for each round, an arrow for each input."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from pipeline.report.page.facts import StepFacts
from pipeline.report.page.svg import words
from pipeline.report.rounds import number

NODE_WIDTH, NODE_HEIGHT = 150, 40  # pixels
GAP_X, GAP_Y, MARGIN = 44, 16, 10
LEFT = 32  # of the first column: room for the arrows around its boxes
MAX_BOW = 40  # of such an arrow, in pixels; it reaches three quarters of them
MAX_LABEL = 21  # characters of a step's name in its box


@dataclass(frozen=True)
class Place:
    x: int
    y: int

    @property
    def middle(self) -> int:
        return self.y + NODE_HEIGHT // 2


def graph(steps: Sequence[StepFacts]) -> Markup:
    """The graph. The arrows of a finished step are from its record, those of another one from the plan."""
    places = _places(steps)
    recorded = recorded_sources(steps)
    parts: list[str] = []
    for step in steps:
        sources = recorded.get(step.name) or step.entry.get("inputs", [])
        parts += [_arrow(source, step.name, places) for source in dict.fromkeys(sources) if source in places]
    parts += [_node(step, places[step.name]) for step in steps]
    width = MARGIN + max(place.x for place in places.values()) + NODE_WIDTH
    height = MARGIN * 2 + max(place.y for place in places.values()) + NODE_HEIGHT
    return Markup(
        f'<svg class="graph" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="The steps of the run and their inputs">{"".join(parts)}</svg>'
    )


def _places(steps: Sequence[StepFacts]) -> dict[str, Place]:
    """The box of every step: steps of a round are in one column, in the order of the plan."""
    rounds = list(dict.fromkeys(step.entry["round"] for step in steps))
    heights = dict.fromkeys(rounds, 0)
    places: dict[str, Place] = {}
    for step in steps:
        column = step.entry["round"]
        x = LEFT + rounds.index(column) * (NODE_WIDTH + GAP_X)
        places[step.name] = Place(x, MARGIN + heights[column] * (NODE_HEIGHT + GAP_Y))
        heights[column] += 1
    return places


def _arrow(source: str, target: str, places: Mapping[str, Place]) -> str:
    start, end = places[source], places[target]
    if start.x == end.x and end.y - start.y == NODE_HEIGHT + GAP_Y:
        x = start.x + NODE_WIDTH // 2
        path = f"M{x} {start.y + NODE_HEIGHT}V{end.y}"
    elif start.x == end.x:  # around the boxes between them, on the left
        bow = start.x - min(8 + 4 * ((end.y - start.y) // (NODE_HEIGHT + GAP_Y)), MAX_BOW)
        path = f"M{start.x} {start.middle}C{bow} {start.middle} {bow} {end.middle} {end.x} {end.middle}"
    else:
        right, half = start.x + NODE_WIDTH, GAP_X // 2 + 8
        path = f"M{right} {start.middle}C{right + half} {start.middle} {end.x - half} {end.middle} {end.x} {end.middle}"
    return f'<path class="edge" data-from="{words(source)}" data-to="{words(target)}" d="{path}"/>'


def _node(step: StepFacts, place: Place) -> str:
    name = step.name.partition(".")[2] or step.name
    label = name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"
    state = step.entry["state"].replace(" ", "-")
    x, y = place.x, place.y
    return (
        f'<a href="#{words(anchor(step.name))}" data-step="{words(step.name)}"><g class="node {words(state)}">'
        f"<title>{words(step.name)}: {words(step.entry['state'])}</title>"
        f'<rect x="{x}" y="{y}" width="{NODE_WIDTH}" height="{NODE_HEIGHT}" rx="5"/>'
        f'<rect class="state" x="{x}" y="{y}" width="5" height="{NODE_HEIGHT}" rx="2"/>'
        f'<text x="{x + 12}" y="{y + 17}">{words(label)}</text>'
        f'<text class="small" x="{x + 12}" y="{y + 32}">{words(_figure(step))}</text></g></a>'
    )


def _figure(step: StepFacts) -> str:
    """The most telling number of a step, for its box; its state where it has none."""
    metrics = step.entry["metrics"]
    if step.entry["stage"] == "evaluate_policy" and metrics.get("judge_mean") is not None:
        gate = f", {metrics['gate']}" if metrics.get("gate") else ""
        return f"judge {number(metrics['judge_mean'])}{gate}"
    for name, unit in _FIGURES:
        if metrics.get(name) is not None:
            return f"{unit} {number(metrics[name])}"
    return step.entry["state"]


_FIGURES = (
    ("eval_accuracy", "accuracy"),
    ("eval_rewards/accuracies", "accuracy"),
    ("eval_reward", "reward"),
    ("eval_loss", "eval loss"),
    ("winners", "winners"),
    ("pairs", "pairs"),
    ("prompts.train", "prompts"),
)


def anchor(step: str) -> str:
    """The name of a step's details in the page."""
    return "step-" + "".join(letter if letter.isalnum() else "-" for letter in step)


def recorded_sources(steps: Iterable[StepFacts]) -> dict[str, list[str]]:
    """By step, the steps whose folders its record names as inputs: of "the best policy so far", the policy it was."""
    names = {step.entry["folder"]: step.name for step in steps if step.entry["folder"]}
    sources: dict[str, list[str]] = {}
    for step in steps:
        parts = (Path(path.strip()).parts for given in _inputs(step).values() for path in given.split(","))
        found = (names[part] for path in parts for part in path if part in names)
        sources[step.name] = [name for name in found if name != step.name]
    return sources


def _inputs(step: StepFacts) -> Mapping[str, str]:
    return step.record.inputs if step.record else {}
