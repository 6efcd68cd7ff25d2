"""What the command prints: the tree of a plan, a line a step while a run goes on, the tables of a summary."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from data_schemas.stage_keys import stages
from pipeline.plan import BestPolicy, File, Model, Output, Step
from pipeline.state.pruning import Unneeded
from pipeline.state.run import Decision, Run, StepState
from pipeline.state.verifying import Checked

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
    "to be hashed": "magenta",
    "pending": "dim",
    "skip": "dim",
    "skipped": "dim",
    "whole": "green",
    "sizes only": "yellow",
    "not finished": "dim",
}


def make_console(*, stderr: bool = False) -> Console:
    """A terminal's own width; elsewhere wide enough that no row of a table is folded."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=220)


def verified_table(checked: Sequence[Checked]) -> Table:
    """Every step's folder of a run, with what is wrong in it."""
    table = Table("step", "files", "MB", "state", box=MARKDOWN)
    for one in checked:
        state = (
            Text("\n".join(one.problems), style="red") if one.problems else Text(one.state, style=COLOURS[one.state])
        )
        table.add_row(Text(one.folder.name), str(one.files), f"{one.bytes / 1e6:.1f}", state)
    return table


def pruned_table(run: Path, found: Sequence[Unneeded]) -> Table:
    """What a run's folder holds beside what its last run needs."""
    table = Table("not needed by the last run", "MB", "last written", "state", box=MARKDOWN)
    for one in found:
        written = datetime.fromtimestamp(one.written).strftime("%Y-%m-%d %H:%M")
        table.add_row(Text(str(one.folder.relative_to(run))), f"{one.bytes / 1e6:.1f}", written, one.state)
    return table


def plan_tree(run: Run, decisions: Mapping[str, Decision]) -> Tree:
    """Every step with what will happen to it and why, by round."""
    number = {
        action: sum(d.action == action for d in decisions.values()) for action in ("reuse", "resume", "run", "skip")
    }
    counts = [f"{count} {action}" for action, count in number.items() if count or action != "skip"]
    tree = Tree(f"{run.recipe.name}: {len(run.steps)} steps, {', '.join(counts)}  [dim]{escape(_shown(run))}[/dim]")
    branches: dict[int | None, Tree] = {None: tree}
    for step in run.steps:
        if step.round not in branches:
            branches[step.round] = tree.add(f"round {step.round}")
        decision = decisions[step.name]
        line = Text(f"{decision.action:<6} ", style=COLOURS[decision.action])
        line.append(f"{step.name}: {decision.why}", style="default")
        line.append(f"  <- {', '.join(sources(step))}" if step.inputs else "", style="dim")
        if step.keys.get("trust_remote_code"):
            line.append("  runs code that comes with its model (trust_remote_code)", style="red")
        branches[step.round].add(line)
    return tree


def sources(step: Step) -> list[str]:
    """Where a step's inputs come from, each once; the earlier evaluations that another is compared with left out."""
    found: dict[str, None] = {}
    for reference in (item for items in step.inputs.values() for item in items):
        match reference:
            case BestPolicy(name, rank):
                found[f"{'best' if rank == 0 else 'second best'} by {name}"] = None
            case Output(name):
                found[name] = None
            case File(path) | Model(path):
                found[path if "/" in path and not path.startswith("/") else Path(path).name] = None
    return list(found)


def _shown(run: Run) -> str:
    return f"{run.recipe.output_dir}/{run.recipe.name}"


