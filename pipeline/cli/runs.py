"""The commands that take the folder of a run: list, status, report, calibrate, compare, verify, prune, export."""

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from data_schemas.errors import ConfigError
from data_schemas.locks import lock_folder
from data_schemas.outputs import check_new_file
from pipeline.cli.app import app, print_text
from pipeline.cli.completion import complete_model, complete_run
from pipeline.export import folder as exporting
from pipeline.export import publish
from pipeline.export.card import UNKNOWN, Card
from pipeline.report import calibration, comparing, run_list, run_status, terminal
from pipeline.report.errors import command_name
from pipeline.report.live import short_path
from pipeline.report.page.compare_page import is_comparison, write_comparison
from pipeline.report.page.writing import write_page
from pipeline.state import pruning, verifying
from pipeline.state.lineage import lineage_of
from pipeline.state.summary import SUMMARY
from pipeline.state.summary import read as read_summary

RUNS = Path("runs")
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="The folder of a run, as in runs/demo.", autocompletion=complete_run)
]


@app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The folder that the runs are in.")] = RUNS,
) -> None:
    """List the runs in a folder, with their state and best policy. The one that changed last comes first."""
    runs = run_list.list_runs(folder)
    if not runs:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file; expected the folder that the runs are in")
        if not folder.exists() and folder != RUNS:
            raise ConfigError(f"{folder} does not exist; expected the folder that the runs are in")
        absent = "" if folder.is_dir() else ", which does not exist"
        print_text(f"no run in {folder.absolute()}{absent}; `{command_name()} run RECIPE` starts one")
        return
    terminal.make_console().print(run_list.runs_table(runs))
    for run in runs:
        if run.problem:
            print_text(f"warning: {run.problem}", file=sys.stderr)


@app.command()
def status(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The folder of a run, or its summary.json.", autocompletion=complete_run),
    ],
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
def report(run: RunFolder) -> None:
    """Write the page of a run, report.html. `run` does it too, whenever a step starts or ends."""
    page, problems = write_page(run)
    print_text(f"written: {short_path(page)}")
    for problem in problems:
        print_text(f"warning: {problem}", file=sys.stderr)


@app.command()
def calibrate(run: RunFolder) -> None:
    """Show how far the judges, reward models and people of a run can be trusted, in one table."""
    terminal.make_console().print(calibration.table(calibration.raters_of(read_summary(run), run)))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of another run, or the same.")],
    steps: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STEP STEP]", help="A policy of each, as in round-1.dpo.  [default: the best policy of each]"
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page, as in compare.html.  [default: none]")
    ] = None,
) -> None:
    """Show what differs between two runs: the recipe, the results with intervals, and the answers."""
    if steps and len(steps) != 2:
        count = f"{len(steps)} {'steps' if len(steps) > 1 else 'step'}"
        raise ConfigError(f"compare: found {count}; expected two, one of each run, or none")
    if page is not None:
        check_new_file(page, what="the page", may_replace=is_comparison)
    compared = comparing.compare((first, second), steps or ())
    comparing.show(terminal.make_console(), compared)
    for problem in comparing.damage(compared):
        print_text(f"warning: {problem}", file=sys.stderr)
    if page is not None:
        write_comparison(compared, page)
        print_text(f"written: {short_path(page.absolute())}")


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
        print_text(f"error: {'; '.join(verifying.remedies(damaged))}", file=sys.stderr)
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


@app.command()
def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write, which must not exist yet.")],
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="STEP",
            help="The step whose model is exported.  [default: the best policy]",
            autocompletion=complete_model,
        ),
    ] = None,
    license_name: Annotated[
        str, typer.Option("--license", metavar="NAME", help="The model's license, as in apache-2.0, for its card.")
    ] = UNKNOWN,
    gguf: Annotated[
        Path | None,
        typer.Option(
            metavar="CONVERTER", help="llama.cpp's convert_hf_to_gguf.py: also write a GGUF file.  [default: none]"
        ),
    ] = None,
    repository: Annotated[
        str | None,
        typer.Option(
            "--push",
            metavar="REPO",
            help="Upload the folder to this repository of the Hugging Face hub, which is created as a private one if "
            "it does not exist.  [default: none]",
        ),
    ] = None,
) -> None:
    """Export the best policy of a run as a plain transformers folder with a model card.

    Its files are first compared with the hashes in the record.
    """
    exporting.check_target(folder, run)
    if gguf is not None:
        publish.check_converter(gguf)
    if repository is not None:
        publish.check_repository(repository)
    found = exporting.find_model(run, policy)
    exporting.check_model(found)
    card = Card(found, lineage_of(run, found.folder), repository or folder.absolute().name, license_name)
    exporting.write_folder(found, folder, card.text())
    print_text(f"exported: {found.step} of {run} to {short_path(folder)}, license: {license_name}")
    if gguf is not None:
        print_text(f"written:  {short_path(publish.write_gguf(folder, gguf))}")
    if repository is not None:
        print_text(f"pushed:   {publish.push(folder, repository, message=f'{found.step} of {run.name}')}")
    print_text(f"chat with it: {command_name()} chat {shlex.quote(short_path(folder))}")
