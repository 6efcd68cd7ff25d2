"""Runs a recipe and shows how far it is: what `alignloop run` and `alignloop.run` have in common."""

import contextlib
import sys
from collections.abc import Callable, Sequence

from data_schemas.locks import lock_folder
from data_schemas.text import printable
from pipeline.launch.failures import StepWaits
from pipeline.launch.machine import check_machine
from pipeline.launch.preflight import preflight
from pipeline.launch.processes import Interrupted
from pipeline.launch.round_tracking import track_round
from pipeline.launch.runner import run_steps
from pipeline.plan import Step
from pipeline.planner.admission import check_states, check_steps
from pipeline.recipe.resolved import Recipe
from pipeline.report import live, result, terminal, waiting
from pipeline.report.errors import what_is_kept
from pipeline.report.page.writing import PageWriter
from pipeline.state.run import Run, StepState
from pipeline.state.selection import Selection, check_finished
from pipeline.state.summary import Summary
from pipeline.state.summary import read as read_summary

# The command that runs the recipe, with the given selection of steps or all of them.
Command = Callable[[Selection | None], str]


def run_and_show(
    recipe: Recipe,
    steps: Sequence[Step],
    selection: Selection | None = None,
    *,
    verbose: bool,
    tries_first: bool,
    forced: bool = False,
    to_resume: Command,
) -> Summary:
    """Runs the steps, or the selected ones, with lines about them on stdout, keeps the run's page up to date, and
    prints the numbers of the finished run.

    `forced` goes on where a step cannot fit into memory. `to_resume` says how an interrupted run is resumed, and how
    the rest of a partial one is run. Raises UserError, StageFailed, StepWaits or Interrupted.
    """
    check_machine(recipe, selected(steps, selection))
    console = terminal.make_console()
    with lock_folder(recipe.folder):
        for partial in recipe.folder.glob(".*.partial-*"):  # a killed run was writing it
            partial.unlink(missing_ok=True)
        planned = selected_run(recipe, steps, selection)
        check_states(planned, forced=forced)
        is_live = live.can_be_live(console) and not verbose
        page = PageWriter(recipe.folder)
        try:
            with live.RunDisplay(console, len(steps), live=is_live) as display:

                def before_models(run: Run) -> None:
                    check_steps(run, forced=forced)
                    preflight(run)

                def show(step: Step, state: StepState) -> None:
                    display(step, state)
                    page(step, state)

                run_steps(
                    planned,
                    verbose=verbose,
                    show=show,
                    preflight=before_models if tries_first else None,
                    after_round=track_round,
                )
        except BaseException as error:
            page.write(warns=False)  # the error says what prevents it
            if isinstance(error, StepWaits):
                waiting.show(read_summary(recipe.folder), recipe.folder, to_resume(selection))
            if isinstance(error, Interrupted):
                with contextlib.suppress(OSError):  # the terminal is closed
                    print(printable(f"{what_is_kept(planned)}; to resume: {to_resume(selection)}"), file=sys.stderr)
            raise
        page.write()
    summary = read_summary(recipe.folder)
    if summary["state"] == "partial":
        result.show_partial(console, summary, recipe.folder, rest=to_resume(None))
    else:
        result.show(console, summary, recipe.folder)
    return summary


def selected(steps: Sequence[Step], selection: Selection | None) -> list[Step]:
    """The selected steps; all of them without a selection."""
    return [step for step in steps if selection is None or step.name in selection.steps]


def selected_run(
    recipe: Recipe, steps: Sequence[Step], selection: Selection | None, *, hash_limit: int | None = None
) -> Run:
    """The run of the selected steps. Raises ConfigError where one that they need is not finished."""
    if selection is None:
        return Run.of(recipe, list(steps), hash_limit=hash_limit)
    planned = Run.of(recipe, list(steps), hash_limit=hash_limit, selected=selection.steps)
    check_finished(planned, selection)
    return planned
