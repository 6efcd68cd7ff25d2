"""The commands that take a recipe, or help to write one: init | data | run | plan | check."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from data_schemas.errors import UserError
from pipeline.cli.app import app, environment, print_text
from pipeline.cli.completion import complete_step
from pipeline.launch import command_line, preview
from pipeline.launch.loading import load_checked
from pipeline.launch.machine import check_machine, emulated_precision
from pipeline.launch.preflight import preflight
from pipeline.launch.processes import call
from pipeline.plan import Step
from pipeline.planner.devices import gpu_named, this_gpu
from pipeline.planner.estimate import planner_of
from pipeline.planner.remedies import remedies_of
from pipeline.recipe.schema import Recipe
from pipeline.recipe.shipped import copy_recipe, find_recipe
from pipeline.report import cost_table, errors, terminal
from pipeline.report.errors import command_name, run_command
from pipeline.report.running import run_and_show, selected, selected_run
from pipeline.state.fingerprint import SMALL
from pipeline.state.run import Run
from pipeline.state.selection import select
from pipeline.unused import check_unused

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
STEP_HELP = "a step, as in round-1.dpo, or those of a section, as in dpo, or of a round, as in round-1."
Until = Annotated[
    str | None,
    typer.Option(
        metavar="STEP",
        help=f"Run the steps up to and including STEP: {STEP_HELP}  [default: all]",
        autocompletion=complete_step,
    ),
]
Only = Annotated[
    str | None,
    typer.Option(
        metavar="STEP",
        help="Run only STEP, whose inputs must be finished.  [default: all]",
        autocompletion=complete_step,
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="STEP",
        help="Run STEP and those that follow; the ones before must be finished.  [default: all]",
        autocompletion=complete_step,
    ),
]

Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME",
        help="The GPU to estimate the cost for, as in h100.  [default: launch.gpu, or this machine's]",
    ),
]


@app.command()
def init(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A shipped recipe to copy. Without it, a commented starter is written."),
    ] = None,
) -> None:
    """Write a recipe to start from into this folder."""
    on_cpu = name is None and this_gpu() is None
    recipe, *others = (path.relative_to(Path.cwd()) for path in copy_recipe(name, Path.cwd(), on_cpu=on_cpu))
    print_text(f"written: {', '.join(map(str, (recipe, *others)))}")
    if name is None:
        print(f"it is for this machine, with {'no GPU' if on_cpu else 'a GPU'}: see `launch` and `bf16`")
    print("set its model and data, then:")
    print_text(f"  {command_name()} plan {recipe}     # shows every step and checks every key; runs nothing")
    print_text(f"  {command_name()} check {recipe}    # shows the rows that each stage trains on")
    print_text(f"  {command_name()} run {recipe}      # runs the loop")


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
    evaluation: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="An evaluation set: also show which of its prompts the rows contain."),
    ] = None,
) -> None:
    """Show what files of rows contain, what curation would drop, and what to write into a recipe. Needs no recipe."""
    command = [
        sys.executable,
        str(command_line.ROOT / "commands" / "data.py"),
        *(["--model", model] if model else []),
        *(word for file in evaluation or [] for word in ("--evaluation", file)),
        "--",
        *files,
    ]
    raise typer.Exit(call(command, environment()))


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    until: Until = None,
    only: Only = None,
    start: From = None,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Show the output of the stages, and the traceback of an error.  [default: off]"
        ),
    ] = False,
    tries_first: Preflight = True,
    force: Annotated[
        bool, typer.Option("--force", help="Go on where a step cannot fit into memory.  [default: off]")
    ] = False,
) -> None:
    """Run the steps of a recipe, or some of them. Finished steps are reused, and a stopped run is resumed."""
    errors.shown.tracebacks = errors.shown.tracebacks or verbose
    loaded, steps = load(recipe, overrides)
    selection = select(steps, until=until, only=only, start=start)
    run_and_show(
        loaded,
        steps,
        selection,
        verbose=verbose,
        tries_first=tries_first,
        forced=force,
        to_resume=lambda selection: run_command(recipe, overrides, selection),
    )


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    until: Until = None,
    only: Only = None,
    start: From = None,
    cost: Annotated[
        bool,
        typer.Option(
            "--cost", help="Also show what each step will need: memory, disk, hours and money.  [default: off]"
        ),
    ] = False,
    gpu: Gpu = None,
) -> None:
    """Show which steps will be reused, resumed or run, and why. Runs nothing."""
    if gpu is not None:
        gpu_named(gpu, where="--gpu")
    loaded, steps = load(recipe, overrides)
    selection = select(steps, until=until, only=only, start=start)
    planned = selected_run(loaded, steps, selection, hash_limit=SMALL)
    decisions = {step.name: planned.decide(step) for step in steps}
    console = terminal.make_console()
    # On a terminal a line is wrapped below its own beginning; in a file each step is one line.
    console.print(terminal.plan_tree(planned, decisions), soft_wrap=not console.is_terminal)
    if cost or gpu is not None:
        print("estimating what the steps will need", file=sys.stderr, flush=True)
        with (
            tempfile.TemporaryDirectory(prefix="alignloop-plan-") as scratch,
            planner_of(planned, Path(scratch), gpu=gpu) as planner,
        ):
            estimate = planner.estimate()
            cost_table.show(console, estimate, remedies_of(planner, estimate))
    _warn_of_machine(loaded, selected(steps, selection))


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(help="Number of rows to show of each training stage.")] = 2,
    tries_first: Preflight = True,
) -> None:
    """Show the rows that each stage trains on, with the trained tokens in colour.

    Also shows what is wrong with the rows, and which precision is fastest on this device. Trains nothing. The run's
    folder keeps which sections passed a trial on a small model.
    """
    loaded, steps = load(recipe, overrides)
    planned = Run.of(loaded, steps, hash_limit=SMALL)
    with tempfile.TemporaryDirectory(prefix="alignloop-check-") as scratch:
        request = Path(scratch) / "request.json"
        request.write_text(json.dumps(preview.make_request(planned, Path(scratch), num_rows_shown=rows)))
        command = [sys.executable, str(command_line.ROOT / "commands" / "check.py"), str(request)]
        code = call(command, environment())
        if tries_first and not code:
            preflight(planned)
    _warn_of_machine(loaded, steps)
    raise typer.Exit(code)


def load(recipe: Path, overrides: list[str] | None) -> tuple[Recipe, list[Step]]:
    """The recipe and its plan, both checked. Raises UserError."""
    loaded, steps = load_checked(find_recipe(recipe), overrides or [])
    for sentence in (*check_unused(loaded, steps), *emulated_precision(steps)):
        print_text(f"warning: {loaded.path}: {sentence}", file=sys.stderr)
    return loaded, steps


def _warn_of_machine(recipe: Recipe, steps: list[Step]) -> None:
    """A line on stderr where this machine could not run the recipe."""
    try:
        check_machine(recipe, steps)
    except UserError as error:
        print_text(f"warning: {error}", file=sys.stderr)
