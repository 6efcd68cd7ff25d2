"""The `alignloop` command: init | run | plan | check | status | verify | prune | chat.

    alignloop run configs/demo.yaml --set dpo.beta=0.2

A user's mistake is reported in one line on stderr and ends with exit code 2. A failed stage ends with 1, Ctrl-C with
130 and SIGTERM with 143.
"""

import contextlib
import errno
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, TextIO

import typer

from data_schemas.artifact import Artifact
from data_schemas.errors import AlignloopError, ConfigError, UserError
from data_schemas.files import DISK_FULL
from data_schemas.locks import is_locked, lock_folder
from data_schemas.text import printable
from pipeline.launch import preview
from pipeline.launch.checks import check_machine, check_recipe
from pipeline.launch.command_line import ROOT
from pipeline.launch.failures import StageFailed
from pipeline.launch.processes import Interrupted
from pipeline.launch.runner import run_steps
from pipeline.plan import Step, make_plan
from pipeline.recipe.schema import Recipe, load_recipe
from pipeline.recipe.shipped import copy_recipe, find_recipe
from pipeline.report import terminal
from pipeline.state import pruning, verifying
from pipeline.state.fingerprint import SMALL
from pipeline.state.run import Run
from pipeline.state.summary import SUMMARY, Summary
from pipeline.state.summary import read as read_summary

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run the Llama 3 post-training loop from one recipe: rounds of preferences, reward model, rejection sampling, "
    "SFT, DPO and evaluation. Start with `alignloop run demo`, or with `alignloop init` for your own data.",
)
RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="a recipe, a YAML file; or the name of a shipped one, as in demo")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="set a key of the recipe, as in --set dpo.beta=0.2; repeatable"),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run, as in runs/demo")]


@app.command()
def init(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="a shipped recipe to copy; without it, a commented starter")
    ] = None,
) -> None:
    """Write a recipe to start from into this folder."""
    recipe, *others = (path.relative_to(Path.cwd()) for path in copy_recipe(name, Path.cwd()))
    _print(f"written: {', '.join(map(str, (recipe, *others)))}")
    print("set its model and data, then:")
    _print(f"  {_command()} plan {recipe}     # shows every step and checks every key; runs nothing")
    _print(f"  {_command()} check {recipe}    # shows the rows that each stage trains on")
    _print(f"  {_command()} run {recipe}      # runs the loop")


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show the output of the stages")] = False,
) -> None:
    """Run the loop. Finished steps are reused, and a stopped run is resumed."""
    loaded, steps = _load(recipe, overrides)
    check_machine(loaded, steps)
    console = terminal.make_console()
    with lock_folder(loaded.folder):
        for partial in loaded.folder.glob(".*.partial-*"):  # a killed run was writing it
            partial.unlink(missing_ok=True)
        planned = Run.of(loaded, steps)
        live = console.is_terminal and not verbose
        with terminal.Progress(console, len(steps), live=live) as progress:
            run_steps(planned, verbose=verbose, show=progress)
    summary = read_summary(loaded.folder)
    console.print(terminal.rounds_table(summary))
    best = summary["best_policy"]
    assert best is not None, "a finished run has evaluated a policy"
    _print(f"\nbest policy: {best['step']}")
    _print(f"chat with it: {_command()} chat {shlex.quote(_short(loaded.folder / best['folder']))}")
    _print(f"all numbers:  {_short(loaded.folder / SUMMARY)}")


