"""The jobs of a run on a cluster: one for each unfinished step, with the resources that it asks for.

The jobs form a chain in the order of the plan, since a run's folder has one runner at a time. Each of them runs
`alignloop run RECIPE --only STEP`, which reuses what is finished and resumes what was stopped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data_schemas import bfloat16
from data_schemas.errors import ConfigError
from data_schemas.stage_keys import Keys, stages
from pipeline.planner.devices import GIB
from pipeline.planner.estimate import RunEstimate, StepEstimate
from pipeline.recipe.names import traits_of
from pipeline.recipe.resolved import Recipe
from pipeline.state.run import Run
from pipeline.steps import Step

FINISHED = ("reuse", "skip")
MEMORY_MARGIN = 1.25  # over the estimated bytes
TIME_MARGIN = 1.5  # over the upper end of the estimated time
START_SECONDS = 900  # for imports, loading a model, and the trial of every section on a small model
HALF_HOUR = 1800


@dataclass(frozen=True)
class Defaults:
    """What a job asks for where the planner does not know."""

    hours: float
    memory: int | None  # GiB on each machine; None: what the cluster gives
    cores: int  # of each process


@dataclass(frozen=True)
class Job:
    """A step with what its job asks for."""

    step: Step
    machines: int
    gpus: int  # on each machine
    cores: int  # on each machine
    memory: int | None  # GiB on each machine; None: what the cluster gives
    minutes: int  # time limit; a job that reaches it is queued again
    is_estimated: bool  # the time limit comes from the planner

    @property
    def warning_seconds(self) -> int:
        """How long before the time limit the job gets SIGTERM: the stage's time for a checkpoint, and one minute."""
        return math.ceil(self.step.launch.grace_seconds) + 60


def jobs_of(run: Run, estimate: RunEstimate | None, defaults: Defaults) -> list[Job]:
    """The jobs of the steps that are not finished, in the order of the plan.

    Raises ConfigError for a recipe whose steps would differ from machine to machine, or that names devices.
    """
    check_for_cluster(run.recipe, run.steps)
    estimates = {item.step.name: item for item in estimate.steps} if estimate else {}
    unfinished = [step for step in run.steps if run.decide(step).action not in FINISHED]
    return [_job(step, estimates.get(step.name), defaults) for step in unfinished]


def check_for_cluster(recipe: Recipe, steps: Sequence[Step]) -> None:
    """Raises ConfigError where a step's identity depends on the machine, or where it names devices of one machine."""
    for step in steps:
        where = f"{recipe.path}: {step.section}"
        if step.launch.devices is not None:
            raise ConfigError(
                f"{where}.launch.devices={step.launch.devices}: the scheduler chooses the devices of each job; "
                "leave it out"
            )
        variants = recipe.section(step.section, step.round or 0).variants
        is_open = any(bfloat16.is_open(step.stage, variant.keys) for variant in variants)
        if is_open and (step.launch.device == "cpu" or step.launch.wrapper is None):
            raise ConfigError(
                f"{where}.bf16 is left open, so the machine that plans a step decides its precision, and the machines "
                "of a cluster may differ; set defaults: {bf16: true}, or false"
            )


def _job(step: Step, estimate: StepEstimate | None, defaults: Defaults) -> Job:
    launch = step.launch
    processes = max(1, launch.num_processes // launch.num_machines)
    seconds = estimate.seconds if estimate else None
    is_estimated = seconds is not None and seconds.basis != "none"
    limit = TIME_MARGIN * seconds.high + START_SECONDS if seconds and is_estimated else defaults.hours * 3600
    return Job(
        step,
        machines=launch.num_machines,
        gpus=_gpus(step, processes),
        cores=processes * defaults.cores,
        memory=_memory(step, estimate) or defaults.memory,
        minutes=math.ceil(limit / HALF_HOUR) * 30,
        is_estimated=is_estimated,
    )


def _gpus(step: Step, processes: int) -> int:
    """GPUs on each machine: one a process, with vLLM as many as hold its copies of the model."""
    if step.launch.device == "cpu" or traits_of(step.section).one_process:
        return 0
    if step.keys.get("engine") != "vllm":
        return processes
    options: Keys = step.keys.get("vllm") or {}
    return processes * options.get("tensor_parallel_size", 1) * options.get("data_parallel_size", 1)


def _memory(step: Step, estimate: StepEstimate | None) -> int | None:
    """GiB on each machine by the planner; None where it does not know."""
    memory = estimate.memory if estimate else None
    if estimate is None or memory is None or not stages()[step.stage].traits.imports_torch:
        return None
    wanted = memory.host if step.launch.device == "gpu" else estimate.needed
    return math.ceil(MEMORY_MARGIN * wanted / GIB) if wanted else None
