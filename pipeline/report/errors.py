"""How a command ends that did not succeed: one line on stderr, and where its log is; tracebacks only with -v."""

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_schemas.errors import AlignloopError, UserError, WaitingForPeople
from data_schemas.people import EXIT_CODE
from data_schemas.text import printable
from data_schemas.unexpected import report_os_error, report_unexpected
from pipeline.launch.failures import StageFailed
from pipeline.launch.processes import Interrupted
from pipeline.report.live import short_path
from pipeline.state.run import Run, finished_part
from pipeline.state.selection import Selection


@dataclass
class _Shown:
    tracebacks: bool = False  # set by -v


shown = _Shown()  # one for the process, which runs one command


def command_name() -> str:
    """How this command was called, so that a printed line can be copied into the shell.

    In another program, as a notebook, it is the command beside its Python.
    """
    on_path = shutil.which("alignloop")
    called = Path(sys.argv[0]).absolute()
    if called.stem == "__main__":
        return f"{shlex.quote(short_path(Path(sys.executable)))} -m pipeline.cli"
    if called.stem != "alignloop":
        called = Path(sys.executable).with_name("alignloop")
    return "alignloop" if on_path and Path(on_path).absolute() == called else shlex.quote(short_path(called))


def run_command(recipe: Path, overrides: Sequence[str] | None, selection: Selection | None = None) -> str:
    """The command that runs a recipe, to be copied into the shell."""
    words = ["run", str(recipe), *(word for setting in overrides or [] for word in ("--set", setting))]
    words += [selection.option, selection.given] if selection else []
    return f"{command_name()} {shlex.join(words)}"


def what_is_kept(run: Run) -> str:
    """One line for a run that was interrupted."""
    finished = sum(state.state in ("ran", "resumed", "reused") for state in run.states.values())
    parts = [f"{finished} of {len(run.steps)} steps are finished and kept"]
    for step in run.steps:
        state = run.states[step.name]
        if state.state in ("interrupted", "failed") and state.folder is not None:
            part = finished_part(state.folder)
            kept = f"resumes from {part}" if part else "has no checkpoint yet and will start from its beginning"
            parts.append(f"{step.name} {kept}")
    return f"interrupted: {', '.join(parts)}"


def report(error: BaseException) -> int:
    """Reports an error in one line on stderr, as a rule; returns the exit code of the command."""
    match error:
        case StageFailed():
            report_failure(error)
            return 2 if error.is_users else 1
        case WaitingForPeople():  # what it waits for was printed
            return EXIT_CODE
        case AlignloopError():
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return 2 if isinstance(error, UserError) else 1
        case OSError():
            report_os_error(error)
            return 1
        case Interrupted():
            return 128 + error.number
        case KeyboardInterrupt():
            return 130
        case _ if hasattr(error, "format_message"):  # an error of the command-line parser
            print(f"error: {parser_message(error)}; see {help_for(error)}", file=sys.stderr)
            return 2
        case _:
            report_unexpected(error, tracebacks=shown.tracebacks)
            return 1


def report_failure(failure: StageFailed) -> None:
    """Why the stage failed, where its log is, and a remedy, on stderr. With -v also its command and last output."""
    cause = printable(failure.cause)
    if cause.startswith("ended") and not failure.is_reported and (last := _last_line(failure.tail)):
        cause += f": {last}" if re.match(r"[\w.]*(Error|Exception|Exit)\b", last) else f"; its last line is {last!r}"
    print(f"error: {failure.step.name} failed: {cause}", file=sys.stderr)
    if shown.tracebacks:
        print(f"command: {shlex.join(failure.command)}\nlast lines of {short_path(failure.log)}:", file=sys.stderr)
        for line in failure.tail:
            print(f"  {printable(line)}", file=sys.stderr)
    else:
        print(f"log: {short_path(failure.log)}", file=sys.stderr)
    if failure.hint:
        print(f"hint: {failure.hint}", file=sys.stderr)


def _last_line(lines: Sequence[str]) -> str:
    """The last line that a stage printed, which of a traceback is the error."""
    return next((printable(line.strip())[:300] for line in reversed(lines) if line.strip()), "")


def parser_message(error: BaseException) -> str:
    message = error.format_message().rstrip(".")  # pyright: ignore[reportAttributeAccessIssue]
    return printable(" ".join(message.split()))


def help_for(error: BaseException) -> str:
    """The call that shows the help of the command in which an error of the command-line parser was found."""
    context = getattr(error, "ctx", None)
    words = [] if context is None or context.parent is None else [context.info_name]
    return " ".join([command_name(), *words, "--help"])
