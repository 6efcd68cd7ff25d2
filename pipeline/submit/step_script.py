"""The shell script of a step on a scheduler that gives no warning before a time limit: Kubernetes and SkyPilot.

`timeout` of coreutils sends SIGTERM to the runner in time for a checkpoint. A SIGTERM of the scheduler is passed on to
the runner only, since the runner stops its stages itself. Either way the script ends with the runner's exit code.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from data_schemas.errors import ConfigError
from pipeline.submit.jobs import Job

SCRIPT = """\
cd {folder} || exit 1
timeout --foreground --preserve-status --signal=TERM {seconds} {command} &
runner=$!
trap 'trap "" TERM; kill -TERM "$runner"' TERM
wait "$runner"; code=$?
if kill -0 "$runner" 2>/dev/null; then
    wait "$runner"; code=$?  # the first wait ended with the signal; this one ends with the checkpoint
fi
{end}exit "$code"
"""


def check_machines(jobs: Sequence[Job]) -> None:
    """Raises ConfigError for a step on several machines, whose processes only SLURM's srun starts."""
    for job in jobs:
        if job.machines > 1:
            raise ConfigError(
                f"{job.step.name} runs on {job.machines} machines, which only --to slurm supports; "
                f"set {job.step.section}: {{launch: {{num_machines: 1}}}}, or use --to slurm"
            )


def step_script(job: Job, command: str, *, end: str = "") -> str:
    """The script, which runs the command in the working directory. `end` is text of the shell that may change `code`.

    Raises ConfigError for a time limit that leaves no time to save a checkpoint.
    """
    seconds = job.minutes * 60 - job.warning_seconds
    if seconds <= 0:
        raise ConfigError(
            f"{job.step.name} has a time limit of {job.minutes} minutes, which is not longer than "
            f"launch.grace_seconds={job.step.launch.grace_seconds:g}; give more --hours, or fewer grace_seconds"
        )
    return SCRIPT.format(folder=shlex.quote(str(Path.cwd())), seconds=seconds, command=command, end=end)
