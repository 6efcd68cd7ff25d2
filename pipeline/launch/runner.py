"""Runs a plan: for each step reuse, resume, or launch; `summary.json` after every change.

Variants of one section may run side by side; one loop in the main thread watches them, where signals are raised. One
runner a run folder, held by a lock that the kernel releases.
"""

import contextlib
import itertools
import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_schemas.artifact import HALVED
from data_schemas.errors import UserError
from data_schemas.files import DISK_FULL, read_json, write_atomically
from data_schemas.locks import lock_folder
from data_schemas.stage_keys import stages
from pipeline.launch import command_line, processes
from pipeline.launch.warm import WarmPool
from pipeline.plan import Step
from pipeline.state import summary
from pipeline.state.run import IDENTITY_FILE, Decision, Run, StepState, record_of

NUM_TAIL_LINES = 20
NUM_HALVED = 2  # batches that a stage may halve: of training, and of evaluation
FULL_BYTES = 2**20  # with less than that left a disk is full
LAUNCHERS_REPORT = "torch/distributed/elastic/multiprocessing/api.py"

Show = Callable[[Step, StepState], None]
HINTS = (  # in a stage's output -> the way out; only where the stage itself could not say
    ("OutOfMemory", "out of device memory: lower per_device_train_batch_size or generation_batch_size"),
    ("can't allocate memory", "out of memory: lower per_device_train_batch_size or generation_batch_size"),
    ("No space left", DISK_FULL),
    ("SIGKILL", "killed, most likely for its memory: lower per_device_train_batch_size or generation_batch_size"),
    ("is nan", "a number is not finite: lower learning_rate, or use bf16 instead of fp16"),
)


@dataclass
class StageFailed(Exception):
    """A stage ended without its record."""

    step: Step
    command: Sequence[str]
    log: Path
    tail: Sequence[str]  # the last lines that the stage printed
    cause: str
    hint: str
    is_users: bool  # a mistake in the configuration that only the stage could see


def run_steps(run: Run, *, verbose: bool = False, show: Show) -> None:
    """Every step in order, variants of one section side by side where `launch.devices` has room for them.

    `show` is called when a step starts, now and then while it runs, and when it ends. Raises StageFailed, Interrupted,
    or ConfigError; the summary then says so, and everything finished stays.
    """
    folder = run.recipe.folder
    run.states = {step.name: StepState(run.folder(step.name)) for step in run.steps}
    with processes.signals_raise(), WarmPool() as warm:
        try:
            for steps in _independent(run.steps):
                _run_side_by_side(run, steps, warm, verbose=verbose, show=show)
            summary.write(folder, run, "done")
        except BaseException as error:
            running = [state for state in run.states.values() if state.state == "running"]
            for state in running:
                state.state = "failed"
            with contextlib.suppress(OSError):  # a full disk: the error itself says more
                summary.write(folder, run, "interrupted" if isinstance(error, processes.Interrupted) else "failed")
            raise


