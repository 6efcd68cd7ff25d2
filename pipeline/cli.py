"""The `alignloop` command: run | plan | check | status | verify | prune | chat.

    alignloop run configs/demo.yaml --set dpo.beta=0.2

A user's mistake is one line on stderr and exit code 2; a stage that fails is 1; Ctrl-C is 130 and SIGTERM 143.
"""

import contextlib
import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError, UserError
from data_schemas.files import DISK_FULL, read_json
from data_schemas.locks import is_locked, lock_folder
from data_schemas.text import printable
from pipeline.launch import preview
from pipeline.launch.checks import check_machine, check_recipe
from pipeline.launch.command_line import ROOT
from pipeline.launch.processes import Interrupted
from pipeline.launch.runner import StageFailed, run_steps
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.report import terminal
from pipeline.state import pruning, verifying
from pipeline.state.fingerprint import SMALL
from pipeline.state.run import Run
from pipeline.state.summary import SUMMARY

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="The post-training loop from one file: reward model, rejection sampling, SFT, DPO, evaluated, round by round.",
)
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="the recipe, a YAML file")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="as in --set dpo.beta=0.2")]


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show the stages' own output")] = False,
) -> None:
    """Run the loop; run again, it reuses what is whole and goes on where it stopped."""
    loaded = load_recipe(recipe, overrides or [])
    steps = make_plan(loaded)
    check_recipe(loaded, steps)
    check_machine(loaded, steps)
    console = terminal.make_console()
    with lock_folder(loaded.folder):
        for left in loaded.folder.glob(".*.partial-*"):  # what a killed run was writing
            left.unlink(missing_ok=True)
        planned = Run.of(loaded, steps)
        live = console.is_terminal and not verbose
        with terminal.Progress(console, len(steps), live=live) as progress:
            run_steps(planned, verbose=verbose, show=progress)
    summary = _read_summary(loaded.folder)
    console.print(terminal.rounds_table(summary))
    best = loaded.folder / summary["best_policy"]["folder"]
    print(f"\nbest policy: {summary['best_policy']['step']}")
    print(f"chat with it: {_command()} chat {shlex.quote(_short(best))}")
    print(f"all numbers:  {_short(loaded.folder / SUMMARY)}")


