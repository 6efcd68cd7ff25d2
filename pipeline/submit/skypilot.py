"""Job files for SkyPilot: a managed job whose tasks, one for each step, run one after the other.

SkyPilot starts a task again on another machine where its machine is preempted or fails. A task that ends with 143,
since the runner saved a checkpoint after SIGTERM, is started again too (`recover_on_exit_codes`), at most MAX_RESTARTS
times: SkyPilot does not count those, so the script does. Any other exit code ends the job.
"""

import shlex
from collections.abc import Sequence
from typing import Any

from data_schemas.errors import ConfigError
from data_schemas.files import write_atomically
from pipeline.planner.devices import gpu_named
from pipeline.submit.jobs import Job
from pipeline.submit.step_script import check_machines, step_script
from pipeline.submit.submission import INTERRUPTED, JOBS, MAX_RESTARTS, SUBMIT, Submission, why_limit
from pipeline.submit.yaml_jobs import dump, merged

PIPELINE = f"{JOBS}/pipeline.yaml"
ACCELERATORS = {  # the planner's name of a GPU -> SkyPilot's, where it is not the same in capitals
    "rtx-a6000": "RTXA6000",
    "rtx-4090": "RTX4090",
    "rtx-3090": "RTX3090",
    "a100-40gb": "A100",
}

COUNT = """\
if [ "$code" -eq {interrupted} ]; then
    restarts=$(cat {file} 2>/dev/null || echo 0)
    if [ "$restarts" -ge {most} ]; then
        echo "error: {step} was started again {most} times and has not finished" >&2
        code=1
    fi
    echo $((restarts + 1)) > {file}
fi
"""

SUBMIT_SCRIPT = """\
#!/bin/bash
# Starts the run {run} as one managed job, whose tasks run in order. Written by `alignloop submit`.
#     bash submit.sh [OPTION OF SKY JOBS LAUNCH]...      as in --infra=kubernetes --priority=500
# To end it: sky jobs cancel --name {name}
set -euo pipefail
cd {folder}
exec sky jobs launch --yes --detach-run --name {name} "$@" {pipeline}
"""


def write_jobs(submission: Submission, jobs: Sequence[Job], site: dict[str, Any]) -> None:
    """Writes the pipeline and submit.sh. Those of an earlier call are replaced. `site` is merged into each task.

    Raises ConfigError for a folder that holds something else, a GPU without a name, and a step on several machines.
    """
    check_machines(jobs)
    tasks = [task(submission, job, site) for job in jobs]
    submission.clear_folder()
    documents = [f"# {submission.run}: the tasks run in this order. Written by `alignloop submit`."]
    documents.append(dump({"name": submission.label}))
    for job, content in zip(jobs, tasks, strict=True):
        documents.append(f"---\n# {job.step.name}: {why_limit(job)}.\n{dump(content)}")
    write_atomically(submission.folder / PIPELINE, "\n".join(documents))
    script = SUBMIT_SCRIPT.format(
        run=submission.run, folder=shlex.quote(str(submission.folder)), name=submission.label, pipeline=PIPELINE
    )
    write_atomically(submission.folder / SUBMIT, script)


def task(submission: Submission, job: Job, site: dict[str, Any]) -> dict[str, Any]:
    """A task of the pipeline, with what the site adds."""
    resources: dict[str, Any] = {"cpus": f"{job.cores}+"}
    if job.memory:
        resources["memory"] = f"{job.memory}+"
    if job.gpus:
        resources["accelerators"] = {_accelerator(job): job.gpus}
    resources["job_recovery"] = {"max_restarts_on_errors": 0, "recover_on_exit_codes": [INTERRUPTED]}
    name = submission.name(job)
    counted = shlex.quote(str(submission.folder / JOBS / f"{job.step.name}.restarts"))
    count = COUNT.format(interrupted=INTERRUPTED, file=counted, most=MAX_RESTARTS, step=job.step.name)
    run = step_script(job, submission.command(job), end=count)
    return merged({"name": name, "num_nodes": 1, "resources": resources, "run": run}, site)


def _accelerator(job: Job) -> str:
    """SkyPilot's name of the GPU that a job needs."""
    named = job.step.launch.gpu
    if named is None:
        raise ConfigError(
            f"{job.step.section}: launch.gpu is not set, and SkyPilot needs the name of a GPU; "
            "set launch: {gpu: h100}, or another of docs/planner.md"
        )
    known = gpu_named(named, where="launch.gpu").name
    return ACCELERATORS.get(known, known.upper())