class Progress:
    """One line a step: live ones on a terminal, elsewhere one at its start and one at its end."""

    def __init__(self, console: Console, num_steps: int, *, live: bool) -> None:
        self.console, self.num_steps = console, num_steps
        self.live = Live(console=console, transient=True, refresh_per_second=4) if live else None
        self.positions: dict[str, int] = {}  # by step, in the order they started
        self.running: dict[str, Text] = {}

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, step: Step, state: StepState) -> None:
        starts = step.name not in self.positions
        position = self.positions.setdefault(step.name, len(self.positions) + 1)
        line = self._line(position, step, state)
        if state.state == "running":
            self.running[step.name] = line
            if self.live:
                self.live.update(Group(*self.running.values()))
            elif starts:
                self.console.print(line, soft_wrap=True)
            return
        self.running.pop(step.name, None)
        if self.live:
            self.live.update(Group(*self.running.values()), refresh=True)
        self.console.print(line, soft_wrap=True)

    def _line(self, position: int, step: Step, state: StepState) -> Text:
        line = Text(no_wrap=True, overflow="ellipsis" if self.live and state.state == "running" else "fold")
        line.append(f"[{position:>{len(str(self.num_steps))}}/{self.num_steps}] {step.name:<27} ")
        line.append(f"{state.state:<8}", style=COLOURS.get(state.state, "default"))
        line.append(f"{state.seconds:7.1f} s  " if state.state != "running" or self.live else "")
        numbers = headline(step.stage, state.artifact.metrics if state.artifact else {})
        return line.append("  ".join(part for part in (numbers, f"({state.why})" if state.why else "") if part))


def headline(stage: str, metrics: Mapping[str, Any]) -> str:
    shown = [name for name in stages()[stage].traits.headlines if metrics.get(name) is not None]
    return "  ".join(f"{name} {number(metrics[name])}" for name in shown)


def rounds_table(summary: Mapping[str, Any]) -> Table:
    """A column a round, so that it fits a terminal. `-` is a number that does not apply; summary.json says why."""
    judges = sorted({row["judge"] for row in summary["rounds"] if row["judge"]})
    table = Table(box=MARKDOWN, title=f"by round, judged by {', '.join(judges) or '?'}", title_justify="left")
    table.add_column("", no_wrap=True)
    for row in summary["rounds"]:
        table.add_column(f"round {row['round']}", justify="right", no_wrap=True)
    shown = {
        "policy": lambda row: row["policy"] or "-",
        "judge's mean": lambda row: number(row["judge_mean"]),
        "gain vs first": lambda row: _interval(row, "score_gain_vs_first"),
        "wins vs first": lambda row: _interval(row, "win_rate_vs_first"),
        "wins vs previous": lambda row: _interval(row, "win_rate_vs_previous"),
        "gate": lambda row: row.get("gate") or "-",
        "decided by": lambda row: (row.get("gate_reason") or "-").partition("; ")[0],
        "proxy's mean": lambda row: number(row["proxy_mean"]),
        "KL to first": lambda row: number(row["kl_to_first"]),
        "answer tokens": lambda row: number(row["mean_answer_tokens"]),
        "ended": lambda row: number(row["ended_share"]),
        "distinct-2": lambda row: number(row["distinct_2"]),
        "reward accuracy": lambda row: number(row["reward_accuracy"]),
        "SFT eval loss": lambda row: number(row["sft_eval_loss"]),
        "DPO accuracy": lambda row: number(row["dpo_reward_accuracy"]),
    }
    for name, show in shown.items():
        table.add_row(name, *(show(row) for row in summary["rounds"]))
    return table


def steps_table(summary: Mapping[str, Any]) -> Table:
    """The table of steps, for `status`. A step is named by its folder."""
    table = Table(box=MARKDOWN)
    names = [step["folder"] or step["name"] for step in summary["steps"]]
    table.add_column("step", min_width=max(map(len, names), default=4))
    table.add_column("state", min_width=7)
    table.add_column("seconds", justify="right", min_width=7)
    table.add_column("numbers")
    for name, step in zip(names, summary["steps"], strict=True):
        state = Text(step["state"], style=COLOURS.get(step["state"], "default"))
        table.add_row(name, state, f"{step['seconds']:.1f}", headline(step["stage"], step["metrics"]))
    return table


def number(value: Any) -> str:
    """Three decimals; `-` for null."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return number(row[name]) + ("" if low is None or high is None else f" [{low:.2f}, {high:.2f}]")