def _independent(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """The steps in order; the variants of one section, which hang on nothing of one another, come together."""
    for _, group in itertools.groupby(steps, key=lambda step: (step.round, step.section, step.stage)):
        yield list(group)


@dataclass
class _Job:
    """A step that runs."""

    step: Step
    decision: Decision
    slot: command_line.Slot
    stage: processes.StageProcess
    starts: int = 1


def _run_side_by_side(run: Run, steps: Sequence[Step], warm: WarmPool, *, verbose: bool, show: Show) -> None:
    """Steps that are independent of one another, as many at a time as their devices allow.

    Where one fails, those that run are let finish, no other is started, and the first failure is raised.
    """
    waiting, free = list(steps), command_line.slots(steps[0].launch, len(steps))
    several = len(free) > 1
    running: list[_Job] = []
    failures: list[StageFailed | UserError] = []

    def fail(step: Step, error: StageFailed | UserError) -> None:
        failures.append(error)
        run.states[step.name].state = "failed"
        if running:  # else the error ends the run, and says it
            summary.write(run.recipe.folder, run, "running")
            show(step, run.states[step.name])

    try:
        while running or (waiting and not failures):
            while waiting and free and not failures:
                step = waiting.pop(0)
                try:
                    job = _start(run, step, free[0], warm, show)
                except UserError as error:
                    fail(step, error)
                    continue
                if job is not None:
                    running.append(job)
                    free.remove(job.slot)
            if running:
                running[0].stage.wait(0.2)
            for job in list(running):
                has_ended = job.stage.has_ended()
                if verbose:
                    job.stage.pass_on(job.step.name if several else "")
                if not has_ended:
                    run.states[job.step.name].seconds = job.stage.seconds
                    show(job.step, run.states[job.step.name])
                    continue
                try:
                    again = _start_again(run, job, warm, show) or _finish(run, job, show)
                except (StageFailed, UserError) as error:
                    running.remove(job)
                    fail(job.step, error)
                    continue
                running.remove(job)
                if again is not None:
                    running.append(again)
                else:
                    free.append(job.slot)
    finally:
        processes.stop([job.stage for job in running])
    if failures:
        raise failures[0]


def _start(run: Run, step: Step, slot: command_line.Slot, warm: WarmPool, show: Show) -> _Job | None:
    """The step's stage, started; None where the step is whole already."""
    state = run.states[step.name]
    decision = run.decide(step)
    if decision.action != "reuse" and decision.folder is not None and decision.folder.is_dir():
        processes.end_leftovers(decision.folder)
        decision = run.decide(step)  # the stage of a dead runner may have finished
    state.why = decision.why
    folder = decision.folder
    assert folder is not None, "a run hashes everything"
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
    with lock_folder(folder):  # a stage by hand, or on another machine, may be at it
        _prepare_folder(folder, config, run.identities[step.name].content, resume=decision.action == "resume")
    command = command_line.launch_command(step, folder, slot)
    env = command_line.environment(step, folder, run.recipe.path.absolute().parent, slot)
    cores = command_line.cores_of(step, slot)
    is_warm = command_line.can_be_warm(step.launch)
    if is_warm and not stages()[step.stage].traits.imports_torch:
        processes.get_warm_python(warm, env)  # for the steps after it: it imports meanwhile
        is_warm = False
    stage = processes.StageProcess(
        command, folder, env, cores=cores, grace_seconds=step.launch.grace_seconds, warm=warm if is_warm else None
    )
    return _Job(step, decision, slot, stage)


def _start_again(run: Run, job: _Job, warm: WarmPool, show: Show) -> _Job | None:
    """The step's stage, started again where it ran out of memory and goes on with fewer rows at a time; else None."""
    state, outcome = run.states[job.step.name], read_json(job.stage.folder / "outcome.json") or {}
    if outcome.get("kind") != HALVED or job.starts > NUM_HALVED:
        return None
    job.stage.finish()
    state.state, state.seconds, state.why = HALVED, job.stage.seconds, str(outcome.get("cause", ""))
    show(job.step, state)
    again = _start(run, job.step, job.slot, warm, show)
    if again is not None:
        again.starts, again.stage.started = job.starts + 1, job.stage.started
    return again


def _finish(run: Run, job: _Job, show: Show) -> None:
    """The step's end: its record in the summary. Raises StageFailed where there is none."""
    state, folder = run.states[job.step.name], job.stage.folder
    state.seconds = job.stage.seconds
    code, printed = job.stage.finish()
    if run.decide(job.step).action != "reuse":  # the record, not the exit code, says whether a step is whole
        raise _failure(job.step, folder, job.stage.command, code, printed)
    state.artifact = record_of(folder)
    state.state = "resumed" if job.decision.action == "resume" else "ran"
    summary.write(run.recipe.folder, run, "running")
    _link(run.recipe.folder / "steps" / job.step.name, folder)
    show(job.step, state)


def _link(link: Path, folder: Path) -> None:
    """`steps/<step>` leads to the step's folder in the last run of any recipe: for people, nothing here reads it."""
    target = Path("..") / folder.name
    if link.is_symlink() and link.readlink() == target:
        return
    link.parent.mkdir(exist_ok=True)
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target, target_is_directory=True)
    partial.replace(link)


def _prepare_folder(folder: Path, config: Mapping[str, Any], identity: Mapping[str, Any], *, resume: bool) -> None:
    """Leaves nothing half-written of an earlier try; the stage itself judges what in `checkpoints` is whole."""
    kept = {".lock", "console.txt", "log.txt", "checkpoints", "wandb", "wandb_id.txt"}
    kept |= {"metrics.jsonl"} if resume else set()
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    write_atomically(folder / IDENTITY_FILE, json.dumps(identity, indent=1, sort_keys=True))


def _failure(step: Step, folder: Path, command: list[str], code: int, printed: str) -> StageFailed:
    outcome = read_json(folder / "outcome.json") or {}
    ending = f"ended with exit code {code}" if code else "ended without its record"
    if code < 0:
        ending = f"killed by {signal.Signals(-code).name}"
    hint = outcome.get("hint") or next((way_out for part, way_out in HINTS if part in f"{printed}\n{ending}"), "")
    if not hint and shutil.disk_usage(folder).free < FULL_BYTES:  # too full even for the stage to say so
        hint = DISK_FULL
    cause = outcome.get("cause") or ending
    is_users = outcome.get("kind") == "config"
    lines = printed.splitlines()
    # torch's launcher says at length that a process failed; what failed stands above that.
    end = next((place for place, line in enumerate(lines) if LAUNCHERS_REPORT in line), len(lines))
    tail = lines[:end][-NUM_TAIL_LINES:]
    return StageFailed(step, command, folder / "console.txt", tail, cause=cause, hint=hint, is_users=is_users)
