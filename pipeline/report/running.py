"""Runs a recipe and shows how far it is: what `alignloop run` and `alignloop.run` have in common."""

import contextlib
import sys
from collections.abc import Callable, Sequence

from data_schemas.locks import lock_folder
from data_schemas.text import printable
from pipeline.launch.checks import check_machine
from pipeline.launch.preflight import preflight
from pipeline.launch.processes import Interrupted
from pipeline.launch.round_tracking import track_round
from pipeline.launch.runner import run_steps
from pipeline.plan import Step
from pipeline.recipe.resolved import Recipe
from pipeline.report import live, result, terminal
from pipeline.report.errors import what_is_kept
from pipeline.state.run import Run
from pipeline.state.summary import Summary
from pipeline.state.summary import read as read_summary


def run_and_show(
    recipe: Recipe, steps: Sequence[Step], *, verbose: bool, tries_first: bool, to_resume: Callable[[], str]
) -> Summary:
    """Runs the steps, with lines about them on stdout, and prints the numbers of the finished run.

    `to_resume` says how an interrupted run is resumed, for the line on stderr about what is kept. Raises UserError,
    StageFailed or Interrupted.
    """
    check_machine(recipe, steps)
    console = terminal.make_console()
    with lock_folder(recipe.folder):
        for partial in recipe.folder.glob(".*.partial-*"):  # a killed run was writing it
            partial.unlink(missing_ok=True)
        planned = Run.of(recipe, list(steps))
        is_live = live.can_be_live(console) and not verbose
        try:
            with live.RunDisplay(console, len(steps), live=is_live) as display:
                run_steps(
                    planned,
                    verbose=verbose,
                    show=display,
                    preflight=preflight if tries_first else None,
                    after_round=track_round,
                )
        except Interrupted:
            with contextlib.suppress(OSError):  # the terminal is closed
                print(printable(f"{what_is_kept(planned)}; to resume: {to_resume()}"), file=sys.stderr)
            raise
    summary = read_summary(recipe.folder)
    result.show(console, summary, recipe.folder)
    return summary
