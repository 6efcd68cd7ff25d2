"""What the programs that take a model share: their options, what they show while they work, and how they end."""

import argparse
import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from data_schemas.errors import AlignloopError, UserError
from data_schemas.model_options import OPTIONS, checked, help_of, key_of
from data_schemas.progress import describe_progress
from data_schemas.stage_keys import Keys
from data_schemas.text import printable
from engine.runtime import preemption, process, progress
from engine.runtime.arguments import GenerationArguments
from engine.runtime.output_file import has_finished_batches, unfinished_folder

LINE_SECONDS = 10.0  # between two plain lines


def parser_for(command: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the command's options that are keys of the stages; their values are text until `checked`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for name in OPTIONS[command]:
        if key_of(name).type == "bool":
            parser.add_argument(f"--{name}", action="store_true", default=None, help=help_of(name))
        else:
            parser.add_argument(f"--{name}", help=help_of(name))
    return parser


def options_of(command: str, arguments: argparse.Namespace) -> tuple[Keys, GenerationArguments]:
    """The command's typed options, and those of sampling and loading as a stage has them. Raises ConfigError.

    Code from the model's files runs afterwards only if the options say so.
    """
    options = checked(command, vars(arguments))
    process.trust_code(options["trust_remote_code"])
    names = GenerationArguments.__dataclass_fields__
    return options, GenerationArguments(**{name: value for name, value in options.items() if name in names})


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Inside, a program imports what needs torch and transformers, which takes seconds; then it sets them up."""
    with progress.activity("importing torch and transformers"):
        from transformers.utils import logging as transformers_logging

        yield
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    process.use_all_cores()
    process.keep_memory()


def run(work: Callable[[Console], None], *, output: Path) -> int:
    """Runs a program that writes a file; returns its exit code. Progress, warnings and errors go to stderr."""
    console = Console(stderr=True, highlight=False)
    try:
        with _warnings_on(console), displayed(console), progress.activity("preparing"):
            work(console)
        return 0
    except AlignloopError as error:
        is_users = isinstance(error, UserError)
        kept = "" if is_users else _kept(output)
        print(f"error: {printable(' '.join(str(error).split()))}{kept}", file=sys.stderr)
        return 2 if is_users else 1
    except (KeyboardInterrupt, preemption.Preempted) as error:
        print(f"interrupted{_kept(output) or '; nothing is written'}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else preemption.EXIT_CODE


@contextlib.contextmanager
def _warnings_on(console: Console) -> Iterator[None]:
    """Inside, what is logged goes to the console, as a warning, and nowhere else."""
    root = logging.getLogger()
    before = root.handlers
    root.handlers = [_ConsoleHandler(console)]
    try:
        yield
    finally:
        root.handlers = before


def _kept(output: Path) -> str:
    if not output.name or not has_finished_batches(output):
        return ""
    folder = printable(str(unfinished_folder(output)))
    return f"; finished batches are kept in {folder}, and the same command continues from them"


@contextlib.contextmanager
def displayed(console: Console) -> Iterator[None]:
    """Shows what happens inside: a line that is updated in place, or a plain line every LINE_SECONDS where the console
    is no terminal or cannot move its cursor (TERM=dumb)."""

    def line() -> Text:
        return Text(describe_progress(progress.current()), no_wrap=True, overflow="ellipsis")

    if console.is_terminal and not console.is_dumb_terminal:
        with Live(get_renderable=line, console=console, transient=True, refresh_per_second=4):
            yield
        return
    has_ended = threading.Event()

    def print_lines() -> None:
        while not has_ended.wait(LINE_SECONDS):
            console.print(line(), soft_wrap=True)

    thread = threading.Thread(target=print_lines, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


class _ConsoleHandler(logging.Handler):
    """Prints warnings above the line of the progress. They quote rows: control characters are escaped."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = Text(f"warning: {printable(record.getMessage())}", style="yellow")
        self.console.print(text, soft_wrap=True)
