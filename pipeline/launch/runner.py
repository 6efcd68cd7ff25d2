"""Runs a plan: reuses, resumes or launches each step, and writes `summary.json` after every change.

Variants of one section may run at the same time. One loop in the main thread, where signals are raised, watches them.
Each run folder has one runner, which holds a lock that the kernel releases.
"""

import contextlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_schemas.artifact import HALVED
from data_schemas.endpoints import PAID_ANSWERS
from data_schemas.errors import UserError
from data_schemas.files import read_json, write_atomically
from data_schemas.key_rules import Values
from data_schemas.locks import lock_folder
from data_schemas.people import FOLDER as PEOPLE
from data_schemas.stage_keys import stages
from pipeline.launch import command_line, processes
from pipeline.launch.failures import StageFailed, StepWaits, ending_of
from pipeline.launch.rows import ROW_STEPS, check_splits
from pipeline.launch.warm import WarmPool
from pipeline.plan import Step
from pipeline.state import summary
from pipeline.state.costs import write_estimate
from pipeline.state.run import IDENTITY_FILE, Decision, Run, StepState, record_of

NUM_HALVED = 2  # batches that a stage may halve: that of training, and that of evaluation
POLL_SECONDS = 0.2

Show = Callable[[Step, StepState], None]


def run_steps(
    run: Run,
    *,
    verbose: bool = False,
    show: Show,
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
    for _, group in itertools.groupby(steps, key=lambda step: (step.round, step.section, step.stage)):
        yield list(group)


@dataclass
class Job:
    """A running step."""

    step: Step
    decision: Decision
    slot: command_line.Slot
    stage: processes.StageProcess
    starts: int  # how often its stage was started in this run


class Scheduler:
    """Runs a group of independent steps, as many at the same time as there are slots.

    After a failure, or where a step waits for people, no other step is started. The running ones finish, and then the
    first error is raised.
    """

    def __init__(self, run: Run, steps: Sequence[Step], warm: WarmPool, *, verbose: bool, show: Show) -> None:
        self.run, self.warm, self.verbose, self.show = run, warm, verbose, show
        self.waiting, self.free = list(steps), command_line.slots(steps[0].launch, len(steps))
        self.prints_names = len(self.free) > 1
        self.running: list[Job] = []
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
                job = _start(self.run, step, self.free[0], self.warm, self.show)
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
                    _finish(self.run, job, self.show)

    def settle(self, job: Job) -> None:
        """Records the result of a stage that has ended, or starts it again with a smaller batch."""
        try:
            again = _start_again(self.run, job, self.warm, self.show)
            if again is None:
                _finish(self.run, job, self.show)
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
        if self.running:  # otherwise the error is raised now, and reported by the caller
            summary.write(self.run.recipe.folder, self.run, "running")
            self.show(step, state)


def _start(
    run: Run, step: Step, slot: command_line.Slot, warm: WarmPool, show: Show, *, previous: Job | None = None
) -> Job | None:
    """Starts the stage of a step, again after a start that halved its batch. None where none is started."""
    state = run.states[step.name]
    decision = run.decide(step)
    if decision.action == "pending":
        return None
    if decision.action != "reuse" and decision.folder is not None and decision.folder.is_dir():
        processes.end_leftovers(decision.folder)
        decision = run.decide(step)  # the stage of a dead runner may have finished
    state.why = decision.why
    folder = decision.folder
    assert folder is not None, "in a run every file is hashed, so every folder is known"
    if decision.action == "skip":
        state.state = "skipped"
        show(step, state)
        return None
    if decision.action == "reuse":
        state.artifact = record_of(folder)
        state.seconds, state.state = state.artifact.seconds, "reused"
        _link(run.recipe.folder / "steps" / step.name, folder)
        show(step, state)
        return None
    state.state = "running"
    summary.write(run.recipe.folder, run, "running")
    show(step, state)
    config = run.stage_config(step)
    with lock_folder(folder):  # a stage that was started by hand, or on another machine, may be writing
        _prepare_folder(folder, config, run.identities[step.name].content, resume=decision.action == "resume")
        if step.name in run.estimates:
            write_estimate(folder, run.estimates[step.name])
    _link(run.recipe.folder / "steps" / step.name, folder)  # so that people find the folder while the step runs
    started = previous.stage.started if previous else time.monotonic()

    def show_seconds() -> None:
        state.seconds = time.monotonic() - started
        show(step, state)

    stage = _launch(run, step, folder, slot, warm, started=started, while_starting=show_seconds)
    return Job(step, decision, slot, stage, starts=previous.starts + 1 if previous else 1)


def _launch(
    run: Run,
    step: Step,
    folder: Path,
    slot: command_line.Slot,
    warm: WarmPool,
    *,
    started: float,
    while_starting: Callable[[], None],
) -> processes.StageProcess:
    """Starts the process of a stage: a fork of a warm Python where that is possible and faster, else a new process."""
    env = command_line.environment(step, folder, run.recipe.path.absolute().parent, slot)
    is_warm = command_line.can_be_warm(step.launch)
    if is_warm and not stages()[step.stage].traits.imports_torch:
        processes.get_warm_python(warm, env)  # for the next steps: it imports while this one runs
        is_warm = False
    return processes.StageProcess(
        command_line.launch_command(step, folder, slot),
        folder,
        env,
        started=started,
        cores=command_line.cores_of(step, slot),
        grace_seconds=step.launch.grace_seconds,
        warm=warm if is_warm else None,
        while_starting=while_starting,
    )


def _start_again(run: Run, job: Job, warm: WarmPool, show: Show) -> Job | None:
    """Starts the stage again where it ran out of memory and has halved its batch for the next start. Otherwise None."""
    state, outcome = run.states[job.step.name], read_json(job.stage.folder / "outcome.json") or {}
    if outcome.get("kind") != HALVED or job.starts > NUM_HALVED:
        return None
    job.stage.finish()
    state.state, state.seconds, state.why = HALVED, job.stage.seconds, str(outcome.get("cause", ""))
    show(job.step, state)
    return _start(run, job.step, job.slot, warm, show, previous=job)


def _finish(run: Run, job: Job, show: Show) -> None:
    """Takes the record of a finished step into the summary. Raises StageFailed or StepWaits where there is none."""
    state, folder = run.states[job.step.name], job.stage.folder
    state.seconds = job.stage.seconds
    exit_code, output = job.stage.finish()
    if run.decide(job.step).action != "reuse":  # the record decides whether a step is complete, not the exit code
        raise ending_of(job.step, folder, job.stage.command, exit_code=exit_code, output=output)
    state.artifact = record_of(folder)
    state.state = "resumed" if job.decision.action == "resume" else "ran"
    summary.write(run.recipe.folder, run, "running")
    _link(run.recipe.folder / "steps" / job.step.name, folder)
    show(job.step, state)


def _link(link: Path, folder: Path) -> None:
    """Points `steps/<step>` at the step's folder in the last run of any recipe. It is for people; no code reads it."""
    target = Path("..") / folder.name
    if link.is_symlink() and link.readlink() == target:
        return
    link.parent.mkdir(exist_ok=True)
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target, target_is_directory=True)
    partial.replace(link)


def _prepare_folder(folder: Path, config: Values, identity: Values, *, resume: bool) -> None:
    """Deletes the remains of an earlier attempt, except logs and checkpoints, and writes the config and identity.

    The stage decides which checkpoints are valid.
    """
    kept = {
        ".lock",
        "console.txt",
        "log.txt",
        "checkpoints",
        "wandb",
        "wandb_id.txt",
        "mlflow_id.txt",
        PAID_ANSWERS,
        PEOPLE,
    }
    kept |= {"metrics.jsonl"} if resume else set()
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    write_atomically(folder / IDENTITY_FILE, json.dumps(identity, indent=1, sort_keys=True))
