"""The application that the commands are added to, and what they share."""

import importlib.metadata
import os
from typing import Annotated, TextIO

import typer

from data_schemas.text import printable
from data_schemas.unexpected import TRACEBACKS
from pipeline.launch import command_line
from pipeline.report import errors

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run the Llama 3 post-training loop from one recipe: rounds of preferences, reward model, rejection sampling, "
    "SFT, DPO and evaluation. Start with `alignloop run demo`, or with `alignloop init` for your own data. "
    "`alignloop COMMAND --help` describes a command.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"alignloop {importlib.metadata.version('alignloop')}")
        raise typer.Exit()


@app.callback()
def common(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.  [default: off]")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    errors.shown.tracebacks = verbose


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(command_line.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path} | ({TRACEBACKS: "1"} if errors.shown.tracebacks else {})


def print_text(text: str, *, file: TextIO | None = None) -> None:
    """Prints a text that may hold names from a file or a folder."""
    print(printable(text), file=file)
