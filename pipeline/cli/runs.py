"""The commands that take the folder of a run: status | verify | prune."""

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from data_schemas.errors import ConfigError
from data_schemas.locks import lock_folder
from pipeline.cli.app import app, print_text
from pipeline.report import run_status, terminal
from pipeline.report.errors import command_name
from pipeline.report.live import short_path
from pipeline.state import pruning, verifying
from pipeline.state.summary import SUMMARY
from pipeline.state.summary import read as read_summary

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, as in runs/demo.")]


@app.command()
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or its summary.json.")],
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Show the running steps until the run ends.  [default: off]"),
    ] = False,
) -> None:
    """Show the state of a run, of its steps, and its numbers by round."""
    folder = run.parent if run.name == SUMMARY else run
    console = terminal.make_console()
    if follow:
        run_status.follow(console, folder, lambda: read_summary(folder))
    run_status.show(console, folder, read_summary(folder))


@app.command()
def verify(run: RunFolder) -> None:
    """Compare the models and rows of a run with the hashes in its records, and its summary with the records."""
    checked = list(verifying.check_run(run))
    if not checked:
        raise ConfigError(f"{run} contains no step; expected the folder of a run, as in runs/demo")
    console = terminal.make_console()
    console.print(terminal.verified_table(checked))
    damaged = [step for step in checked if step.problems]
    if damaged:
        names = ", ".join(step.name for step in damaged)
        print_text(
            f"error: {names}: changed since it was written; move it away, and `run` runs the step again",
            file=sys.stderr,
        )
        raise typer.Exit(1)


@app.command()
def prune(
    run: RunFolder,
    yes: Annotated[bool, typer.Option("--yes", help="Delete the listed folders.  [default: only list them]")] = False,
) -> None:
    """List folders that the last run does not need; --yes deletes them.

    These are the folders of steps whose keys were edited later, and of steps that did not finish.
    """
    pruning.needed_by(run, read_summary(run))  # a folder that is no run, or whose run did not finish, gets no lock
    with lock_folder(run) if yes else contextlib.nullcontext():
        found = pruning.unneeded(run, pruning.needed_by(run, read_summary(run)))
        if not found:
            print_text(f"{short_path(run)}: the last run needs every folder; nothing to delete")
            return
        terminal.make_console().print(terminal.pruned_table(run, found))
        if yes:
            pruning.delete(run, found)
    size = f"{len(found)} {'folders' if len(found) > 1 else 'folder'}, {sum(item.bytes for item in found) / 1e6:.1f} MB"
    if yes:
        print(f"\n{size}: deleted")
    else:
        words = shlex.join(["prune", short_path(run), "--yes"])
        print_text(f"\n{size}. To delete: {command_name()} {words}")
        print("Models in these folders are deleted too, also where another recipe uses them.")
