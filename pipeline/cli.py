"""The `alignloop` command: init | data | run | plan | check | status | verify | prune | chat.

    alignloop run configs/demo.yaml --set dpo.beta=0.2

A user's mistake is reported in one line on stderr and ends with exit code 2. A failed stage ends with 1, Ctrl-C with
130 and SIGTERM with 143.
"""

import contextlib
import importlib.metadata
import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, TextIO

import typer

from data_schemas.errors import ConfigError, UserError
from data_schemas.files import check_name
from data_schemas.locks import lock_folder
from data_schemas.text import printable
from data_schemas.unexpected import TRACEBACKS
from pipeline.launch import preview
from pipeline.launch.checks import check_machine
from pipeline.launch.command_line import ROOT
from pipeline.launch.loading import load_checked
from pipeline.launch.preflight import preflight
from pipeline.launch.processes import Interrupted
from pipeline.launch.runner import run_steps
from pipeline.plan import Step
from pipeline.recipe.schema import Recipe
from pipeline.recipe.shipped import copy_recipe, find_recipe
from pipeline.report import errors, live, result, run_status, terminal
from pipeline.report.errors import command_name
from pipeline.report.live import short_path
from pipeline.state import pruning, verifying
from pipeline.state.fingerprint import SMALL
from pipeline.state.models import model_of
from pipeline.state.run import Run
from pipeline.state.summary import SUMMARY
from pipeline.state.summary import read as read_summary
from pipeline.unused import check_unused

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run the Llama 3 post-training loop from one recipe: rounds of preferences, reward model, rejection sampling, "
    "SFT, DPO and evaluation. Start with `alignloop run demo`, or with `alignloop init` for your own data. "
    "`alignloop COMMAND --help` describes a command.",
)
RecipeFile = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="A recipe, which is a YAML file, or the name of a shipped one, as in demo."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the recipe, as in --set dpo.beta=0.2. May be given several times.  [default: none]",
    ),
]
Preflight = Annotated[
    bool,
    typer.Option(
        "--preflight/--no-preflight",
        envvar="ALIGNLOOP_PREFLIGHT",
        help="Try every section on a small model before the first step that uses a model.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, as in runs/demo.")]


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


@app.command()
def init(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A shipped recipe to copy. Without it, a commented starter is written."),
    ] = None,
) -> None:
    """Write a recipe to start from into this folder."""
    recipe, *others = (path.relative_to(Path.cwd()) for path in copy_recipe(name, Path.cwd()))
    _print(f"written: {', '.join(map(str, (recipe, *others)))}")
    print("set its model and data, then:")
    _print(f"  {command_name()} plan {recipe}     # shows every step and checks every key; runs nothing")
    _print(f"  {command_name()} check {recipe}    # shows the rows that each stage trains on")
    _print(f"  {command_name()} run {recipe}      # runs the loop")


@app.command()
def data(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Files or folders of rows, or hub names, as in a recipe.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="A model: also show lengths in tokens, and rows in its chat template.  [default: none]",
        ),
    ] = None,
) -> None:
    """Show what files of rows contain, and what to write into a recipe. Needs no recipe."""
    command = [sys.executable, str(ROOT / "commands" / "data.py"), *(["--model", model] if model else []), "--", *files]
    raise typer.Exit(subprocess.call(command, env=_environment()))


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Show the output of the stages, and the traceback of an error.  [default: off]"
        ),
    ] = False,
    tries_first: Preflight = True,
) -> None:
    """Run the steps of a recipe. Finished steps are reused, and a stopped run is resumed."""
    errors.shown.tracebacks = errors.shown.tracebacks or verbose
    loaded, steps = _load(recipe, overrides)
    check_machine(loaded, steps)
    console = terminal.make_console()
    with lock_folder(loaded.folder):
        for partial in loaded.folder.glob(".*.partial-*"):  # a killed run was writing it
            partial.unlink(missing_ok=True)
        planned = Run.of(loaded, steps)
        is_live = live.can_be_live(console) and not verbose
        try:
            with live.RunDisplay(console, len(steps), live=is_live) as display:
                run_steps(planned, verbose=verbose, show=display, preflight=preflight if tries_first else None)
        except Interrupted:
            _print(errors.what_is_kept(planned, recipe, overrides), file=sys.stderr)
            raise
    summary = read_summary(loaded.folder)
    result.show(console, summary, loaded.folder)


