"""`alignloop status`: the state of a run, what its running steps do now, its warnings, and its numbers by round."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from data_schemas.locks import is_locked
from data_schemas.progress import StageProgress, describe_progress, kept_seconds
from data_schemas.text import printable
from pipeline.report import live, result, terminal, waiting
from pipeline.state.summary import StepEntry, Summary

FINISHED = ("ran", "reused", "resumed", "skipped")
FOLLOW_SECONDS = 1.0  # between two looks at a run
REMEDIES = {
    "stopped": "the process that ran it has ended; run the recipe again to resume",
    "waiting": "people compare answers; run the recipe again when they have sent their files",
    "partial": "only some of its steps were selected; run the recipe again for the others",
}


def show(console: Console, folder: Path, summary: Summary) -> None:
    """Prints the state, the steps, the running ones in detail, the warnings and the table by round."""
    console.print(Text(head(summary, folder)))
    lives = is_running(summary, folder)
    for step in running_steps(summary):
        step["seconds"] = _seconds(step, folder)
        step["state"] = "running" if lives else "stopped"
    console.print(terminal.steps_table(summary, width=console.width))
    for line in running(summary, folder, width=console.width):
        console.print(line)
    for step in summary["steps"]:
        if step["state"] == "failed" and step.get("problem"):
            console.print(Text(printable(step.get("problem", ""))), soft_wrap=True)
    for line in waiting.lines(summary, folder):
        console.print(Text(line), soft_wrap=True)
    for step in summary["steps"]:
        for warning in step.get("warnings", []):
            live.print_remark(console, warning, name=step["name"])
    result.show_numbers(console, summary)


def follow(console: Console, folder: Path, read: Callable[[], Summary]) -> None:
    """Shows the running steps until the run has ended: updated in place, or a line each LINE_SECONDS where the console
    can't do that."""
    if live.can_be_live(console):
        with Live(console=console, transient=True, auto_refresh=False) as display:
            while is_running(summary := read(), folder):
                display.update(Group(*_followed(summary, folder, console)), refresh=True)
                time.sleep(FOLLOW_SECONDS)
        return
    before, printed_at = "", 0.0
    while is_running(summary := read(), folder):
        names = " ".join(step["name"] for step in running_steps(summary))
        if names != before or time.monotonic() - printed_at >= live.LINE_SECONDS:
            before, printed_at = names, time.monotonic()
            for step in running_steps(summary):
                doing = describe_progress(_progress(step, folder))
                console.print(Text.assemble(_head(summary, step, folder), "  ", doing), soft_wrap=True)
        time.sleep(FOLLOW_SECONDS)


def head(summary: Summary, folder: Path) -> str:
    """The run's name and state, and how many of its steps are finished."""
    state = state_of(summary, folder)
    said = f"{state}: {REMEDIES[state]}" if state in REMEDIES else state
    finished, steps = num_finished(summary), len(summary["steps"])
    return f"{printable(summary['name'])}: {printable(said)} ({finished} of {steps} steps are finished)"


def state_of(summary: Summary, folder: Path) -> str:
    """The state of a run, in one word: that of its summary, or stopped where its process has ended before."""
    return "stopped" if summary["state"] == "running" and not is_locked(folder) else summary["state"]


def num_finished(summary: Summary) -> int:
    return sum(step["state"] in FINISHED for step in summary["steps"])


def is_running(summary: Summary, folder: Path) -> bool:
    return summary["state"] == "running" and is_locked(folder)


def running_steps(summary: Summary) -> list[StepEntry]:
    return [step for step in summary["steps"] if step["state"] == "running"]


def running(summary: Summary, folder: Path, *, width: int) -> list[Text]:
    """The lines of the running steps; none where the run has stopped."""
    if not is_running(summary, folder):
        return []
    lines: list[Text] = []
    for step in running_steps(summary):
        doing = describe_progress(_progress(step, folder))
        place = folder / step["folder"] if step["folder"] else None
        lines += live.running_lines(_head(summary, step, folder), place, doing, width=width)
    return lines


def _followed(summary: Summary, folder: Path, console: Console) -> list[Text]:
    """The head and the running steps, and above them as many of the finished steps as the console has room for."""
    below = running(summary, folder, width=console.width)
    room = max(0, console.height - len(below) - 2)
    finished = [step for step in summary["steps"] if step["state"] in FINISHED]
    above = [_head(summary, step, folder) for step in finished[max(0, len(finished) - room) :]] if room else []
    for line in above:
        line.no_wrap, line.overflow = True, "ellipsis"
    title = Text(head(summary, folder), no_wrap=True, overflow="ellipsis")
    return [title, *above, *below]


def _head(summary: Summary, step: StepEntry, folder: Path) -> Text:
    seconds = _seconds(step, folder)
    position, names = 1 + summary["steps"].index(step), printable(step["name"])
    return live.step_head(position, len(summary["steps"]), names, step["state"], seconds)


def _seconds(step: StepEntry, folder: Path) -> float:
    """How long the step took, in all its starts; until now where it is running."""
    if step["state"] != "running" or not step["folder"]:
        return step["seconds"]
    place = folder / step["folder"]
    earlier = sum(kept_seconds(place).values())
    if not is_locked(folder):  # its process has ended
        return earlier
    started = _progress(step, folder).started
    if started is None:  # it imports its libraries; its config was written when it was launched
        with contextlib.suppress(OSError):
            started = (place / "config.yaml").stat().st_mtime - earlier
    return step["seconds"] if started is None else max(0.0, time.time() - started)


def _progress(step: StepEntry, folder: Path) -> StageProgress:
    return StageProgress.read(folder / step["folder"]) if step["folder"] else StageProgress()
