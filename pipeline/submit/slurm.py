"""Job files for SLURM: a batch script for each job, and submit.sh, which queues them in order.

A job gets SIGTERM some time before its limit (`sbatch --signal=B:TERM@SECONDS`). Its runner then lets the stage save a
checkpoint, and the job puts itself back into the queue. A job that SLURM preempts or whose machine fails is queued
again by SLURM (`--requeue`). A cancelled job stays cancelled: it asks for its own state before it requeues itself.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from data_schemas.files import write_atomically
from pipeline.submit.jobs import Job
from pipeline.submit.submission import MAX_RESTARTS, SUBMIT, Submission, file_names, why_limit

LOGS = "logs"
ADDRESS = "launch.main_process_ip"

JOB = """\
#!/bin/bash
# {step} of the run {run}: {why}.
# Written by `alignloop submit`. Options of submit.sh, as in --partition=gpu, take precedence over the lines below.
{directives}

max_restarts={most}  # so that a step that never gets to a checkpoint ends
cd {folder} || exit 1
{setup}{command} &
runner=$!
stopped=
trap 'trap "" TERM; stopped=1; kill -TERM "$runner"' TERM
wait "$runner"; code=$?
if [ -n "$stopped" ]; then
    wait "$runner"; code=$?  # the first wait ended with the signal; this one ends with the checkpoint
fi
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
if [ -n "$stopped" ] && [ "$code" -ne 0 ] && [ "$state" = RUNNING ]; then  # neither cancelled nor preempted
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt "$max_restarts" ]; then
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "error: {step} was queued again $max_restarts times and has not finished" >&2
    fi
fi
exit "$code"
"""

SUBMIT_SCRIPT = """\
#!/bin/bash
# Queues the jobs of the run {run}, each after the one before has succeeded. Written by `alignloop submit`.
#     bash submit.sh [OPTION OF SBATCH]...      as in --partition=gpu --account=mine
# queued.txt then has the number of every job. To end them: scancel $(cut -d' ' -f1 queued.txt)
set -euo pipefail
cd {folder}
if [ -s queued.txt ]; then
    earlier=$(cut -d' ' -f1 queued.txt | paste -sd, -)
    if [ -n "$(squeue --noheader --jobs="$earlier" --format=%i 2>/dev/null)" ]; then
        echo "error: jobs of queued.txt are still in the queue; wait for them or cancel them" >&2
        exit 2
    fi
fi
: > queued.txt
previous=
options=("$@")
queue() {{
    local after=()
    if [ -n "$previous" ]; then
        # Without --kill-on-invalid-dep a job would wait for ever for one that failed.
        after=("--dependency=afterok:$previous" --kill-on-invalid-dep=yes)
    fi
    previous=$(sbatch --parsable ${{after[@]+"${{after[@]}}"}} ${{options[@]+"${{options[@]}}"}} "$1")
    previous=${{previous%%;*}}  # a federation adds the cluster's name
    echo "$previous $1" | tee -a queued.txt
}}
{jobs}
"""


def write_jobs(submission: Submission, jobs: Sequence[Job]) -> None:
    """Writes the batch scripts and submit.sh. Those of an earlier call are replaced.

    Raises ConfigError for a folder that holds something else.
    """
    submission.clear_folder()
    (submission.folder / LOGS).mkdir(exist_ok=True)
    names = file_names(jobs, "sh")
    for name, job in zip(names, jobs, strict=True):
        write_atomically(submission.folder / name, job_script(submission, job))
    queued = "\n".join(f"queue {shlex.quote(name)}" for name in names)
    folder = shlex.quote(str(submission.folder))
    write_atomically(submission.folder / SUBMIT, SUBMIT_SCRIPT.format(run=submission.run, folder=folder, jobs=queued))


def job_script(submission: Submission, job: Job) -> str:
    """The batch script of a job, which runs its step in the working directory."""
    options = {
        "job-name": f"{submission.run}.{job.step.name}",
        "nodes": job.machines,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cores,
        "gpus-per-node": job.gpus or None,
        "mem": f"{job.memory}G" if job.memory else None,
        "time": f"{job.minutes // 60}:{job.minutes % 60:02d}:00",
        "signal": f"B:TERM@{job.warning_seconds}",
        "requeue": "",
        "open-mode": "append",
        "output": f'"{submission.folder / LOGS}/%x-%j.txt"',
    }
    given = {name: value for name, value in options.items() if value is not None}
    lines = [f"#SBATCH --{name}={value}" if value != "" else f"#SBATCH --{name}" for name, value in given.items()]
    if job.machines > 1:  # srun takes the cores of a task from this variable only
        setup, address = 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"\n', f'--set "{ADDRESS}=$(hostname)"'
    else:
        setup, address = "", ""
    return JOB.format(
        step=job.step.name,
        run=submission.run,
        why=why_limit(job),
        directives="\n".join(lines),
        most=MAX_RESTARTS,
        folder=shlex.quote(str(Path.cwd())),
        setup=setup,
        command=submission.command(job, first=address),
    )
