"""One step of a run: its stage is started, started again with a smaller batch, and its record taken."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_schemas.artifact import HALVED
from data_schemas.endpoints import PAID_ANSWERS
from data_schemas.files import read_json, write_atomically
from data_schemas.locks import lock_folder
from data_schemas.people import FOLDER as PEOPLE
from data_schemas.progress import TIMING, kept_seconds
from data_schemas.stage_keys import Values, stages
from data_schemas.yaml_files import dump_yaml
from pipeline.launch import command_line, processes
from pipeline.launch.failures import ending_of
from pipeline.launch.warm import WarmPool
from pipeline.plan import Step
from pipeline.state import summary
from pipeline.state.costs import write_estimate
from pipeline.state.run import IDENTITY_FILE, Decision, Run, StepState, record_of

NUM_HALVED = 2  # batches that a stage may halve: that of training, and that of evaluation

Show = Callable[[Step, StepState], None]


@dataclass
class Job:
    """A running step."""

    step: Step
    decision: Decision
    slot: command_line.Slot
    stage: processes.StageProcess
    starts: int  # how often its stage was started in this run


def start(
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
    earlier = sum(kept_seconds(folder).values())
    started = previous.stage.started if previous else time.monotonic() - earlier

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


def start_again(run: Run, job: Job, warm: WarmPool, show: Show) -> Job | None:
    """Starts the stage again where it ran out of memory and has halved its batch for the next start. Otherwise None."""
    state, outcome = run.states[job.step.name], read_json(job.stage.folder / "outcome.json") or {}
    if outcome.get("kind") != HALVED or job.starts > NUM_HALVED:
        return None
    job.stage.finish()
    state.state, state.seconds, state.why = HALVED, job.stage.seconds, str(outcome.get("cause", ""))
    show(job.step, state)
    return start(run, job.step, job.slot, warm, show, previous=job)


def finish(run: Run, job: Job, show: Show) -> None:
    """Takes the record of a finished step into the summary. Raises StageFailed or StepWaits where there is none."""
    state, folder = run.states[job.step.name], job.stage.folder
    exit_code, output = job.stage.finish()
    if run.decide(job.step).action != "reuse":  # the record decides whether a step is complete, not the exit code
        raise ending_of(job.step, folder, job.stage.command, exit_code=exit_code, output=output)
    state.artifact = record_of(folder)
    state.seconds = state.artifact.seconds  # of all its starts
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
        TIMING,
    }
    kept |= {"metrics.jsonl"} if resume else set()
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", dump_yaml(dict(config)))
    write_atomically(folder / IDENTITY_FILE, json.dumps(identity, indent=1, sort_keys=True))
