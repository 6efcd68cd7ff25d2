"""What the command prints: the tree of a plan, and the tables of a summary. Running steps are in live.py."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.box import MARKDOWN
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from data_schemas.stage_keys import stages
from data_schemas.text import printable
from pipeline.report import rounds
from pipeline.report.rounds import number
from pipeline.state.costs import Cost
from pipeline.state.pruning import UnneededFolder
from pipeline.state.run import Action, Decision, Run
from pipeline.state.samples import SampleAnswer
from pipeline.state.summary import Summary, TrainedModel
from pipeline.state.verifying import StepCheck
from pipeline.steps import BestPolicy, File, Model, Output, Served, Step

ACTIONS: tuple[Action, ...] = ("reuse", "resume", "run", "skip", "to be hashed", "pending")
PROMPT_WIDTH, ANSWER_WIDTH = 50, 90  # characters of a sample answer in the table
SPACE = "  "  # between two numbers of a step
ALWAYS_COUNTED = ("reuse", "resume", "run")
COLOURS = {
    "reuse": "green",
    "reused": "green",
    "ran": "green",
    "resume": "yellow",
    "resumed": "yellow",
    "halved": "yellow",
    "run": "cyan",
    "running": "cyan",
    "failed": "red",
    "damaged": "red",
    "done": "green",
    "partial": "yellow",
    "stopped": "yellow",
    "interrupted": "yellow",
    "waiting": "yellow",
    "to be hashed": "magenta",
    "pending": "dim",
    "skip": "dim",
    "skipped": "dim",
    "complete": "green",
    "not finished": "dim",
}


class PrintableConsole(Console):
    """A console that escapes what could control the terminal in every text, whatever run, step or model it is from."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def make_console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal. In a file or pipe it is wide enough that no row of a table is wrapped.

    In a notebook it prints plain lines.
    """
    console = PrintableConsole(stderr=stderr, highlight=False, markup=False, force_jupyter=False)
    if console.is_terminal:
        return console
    return PrintableConsole(stderr=stderr, highlight=False, markup=False, force_jupyter=False, width=220)


def verified_table(checked: Sequence[StepCheck]) -> Table:
    """The folder of every step of a run, with its state or the problems found in it."""
    table = Table("step", "files", "MB", "state", box=MARKDOWN)
    for step in checked:
        problems = Text("\n".join(step.problems), style="red")
        state = problems if step.problems else Text(step.state, style=COLOURS[step.state])
        table.add_row(Text(step.name), str(step.files), f"{step.bytes / 1e6:.1f}", state)
    return table


def pruned_table(run: Path, unneeded: Sequence[UnneededFolder]) -> Table:
    """The folders of a run that its last run does not need."""
    table = Table("not needed by the last run", "MB", "last written", "state", box=MARKDOWN)
    for item in unneeded:
        written = datetime.fromtimestamp(item.written).strftime("%Y-%m-%d %H:%M")
        table.add_row(Text(str(item.folder.relative_to(run))), f"{item.bytes / 1e6:.1f}", written, item.state)
    return table


def plan_tree(run: Run, decisions: Mapping[str, Decision]) -> Tree:
    """Every step by round, with what will be done with it and why. The counts in its head add up to all steps."""
    counts = Counter(decision.action for decision in decisions.values())
    shown = [f"{counts[action]} {action}" for action in ACTIONS if counts[action] or action in ALWAYS_COUNTED]
    head = Text(f"{printable(run.recipe.name)}: {len(run.steps)} steps, {', '.join(shown)}  ")
    folder = f"{run.recipe.output_dir}/{run.recipe.name}"
    tree = Tree(head.append(printable(folder), style="dim"))
    branches: dict[int | None, Tree] = {None: tree}
    for step in run.steps:
        if step.round not in branches:
            branches[step.round] = tree.add(f"round {step.round}")
        decision = decisions[step.name]
        line = Text(f"{decision.action:<6} ", style=COLOURS[decision.action])
        line.append(f"{step.name}: {printable(decision.why)}", style="default")
        line.append(printable(f"  <- {', '.join(sources(step))}") if step.inputs else "", style="dim")
        if step.keys.get("trust_remote_code"):
            line.append("  runs code from its model's files (trust_remote_code)", style="red")
        branches[step.round].add(line)
    return tree


def sources(step: Step) -> list[str]:
    """The names of the steps and files that a step's inputs come from, each once.

    The earlier evaluations that an evaluation is compared with are left out.
    """
    names: dict[str, None] = {}
    for reference in (item for items in step.inputs.values() for item in items):
        match reference:
            case BestPolicy(name, rank):
                names[f"{'best' if rank == 0 else 'second best'} by {name}"] = None
            case Output(name):
                names[name] = None
            case Served(_, endpoint):
                names[endpoint.model] = None
            case File(path) | Model(path):
                names[path if "/" in path and not path.startswith("/") else Path(path).name] = None
    return list(names)


def headline(stage: str, metrics: Mapping[str, object]) -> str:
    """The few metrics of a step that its line shows."""
    shown = [name for name in stages()[stage].traits.headlines if metrics.get(name) is not None]
    return SPACE.join(f"{name} {number(metrics[name])}" for name in shown)


def rounds_table(summary: Summary) -> Table:
    """One column for each round, or for the one evaluation of a run without rounds.

    `-` is a number that does not apply; summary.json has the reason.
    """
    table = Table(box=MARKDOWN, title=rounds.title(summary), title_justify="left")
    table.add_column("", no_wrap=True)
    for head in rounds.heads(summary):
        table.add_column(head, justify="right", no_wrap=True)
    for name, cells in rounds.rows(summary):
        table.add_row(name, *cells)
    return table


def models_table(trained: Sequence[TrainedModel]) -> Table:
    """The trained models of a run without an evaluation, with their loss on held-out rows before and after."""
    has_accuracy = any(entry["accuracy"] is not None for entry in trained)
    names = ["model", "held-out loss before", "after", *(["accuracy"] if has_accuracy else []), "folder"]
    table = Table(*names, box=MARKDOWN)
    for entry in trained:
        numbers = [entry["loss_before"], entry["loss_after"], *([entry["accuracy"]] if has_accuracy else [])]
        table.add_row(Text(entry["step"]), *map(number, numbers), Text(entry["folder"]))
    return table


def samples_table(samples: Sequence[SampleAnswer]) -> Table:
    """Sample answers of policies that no judge compares, each shortened to one line."""
    table = Table("policy", "held-out prompt", "sample answer", box=MARKDOWN)
    for sample in samples:
        end = "" if sample["ended"] else " [cut off by max_new_tokens]"
        prompt, answer = _one_line(sample["prompt"], PROMPT_WIDTH), _one_line(sample["answer"], ANSWER_WIDTH)
        table.add_row(Text(sample["policy"]), Text(prompt), Text(answer + end))
    return table


def _one_line(text: str, longest: int) -> str:
    words = printable(" ".join(text.split()))
    return words if len(words) <= longest else f"{words[: longest - 1]}…"


def cost_cells(cost: Cost | None) -> list[str]:
    """What `COSTS` heads: the estimated seconds, the measured memory and the estimated one, in GiB."""
    if cost is None:
        return ["", "", ""]
    seconds = cost["estimated_seconds"]
    memory = [f"{value / 2**30:.2f}" if value else "" for value in (cost["memory"], cost["estimated_memory"])]
    return [f"{seconds[0]:.0f}-{seconds[1]:.0f}" if seconds else "", *memory]


COSTS = ("est. s", "GiB", "est. GiB")  # the heads of `cost_cells`
FIRST_LEFT_OUT = (0, 2, 1)  # of them, where the table is too wide
MIN_NAME = 12  # characters of the column of steps


def steps_table(summary: Summary, *, width: int) -> Table:
    """The state, time and numbers of every step. A step is named by its folder.

    Where `width` characters are too few, the estimated costs are left out first and then the measured memory; then each
    number has its own line, and the names of the steps are folded.
    """
    steps = summary["steps"]
    names = ["step", *(step["folder"] or step["name"] for step in steps)]
    states = ["state", *(step["state"] for step in steps)]
    seconds = ["seconds", *(f"{step['seconds']:.1f}" for step in steps)]
    beside = list(zip(COSTS, *(cost_cells(step.get("cost")) for step in steps), strict=True))
    numbers = ["numbers", *(headline(step["stage"], step["metrics"]) for step in steps)]
    costs = [index for index, cells in enumerate(beside) if any(cells[1:])]
    for left_out in FIRST_LEFT_OUT:
        if _width_of(names, states, seconds, *(beside[index] for index in costs), numbers) > width:
            costs = [index for index in costs if index != left_out]
    others = [states, seconds, *(beside[index] for index in costs)]
    if _width_of(names, *others, numbers) > width:
        numbers = [line.replace(SPACE, "\n") for line in numbers]
    room = width - _width_of([], *others, numbers)
    table = Table(box=MARKDOWN)
    table.add_column("step", width=max(MIN_NAME, min(room, _longest(names))), overflow="fold")
    table.add_column("state", no_wrap=True)
    for head, *_ in others[1:]:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("numbers", overflow="fold")
    for name, *cells in list(zip(names, *others, numbers, strict=True))[1:]:
        table.add_row(name, Text(cells[0], style=COLOURS.get(cells[0], "default")), *cells[1:])
    return table


def _width_of(*columns: Sequence[str]) -> int:
    """The characters of a table with these columns."""
    return 1 + sum(_longest(cells) + 3 for cells in columns)


def _longest(cells: Sequence[str]) -> int:
    return max((cell_len(line) for cell in cells for line in cell.split("\n")), default=0)