@app.command()
def plan(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Show every step: reuse, resume or run, and why. Runs nothing."""
    loaded = load_recipe(recipe, overrides or [])
    steps = make_plan(loaded)
    check_recipe(loaded, steps)
    planned = Run.of(loaded, steps, hash_limit=SMALL)
    decisions = {step.name: planned.decide(step) for step in steps}
    terminal.make_console().print(terminal.plan_tree(planned, decisions), soft_wrap=True)
    try:
        check_machine(loaded, steps)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(help="rows to show of each training stage")] = 2,
) -> None:
    """Look at the rows as each stage would train on them, trained tokens in colour. Trains nothing."""
    loaded = load_recipe(recipe, overrides or [])
    steps = make_plan(loaded)
    check_recipe(loaded, steps)
    planned = Run.of(loaded, steps, hash_limit=SMALL)
    with tempfile.TemporaryDirectory(prefix="alignloop-check-") as scratch:
        request = preview.make_request(planned, Path(scratch)) | {"show": rows}
        asked = Path(scratch) / "request.json"
        asked.write_text(json.dumps(request))
        code = subprocess.call([sys.executable, str(ROOT / "commands" / "check.py"), str(asked)], env=_environment())
    try:
        check_machine(loaded, steps)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
    raise typer.Exit(code)


@app.command()
def status(run: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, or its summary.json")]) -> None:
    """Show how far a run is, and its numbers."""
    folder = run.parent if run.name == SUMMARY else run
    summary = _read_summary(folder)
    console = terminal.make_console()
    console.print(f"{summary['name']}: {_state(summary, folder)}")
    console.print(terminal.steps_table(summary))
    console.print(terminal.rounds_table(summary))


@app.command()
def verify(run: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder")]) -> None:
    """Read every file of a run and compare it with the records: is all of it as it was written?"""
    checked = list(verifying.check_run(run))
    if not checked:
        raise ConfigError(f"{run} holds no step: is it a run's folder?")
    console = terminal.make_console()
    console.print(terminal.verified_table(checked))
    damaged = [one for one in checked if one.problems]
    if damaged:
        names = ", ".join(one.folder.name for one in damaged)
        print(f"error: {names}: not as written; move such a folder away, and `run` makes it again", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def prune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder")],
    yes: Annotated[bool, typer.Option("--yes", help="delete them; without it they are only listed")] = False,
) -> None:
    """List what the last run of a folder does not need, as steps of keys that were edited since; --yes deletes it."""
    pruning.needed_by(run, _read_summary(run))  # what is no run, or did not finish, gets no lock
    with lock_folder(run) if yes else contextlib.nullcontext():
        found = pruning.unneeded(run, pruning.needed_by(run, _read_summary(run)))
        if not found:
            print(f"{_short(run)}: the last run needs all of it")
            return
        terminal.make_console().print(terminal.pruned_table(run, found))
        if yes:
            pruning.delete(run, found)
    size = f"{len(found)} {'folders' if len(found) > 1 else 'folder'}, {sum(one.bytes for one in found) / 1e6:.1f} MB"
    if yes:
        print(f"\n{size}: deleted")
    else:
        words = shlex.join(["prune", _short(run), "--yes"])
        print(f"\n{size}; to delete them: {_command()} {words}\na model in them that another recipe names goes as well")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def chat(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL_DIR", help="a model's, step's or run's folder; or a hub name")],
    prompt: Annotated[str | None, typer.Option(help="print one answer and end; without it, a conversation")] = None,
) -> None:
    """Talk to a model. Further --keys go to stages/chat.py as they are."""
    words = [_model_of(model), *(["--prompt", prompt] if prompt is not None else [])]
    command = [sys.executable, str(ROOT / "commands" / "chat.py"), *words, *context.args]
    raise typer.Exit(subprocess.call(command, env=_environment()))


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


def _model_of(name: str) -> str:
    folder = Path(name)
    if not folder.exists():
        if name.count("/") == 1 and not folder.parent.exists():
            return name  # a hub name
        raise ConfigError(f"{name} does not exist")
    if (folder / SUMMARY).is_file():
        best = _read_summary(folder)["best_policy"]
        if best is None:
            raise ConfigError(f"{name} has no evaluated policy yet")
        return str(folder / best["folder"])
    artifact = Artifact.read(folder)
    if artifact is not None and "model" in artifact.outputs:
        return str(folder / artifact.outputs["model"])
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{name} is no model: it has no config.json, no record of a model and no {SUMMARY}")
    return name


def _read_summary(folder: Path) -> dict[str, Any]:
    summary = read_json(folder / SUMMARY)
    if not (folder / SUMMARY).exists():
        raise ConfigError(f"{folder} has no {SUMMARY}: is it a run's folder?")
    if summary is None or not {"name", "state", "steps", "rounds", "best_policy"} <= summary.keys():
        raise ConfigError(f"{folder / SUMMARY} is not a run's summary; run the recipe again, which writes it anew")
    return summary


def _state(summary: dict[str, Any], folder: Path) -> str:
    if summary["state"] == "running" and not is_locked(folder):
        return "stopped: its runner is gone; run it again to go on"
    return summary["state"]


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _command() -> str:
    """How this command was called, so that a printed line can be typed."""
    found = shutil.which("alignloop")
    called = Path(sys.argv[0]).absolute()
    return "alignloop" if found and Path(found).absolute() == called else shlex.quote(_short(called))


def _explain(failure: StageFailed) -> None:
    print(f"error: {failure.step.name} failed: {printable(failure.cause)}", file=sys.stderr)
    print(f"command: {shlex.join(failure.command)}\nlast lines of {_short(failure.log)}:", file=sys.stderr)
    for line in failure.tail:
        print(f"  {printable(line)}", file=sys.stderr)
    if failure.hint:
        print(f"hint: {failure.hint}", file=sys.stderr)


def main() -> None:
    """The console script's entry: turns what went wrong into a line and an exit code."""
    from typer.main import get_command

    try:
        code = get_command(app)(standalone_mode=False)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        code = 2
    except OSError as error:  # a full disk, a folder that is not ours
        hint = f"; {DISK_FULL}" if error.errno in NO_SPACE else ""
        print(f"error: {printable(str(error))}{hint}", file=sys.stderr)
        code = 1
    except StageFailed as failure:
        _explain(failure)
        code = 2 if failure.is_users else 1
    except Interrupted as interrupted:
        print("interrupted; what is finished is kept: run the same command again to go on", file=sys.stderr)
        code = 128 + interrupted.number
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # the command line's own errors have one
            raise
        message = error.format_message().rstrip(".")  # pyright: ignore[reportAttributeAccessIssue]
        print(f"error: {message}; see {_command()} --help", file=sys.stderr)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
