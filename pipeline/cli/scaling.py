"""The command that fits scaling laws to a table of small runs, and runs them first with --run: scale."""

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from data_schemas.errors import ConfigError
from data_schemas.outputs import check_new_file
from data_schemas.stage_keys import with_defaults
from pipeline.cli.app import app, environment, print_text
from pipeline.cli.recipes import Overrides, load
from pipeline.launch import command_line
from pipeline.launch.processes import call
from pipeline.recipe.resolved import Recipe
from pipeline.report.errors import command_name
from pipeline.report.live import short_path
from pipeline.report.running import run_and_show
from pipeline.scaling.grid import Grid, plan_grid
from pipeline.scaling.mixes import MixPlan, plan_mixes
from pipeline.scaling.tables import write_grid, write_mixes


@app.command()
def scale(
    table: Annotated[
        str | None,
        typer.Argument(
            metavar="[TABLE]",
            help="A CSV file of runs: parameters, tokens, loss and, if known, flops; or share.NAME and loss.",
        ),
    ] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(
            metavar="FLOPS", help="A budget of training. May be given several times.  [default: 10 x the largest run]"
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Also write a JSON file.  [default: none]")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="RECIPE", help="Run the small runs first, with the documents and `pretrain` of a recipe."
        ),
    ] = None,
    flops: Annotated[
        list[float] | None,
        typer.Option("--flops", metavar="FLOPS", help="With --run: a budget of the grid, several times."),
    ] = None,
    width: Annotated[
        list[int] | None,
        typer.Option("--width", min=1, metavar="N", help="With --run: a hidden size of the grid, several times."),
    ] = None,
    mixes: Annotated[
        int | None,
        typer.Option(
            "--mixes", min=1, metavar="N", help="With --run: train on so many random mixes of the recipe's documents."
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held-out",
            metavar="FILE",
            help="With --mixes: documents like those that the model is for.  [default: held-out ones of the recipe]",
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Fit scaling laws to a table of small runs: the model size and the tokens for a budget. --run trains them first.

    Finished runs are reused, and a stopped one is resumed when the command is typed again.
    """
    given = {"--flops": flops, "--width": width, "--mixes": mixes, "--held-out": held_out, "--set": overrides}
    if recipe is None:
        if unused := [name for name, value in given.items() if value]:
            raise ConfigError(f"{unused[0]} needs --run RECIPE, which trains the small runs")
        if table is None:
            raise ConfigError("a table is missing: give the CSV file of finished runs, or --run RECIPE to train them")
    else:
        if table is not None:
            raise ConfigError(f"{table}: --run writes the table itself; leave it out")
        if bool(mixes) == bool(flops and width) or (mixes and (flops or width)):
            raise ConfigError("--run needs --flops and --width for a grid of sizes, or --mixes for data mixes")
        if held_out is not None and not mixes:
            raise ConfigError("--held-out is for --mixes; the runs of a grid have the recipe's held-out documents")
        _check_fit(budget or [], output, is_of_mixes=bool(mixes))
        loaded, _ = load(recipe, overrides)
        resume = _command_again(sys.argv[1:])
        if mixes:
            table = str(_run_mixes(plan_mixes(loaded, mixes, held_out), resume))
        else:
            table = str(_run_grid(loaded, plan_grid(loaded, flops or [], width or []), resume))
        print_text(f"written: {table}")
    command = [
        sys.executable,
        str(command_line.ROOT / "commands" / "scale.py"),
        *(word for value in budget or [] for word in ("--budget", repr(value))),
        *(["--output", output] if output is not None else []),
        "--",
        table,
    ]
    raise typer.Exit(call(command, environment()))


def _check_fit(budgets: Sequence[float], output: str | None, *, is_of_mixes: bool) -> None:
    """Raises ConfigError for what the fit would refuse after all runs."""
    if is_of_mixes and budgets:
        raise ConfigError("--budget is for a table of sizes, and --mixes writes one of data mixes; leave it out")
    for value in budgets:
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"--budget {value}: expected FLOPs, a number above 0, as in 1e21")
    if output is not None:
        check_new_file(Path(output))


def _command_again(words: Sequence[str]) -> str:
    return f"{command_name()} {shlex.join(words)}"


def _run_grid(recipe: Recipe, grid: Grid, resume: str) -> Path:
    """Runs the grid and writes its table."""
    print_text(f"{grid.recipe.name}: {len(grid.runs)} runs in {short_path(grid.recipe.folder)}")
    for size in {run.size.width: run.size for run in grid.runs}.values():
        runs = [run for run in grid.runs if run.size.width == size.width]
        layers = f"{size.shape.layers} layer{'s' if size.shape.layers > 1 else ''}"
        steps = ", ".join(str(run.num_steps) for run in runs)
        print_text(
            f"  width {size.width}: {layers}, {size.parameters:,} parameters, learning rate "
            f"{runs[0].learning_rate:.3g}; {steps} steps"
        )
    summary = run_and_show(
        grid.recipe, grid.steps, verbose=False, tries_first=False, to_resume=lambda _selection: resume
    )
    block_size = with_defaults("pretrain", recipe.section("pretrain").keys)["block_size"]
    return write_grid(summary, grid.recipe.folder, grid.runs, block_size=block_size)


def _run_mixes(plan: MixPlan, resume: str) -> Path:
    """Runs the mixes and writes their table."""
    print_text(f"{plan.recipe.name}: {len(plan.runs)} mixes in {short_path(plan.recipe.folder)}")
    for run in plan.runs:
        shares = ", ".join(f"{name} {share:.3f}" for name, share in run.shares.items())
        print_text(f"  {run.step}: {shares}")
    summary = run_and_show(
        plan.recipe, plan.steps, verbose=False, tries_first=False, to_resume=lambda _selection: resume
    )
    return write_mixes(summary, plan.recipe.folder, plan.runs)
