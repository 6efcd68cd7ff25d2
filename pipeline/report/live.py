"""What is shown of a step while it runs: what its stage does, how far it is, its loss or speed, and its folder.

On a terminal the lines of the running steps are updated in place. Elsewhere, and on a terminal that can't move its
cursor (TERM=dumb), a plain line is printed at least every LINE_SECONDS.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from data_schemas.progress import STARTING, WORKING, StageProgress, describe_progress
from data_schemas.text import printable
from pipeline.report.terminal import COLOURS, headline
from pipeline.state.run import NOT_RUN_YET, StepState
from pipeline.steps import Step

LINE_SECONDS = 15.0  # between two plain lines of a running step
READ_SECONDS = 1.0  # between two looks at a step's progress
INDENT = 8


def can_be_live(console: Console) -> bool:
    """Whether lines can be updated in place."""
    return console.is_terminal and not console.is_dumb_terminal


def short_path(path: Path) -> str:
    """The path relative to the working directory where it is below it."""
    return printable(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def running_lines(head: Text, folder: Path | None, doing: str, *, width: int) -> list[Text]:
    """The lines of a running step on a terminal: its folder follows the head where the width has room for it."""
    place = Text(short_path(folder) if folder else "", style="dim")
    lines = [head]
    if place.cell_len and head.cell_len + 2 + place.cell_len <= width:
        lines = [Text.assemble(head, "  ", place)]
    elif place.cell_len:
        lines.append(Text.assemble(" " * INDENT, place))
    lines += [Text(" " * INDENT + part) for part in _within(doing, width - INDENT)]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return lines


def _within(doing: str, width: int) -> list[str]:
    """The activities in one line, or in a line each where they are too wide."""
    return [doing] if len(doing) <= width else doing.split("; ")


@dataclass
class _RunningStep:
    head: Text
    folder: Path | None
    doing: str = STARTING
    read_at: float = 0.0  # seconds of the monotonic clock
    printed_at: float = field(default_factory=time.monotonic)


class RunDisplay:
    """The lines of a run: those of its running steps, and one for each step that has ended, with its warnings."""

    def __init__(
        self, console: Console, num_steps: int, *, live: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console, self.num_steps, self.clock = console, num_steps, clock
        self.live = Live(console=console, transient=True, refresh_per_second=4) if live else None
        self.positions: dict[str, int] = {}  # step name -> its number, in the order of starting
        self.running: dict[str, _RunningStep] = {}  # by step name

    def __enter__(self) -> "RunDisplay":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, step: Step, state: StepState) -> None:
        """Shows the present state of a step."""
        position = self.positions.setdefault(step.name, len(self.positions) + 1)
        if state.state == "running":
            self._show_running(position, step, state)
            return
        self.running.pop(step.name, None)
        if self.live:
            self.live.update(self._running_group(), refresh=True)
        self.console.print(self._line(position, step, state), soft_wrap=True)
        if state.state in ("ran", "resumed") and state.artifact is not None:
            for warning in state.artifact.warnings:
                print_remark(self.console, warning)
            for note in state.artifact.notes:
                print_remark(self.console, note, kind="note")

    def _show_running(self, position: int, step: Step, state: StepState) -> None:
        now, head = self.clock(), self._line(position, step, state)
        running, starts = self.running.get(step.name), step.name not in self.running
        if running is None:
            running = self.running[step.name] = _RunningStep(head, state.folder, printed_at=now)
        running.head = head
        if now - running.read_at >= READ_SECONDS:
            running.read_at = now
            progress = StageProgress.read(state.folder) if state.folder else StageProgress()
            has_ended = progress.started is None and running.doing != STARTING  # and its process is about to
            running.doing = WORKING if has_ended else describe_progress(progress)
        if self.live:
            self.live.update(self._running_group())
        elif starts:
            self.console.print(
                Text.assemble(head, "  ", short_path(state.folder) if state.folder else ""), soft_wrap=True
            )
        elif now - running.printed_at >= LINE_SECONDS:
            running.printed_at = now
            # The first line had the reason why the step runs; it may be long, and here it would hide the progress.
            head = step_head(position, self.num_steps, step.name, state.state, state.seconds)
            self.console.print(Text.assemble(head, "  ", running.doing), soft_wrap=True)

    def _running_group(self) -> Group:
        width = self.console.width
        return Group(
            *(
                line
                for running in self.running.values()
                for line in running_lines(running.head, running.folder, running.doing, width=width)
            )
        )

    def _line(self, position: int, step: Step, state: StepState) -> Text:
        line = step_head(position, self.num_steps, step.name, state.state, state.seconds)
        numbers = headline(step.stage, state.artifact.metrics if state.artifact else {})
        why = "" if state.why in ("", NOT_RUN_YET) else f"({printable(state.why)})"
        parts = [part for part in (numbers, why) if part]
        return Text.assemble(line, "  ", "  ".join(parts)) if parts else line


def step_head(position: int, num_steps: int, name: str, state: str, seconds: float) -> Text:
    """`[ 9/18] round-1.dpo                 running     34.2 s`."""
    line = Text(f"[{position:>{len(str(num_steps))}}/{num_steps}] {name:<27} ")
    line.append(f"{state:<8}", style=COLOURS.get(state, "default"))
    return line.append(f"{seconds:7.1f} s")


def print_remark(
    console: Console, remark: str, *, name: str = "", kind: Literal["warning", "note"] = "warning"
) -> None:
    """A warning in yellow, or a harmless note; wrapped on a terminal, and in one line elsewhere."""
    style = "yellow" if kind == "warning" else "dim"
    text = Text(f"{kind}: {f'{name}: ' if name else ''}{printable(remark)}", style=style)
    indent = 0 if name else INDENT
    if console.is_terminal:
        console.print(Padding(text, (0, 0, 0, indent)))
    else:
        console.print(Text.assemble(" " * indent, text), soft_wrap=True)