@app.command()
def plan(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Show which steps will be reused, resumed or run, and why. Runs nothing."""
    loaded, steps = _load(recipe, overrides)
    planned = Run.of(loaded, steps, hash_limit=SMALL)
    decisions = {step.name: planned.decide(step) for step in steps}
    terminal.make_console().print(terminal.plan_tree(planned, decisions), soft_wrap=True)
    _warn_of_machine(loaded, steps)


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(help="number of rows to show of each training stage")] = 2,
) -> None:
    """Show the rows that each stage trains on, with the trained tokens in colour.

    Also shows what is wrong with the rows, and which precision is fastest on this device. Trains nothing.
    """
    loaded, steps = _load(recipe, overrides)
    planned = Run.of(loaded, steps, hash_limit=SMALL)
    with tempfile.TemporaryDirectory(prefix="alignloop-check-") as scratch:
        request = Path(scratch) / "request.json"
        request.write_text(json.dumps(preview.make_request(planned, Path(scratch), num_rows_shown=rows)))
        command = [sys.executable, str(ROOT / "commands" / "check.py"), str(request)]
        code = subprocess.call(command, env=_environment())
    _warn_of_machine(loaded, steps)
    raise typer.Exit(code)


@app.command()
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run, or its summary.json")],
) -> None:
    """Show the state of a run, of its steps, and its numbers by round."""
    folder = run.parent if run.name == SUMMARY else run
    summary = read_summary(folder)
    console = terminal.make_console()
    console.print(f"{summary['name']}: {_state(summary, folder)}")
    console.print(terminal.steps_table(summary))
    console.print(terminal.rounds_table(summary))


@app.command()
def verify(run: RunFolder) -> None:
    """Compare every file of a run with the hash in its record."""
    checked = list(verifying.check_run(run))
    if not checked:
        raise ConfigError(f"{run} contains no step; expected the folder of a run, as in runs/demo")
    console = terminal.make_console()
    console.print(terminal.verified_table(checked))
    damaged = [step for step in checked if step.problems]
    if damaged:
        names = ", ".join(step.folder.name for step in damaged)
        _print(
            f"error: {names}: changed since it was written; move it away, and `run` runs the step again",
            file=sys.stderr,
        )
        raise typer.Exit(1)


@app.command()
def prune(
    run: RunFolder,
    yes: Annotated[bool, typer.Option("--yes", help="delete the listed folders")] = False,
) -> None:
    """List folders that the last run does not need; --yes deletes them.

    These are the folders of steps whose keys were edited later, and of steps that did not finish.
    """
    pruning.needed_by(run, read_summary(run))  # a folder that is no run, or whose run did not finish, gets no lock
    with lock_folder(run) if yes else contextlib.nullcontext():
        found = pruning.unneeded(run, pruning.needed_by(run, read_summary(run)))
        if not found:
            _print(f"{_short(run)}: the last run needs every folder; nothing to delete")
            return
        terminal.make_console().print(terminal.pruned_table(run, found))
        if yes:
            pruning.delete(run, found)
    size = f"{len(found)} {'folders' if len(found) > 1 else 'folder'}, {sum(item.bytes for item in found) / 1e6:.1f} MB"
    if yes:
        print(f"\n{size}: deleted")
    else:
        words = shlex.join(["prune", _short(run), "--yes"])
        _print(f"\n{size}. To delete: {_command()} {words}")
        print("Models in these folders are deleted too, also where another recipe uses them.")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def chat(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL_DIR", help="a folder of a model, a step or a run; or a hub name")
    ],
    prompt: Annotated[str | None, typer.Option(help="print one answer and exit; without it, a conversation")] = None,
) -> None:
    """Chat with a model. Other options, as --temperature 0, are passed to commands/chat.py."""
    words = [_model_of(model), *(["--prompt", prompt] if prompt is not None else [])]
    command = [sys.executable, str(ROOT / "commands" / "chat.py"), *words, *context.args]
    raise typer.Exit(subprocess.call(command, env=_environment()))


def _load(recipe: Path, overrides: list[str] | None) -> tuple[Recipe, list[Step]]:
    """The recipe and its plan, both checked. Raises UserError."""
    loaded = load_recipe(find_recipe(recipe), overrides or [])
    steps = make_plan(loaded)
    check_recipe(loaded, steps)
    return loaded, steps


def _warn_of_machine(recipe: Recipe, steps: list[Step]) -> None:
    """A line on stderr where this machine could not run the recipe."""
    try:
        check_machine(recipe, steps)
    except UserError as error:
        _print(f"warning: {error}", file=sys.stderr)


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


def _model_of(name: str) -> str:
    """The model folder or hub name that `chat` loads. Raises UserError."""
    folder = Path(name)
    if not folder.exists():
        if name.count("/") == 1 and not folder.parent.exists():
            return name  # a hub name
        raise ConfigError(f"{name} does not exist")
    if (folder / SUMMARY).is_file():
        best = read_summary(folder)["best_policy"]
        if best is None:
            raise ConfigError(f"{name} has no evaluated policy yet; give the folder of a step, or run the recipe again")
        return str(folder / best["folder"])
    artifact = Artifact.read(folder)
    if artifact is not None and "model" in artifact.outputs:
        return str(folder / artifact.outputs["model"])
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{name} is not a model, a step or a run: no config.json, no record of a model, no {SUMMARY}")
    return name


def _state(summary: Summary, folder: Path) -> str:
    if summary["state"] == "running" and not is_locked(folder):
        return "stopped: the process that ran it has ended; run the recipe again to resume"
    return summary["state"]


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _print(text: str, *, file: TextIO | None = None) -> None:
    """Prints a text that may hold names from a file or a folder."""
    print(printable(text), file=file)


def _command() -> str:
    """How this command was called, so that a printed line can be copied into the shell."""
    on_path = shutil.which("alignloop")
    called = Path(sys.argv[0]).absolute()
    return "alignloop" if on_path and Path(on_path).absolute() == called else shlex.quote(_short(called))


def _report(failure: StageFailed) -> None:
    """Why the stage failed, its command, the end of its output and a remedy, on stderr."""
    print(f"error: {failure.step.name} failed: {printable(failure.cause)}", file=sys.stderr)
    _print(f"command: {shlex.join(failure.command)}\nlast lines of {_short(failure.log)}:", file=sys.stderr)
    for line in failure.tail:
        print(f"  {printable(line)}", file=sys.stderr)
    if failure.hint:
        _print(f"hint: {failure.hint}", file=sys.stderr)


def main() -> None:
    """The entry point of the console script. Reports errors in one line, and exits with their code."""
    from typer.main import get_command

    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character shows its escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    try:
        code = get_command(app)(standalone_mode=False)
    except AlignloopError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        code = 2 if isinstance(error, UserError) else 1
    except OSError as error:  # a full disk, a folder without write permission
        hint = f"; {DISK_FULL}" if error.errno in NO_SPACE else ""
        print(f"error: {printable(str(error))}{hint}", file=sys.stderr)
        code = 1
    except StageFailed as failure:
        _report(failure)
        code = 2 if failure.is_users else 1
    except Interrupted as interrupted:
        print("interrupted; finished work is kept; run the same command again to resume", file=sys.stderr)
        code = 128 + interrupted.number
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # errors of the command-line parser have one
            raise
        message = error.format_message().rstrip(".")  # pyright: ignore[reportAttributeAccessIssue]
        _print(f"error: {message}; see {_command()} --help", file=sys.stderr)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
