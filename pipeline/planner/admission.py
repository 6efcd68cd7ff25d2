"""What `run` does with the estimate: it refuses a step that cannot fit, and keeps the estimate of every other."""

import sys
import tempfile
from pathlib import Path

from data_schemas.errors import ConfigError, DataError, StageError
from data_schemas.text import printable
from pipeline.planner.devices import gpu_named
from pipeline.planner.estimate import Planner, RunEstimate, StepEstimate, planner_of
from pipeline.planner.models import UnknownSizes
from pipeline.planner.remedies import refusals, remedies_of
from pipeline.state.costs import Estimated
from pipeline.state.run import Run

FORCE = "--force goes on"


def check_states(run: Run, *, forced: bool) -> None:
    """Before anything starts: refuses a step whose model states alone do not fit its device, in milliseconds.

    Raises ConfigError for such a step unless `forced`, and for a name of a GPU that is not known.
    """
    for step in run.steps:
        if step.launch.gpu:
            gpu_named(step.launch.gpu, where=f"{run.recipe.path}: launch.gpu")
    try:
        planner = Planner(run, None)
        _refuse(run, planner, planner.estimate(), forced=forced)
    except (UnknownSizes, DataError):  # a damaged record is reported by the step whose it is
        return


def check_steps(run: Run, *, forced: bool) -> None:
    """Before the first step with a model: refuses a step that does not fit with its activations, and keeps all
    estimates in `run.estimates`. On a CPU the activations are left out: there the probe may take longer than the steps.

    An estimate that fails itself is a warning on stderr. Raises ConfigError unless `forced`.
    """
    probes = any(step.launch.device == "gpu" for step in run.steps)
    print("estimating what the steps will need", file=sys.stderr, flush=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="alignloop-plan-") as scratch,
            planner_of(run, Path(scratch), probes=probes) as planner,
        ):
            estimate = planner.estimate()
            run.estimates.update({step.step.name: estimated(step) for step in estimate.steps})
            _refuse(run, planner, estimate, forced=forced)
    except (UnknownSizes, StageError) as error:
        print(f"warning: the run was not estimated: {printable(str(error))}", file=sys.stderr)


def estimated(estimate: StepEstimate) -> Estimated:
    seconds = estimate.seconds
    return {
        "stage": estimate.step.stage,
        "parameters": estimate.base_parameters,
        "rows": estimate.work.rows,
        "tokens": estimate.work.tokens,
        "flops": estimate.work.flops,
        "seconds": [round(seconds.low, 1), round(seconds.high, 1)] if seconds else [],
        "basis": seconds.basis if seconds else "",
        "memory": estimate.needed,
    }


def _refuse(run: Run, planner: Planner, estimate: RunEstimate, *, forced: bool) -> None:
    if all(step.fits is not False for step in estimate.to_run):
        return
    line, *others = refusals(estimate, remedies_of(planner, estimate))
    more = f" (`plan --cost` shows {len(others)} more)" if others else ""
    if not forced:
        raise ConfigError(f"{run.recipe.path}: {line}{more}; {FORCE}")
    print(f"warning: {printable(line)}{more}", file=sys.stderr)
