"""Runs a plan: reuses, resumes or launches each step, and writes `summary.json` after every change.

Variants of one section may run at the same time. One loop in the main thread, where signals are raised, watches them.
Each run folder has one runner, which holds a lock that the kernel releases.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

from data_schemas.errors import UserError
from data_schemas.stage_keys import stages
from pipeline.launch import command_line, jobs, processes
from pipeline.launch.failures import StageFailed, StepWaits
from pipeline.launch.rows import ROW_STEPS, check_splits
from pipeline.launch.warm import WarmPool
from pipeline.plan import Step
from pipeline.state import summary
from pipeline.state.run import Run, StepState
from pipeline.steps import is_average_across_rounds

POLL_SECONDS = 0.2


def run_steps(
    run: Run,
    *,
    verbose: bool = False,
    show: jobs.Show,
    preflight: Callable[[Run], None] | None = None,
    after_round: Callable[[Run, Step], None] | None = None,
) -> None:
    """Runs every step in order, and variants of one section at the same time where `launch.devices` has room for them.
    A step that the run does not select is reused where it is finished, and stays pending otherwise.

    `show` is called when a step starts, repeatedly while it runs, and when it ends. `preflight` is called once, before
    the first step that uses a model and is not reused; an error of it stops the run. `after_round` is called with every
    evaluation that has run. Raises StageFailed, StepWaits, Interrupted or UserError; the summary then has the state of
    every step, and all finished steps are kept.
    """
    folder = run.recipe.folder
    run.states = {step.name: StepState(run.folder(step.name)) for step in run.steps}
    run.recipe_changes = summary.changes_since(folder, run.recipe.content)
    with processes.signals_raise(), WarmPool() as warm:
        try:
            for steps in _independent(run.steps):
                if preflight is not None and any(_uses_a_model(run, step) for step in steps):
                    preflight(run)
                    preflight = None
                Scheduler(run, steps, warm, verbose=verbose, show=show).run_all()
                if steps[0].name in ROW_STEPS and run.states[steps[0].name].artifact is not None:
                    check_splits(run, steps[0])
                if after_round is not None and steps[0].stage == "evaluate_policy":
                    after_round(run, steps[0])
            is_partial = any(state.state == "pending" for state in run.states.values())
            summary.write(folder, run, "partial" if is_partial else "done")
        except BaseException as error:
            ended = _state_after(error)
            for state in run.states.values():
                if state.state == "running":
                    state.state = ended
            with contextlib.suppress(OSError):  # a full disk: the first error is more useful
                summary.write(folder, run, ended)
            raise


def _state_after(error: BaseException) -> summary.State:
    """The state of a run that ended with an error."""
    if isinstance(error, StepWaits):
        return "waiting"
    return "interrupted" if isinstance(error, processes.Interrupted) else "failed"


def _uses_a_model(run: Run, step: Step) -> bool:
    """Whether a stage with torch is going to run for the step."""
    return stages()[step.stage].traits.imports_torch and run.decide(step).action in ("run", "resume")


def _independent(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """The steps in order, in groups. The variants of one section, which do not depend on one another, form a group."""

    def key(step: Step) -> tuple[object, ...]:
        return step.round, step.section, step.stage, is_average_across_rounds(step)

    for _, group in itertools.groupby(steps, key=key):
        yield list(group)


class Scheduler:
    """Runs a group of independent steps, as many at the same time as there are slots.

    After a failure, or where a step waits for people, no other step is started. The running ones finish, and then the
    first error is raised.
    """

    def __init__(self, run: Run, steps: Sequence[Step], warm: WarmPool, *, verbose: bool, show: jobs.Show) -> None:
        self.run, self.warm, self.verbose, self.show = run, warm, verbose, show
        self.waiting, self.free = list(steps), command_line.slots(steps[0].launch, len(steps))
        self.prints_names = len(self.free) > 1
        self.running: list[jobs.Job] = []
        self.failures: list[StageFailed | StepWaits | UserError] = []

    def run_all(self) -> None:
        """Returns when all steps have finished. Raises StageFailed, StepWaits or UserError."""
        try:
            while self.running or (self.waiting and not self.failures):
                self.fill()
                self.poll()
        finally:
            try:
                processes.stop([job.stage for job in self.running])
            finally:
                self._keep_complete()
        if self.failures:
            raise self.failures[0]

    def fill(self) -> None:
        """Starts waiting steps in the free slots."""
        while self.waiting and self.free and not self.failures:
            step = self.waiting.pop(0)
            try:
                job = jobs.start(self.run, step, self.free[0], self.warm, self.show)
            except UserError as error:
                self._fail(step, error)
                continue
            if job is not None:
                self.running.append(job)
                self.free.remove(job.slot)

    def poll(self) -> None:
        """Waits a moment, shows the progress of running steps, and settles those that have ended."""
        if self.running:
            self.running[0].stage.wait(POLL_SECONDS)
        for job in list(self.running):
            has_ended = job.stage.has_ended()
            if self.verbose:
                job.stage.print_new_output(job.step.name if self.prints_names else "")
            if has_ended:
                self.settle(job)
            else:
                state = self.run.states[job.step.name]
                state.seconds = job.stage.seconds
                self.show(job.step, state)

    def _keep_complete(self) -> None:
        """Records the steps that were stopped between their record and the end of their process: they are complete."""
        for job in self.running:
            with contextlib.suppress(UserError, OSError):  # a damaged record, a full disk: the first error is reported
                is_unsettled = self.run.states[job.step.name].state == "running"
                if is_unsettled and self.run.decide(job.step).action == "reuse":
                    jobs.finish(self.run, job, self.show)

    def settle(self, job: jobs.Job) -> None:
        """Records the result of a stage that has ended, or starts it again with a smaller batch."""
        try:
            again = jobs.start_again(self.run, job, self.warm, self.show)
            if again is None:
                jobs.finish(self.run, job, self.show)
        except (StageFailed, StepWaits, UserError) as error:
            self.running.remove(job)
            self._fail(job.step, error)
            return
        self.running.remove(job)
        if again is not None:
            self.running.append(again)
        else:
            self.free.append(job.slot)

    def _fail(self, step: Step, error: StageFailed | StepWaits | UserError) -> None:
        self.failures.append(error)
        state = self.run.states[step.name]
        state.state = _state_after(error)
        state.problem = str(error) if isinstance(error, StageFailed) else f"{step.name}: {error}"
        if self.running:  # otherwise the error is raised now, and reported by the caller
            summary.write(self.run.recipe.folder, self.run, "running")
            self.show(step, state)