@app.command()
def plan(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Show which steps will be reused, resumed or run, and why. Runs nothing."""
    loaded, steps = _load(recipe, overrides)
    planned = Run.of(loaded, steps, hash_limit=SMALL)
    decisions = {step.name: planned.decide(step) for step in steps}
    console = terminal.make_console()
    # On a terminal a line is wrapped below its own beginning; in a file each step is one line.
    console.print(terminal.plan_tree(planned, decisions), soft_wrap=not console.is_terminal)
    _warn_of_machine(loaded, steps)


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(help="Number of rows to show of each training stage.")] = 2,
    tries_first: Preflight = True,
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
        if tries_first and not code:
            preflight(planned, keeps_result=False)
    _warn_of_machine(loaded, steps)
    raise typer.Exit(code)


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
        names = ", ".join(step.folder.name for step in damaged)
        _print(
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
            _print(f"{short_path(run)}: the last run needs every folder; nothing to delete")
            return
        terminal.make_console().print(terminal.pruned_table(run, found))
        if yes:
            pruning.delete(run, found)
    size = f"{len(found)} {'folders' if len(found) > 1 else 'folder'}, {sum(item.bytes for item in found) / 1e6:.1f} MB"
    if yes:
        print(f"\n{size}: deleted")
    else:
        words = shlex.join(["prune", short_path(run), "--yes"])
        _print(f"\n{size}. To delete: {command_name()} {words}")
        print("Models in these folders are deleted too, also where another recipe uses them.")


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(metavar="MODEL_DIR", help="The folder of a model, of a step or of a run, or a hub name.")
    ],
    prompt: Annotated[
        str | None,
        typer.Option(help="Print the answer to this prompt and exit.  [default: none, which starts a conversation]"),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.  [default: none]")] = None,
    temperature: Annotated[
        float, typer.Option(help="Temperature of the sampling. With 0 the most probable token is taken.")
    ] = 0.7,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="Longest answer, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    use_cpu: Annotated[
        bool, typer.Option("--use_cpu", help="Run on the CPU even if there is a GPU.  [default: off]")
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust_remote_code", help="Run code that comes with the model's files.  [default: off]"),
    ] = False,
) -> None:
    """Chat with a model. An empty line or Ctrl-D ends the conversation."""
    words = [model_of(model)]
    for name, value in (("prompt", prompt), ("system", system)):
        words += [f"--{name}={value}"] if value is not None else []
    words += [f"--temperature={temperature}", f"--max_new_tokens={max_new_tokens}", f"--seed={seed}"]
    words += ["--use_cpu"] if use_cpu else []
    words += ["--trust_remote_code"] if trust_remote_code else []
    command = [sys.executable, str(ROOT / "commands" / "chat.py"), *words]
    raise typer.Exit(subprocess.call(command, env=_environment()))


def _load(recipe: Path, overrides: list[str] | None) -> tuple[Recipe, list[Step]]:
    """The recipe and its plan, both checked. Raises UserError."""
    loaded, steps = load_checked(find_recipe(recipe), overrides or [])
    for sentence in check_unused(loaded, steps):
        _print(f"warning: {loaded.path}: {sentence}", file=sys.stderr)
    return loaded, steps


def _warn_of_machine(recipe: Recipe, steps: list[Step]) -> None:
    """A line on stderr where this machine could not run the recipe."""
    try:
        check_machine(recipe, steps)
    except UserError as error:
        _print(f"warning: {error}", file=sys.stderr)


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path} | ({TRACEBACKS: "1"} if errors.shown.tracebacks else {})


def _print(text: str, *, file: TextIO | None = None) -> None:
    """Prints a text that may hold names from a file or a folder."""
    print(printable(text), file=file)


def main() -> None:
    """The entry point of the console script. Reports errors in one line, and exits with their code."""
    from typer.main import get_command

    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character shows its escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    try:
        for name in (Path.cwd(), *sys.argv[1:]):
            check_name(name)
        code = get_command(app)(standalone_mode=False)
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        code = errors.report(error)
    sys.exit(code)


if __name__ == "__main__":
    main()
