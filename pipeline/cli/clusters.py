"""The command that takes a recipe to a cluster: submit."""

import shlex
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from data_schemas.errors import ConfigError, StageError
from pipeline.cli.app import app, print_text
from pipeline.cli.recipes import Overrides, RecipeFile, load
from pipeline.planner.admission import check_states
from pipeline.planner.estimate import RunEstimate, planner_of
from pipeline.planner.models import UnknownSizes
from pipeline.report.errors import command_name
from pipeline.report.live import short_path
from pipeline.state.fingerprint import SMALL
from pipeline.state.run import Run
from pipeline.submit import kubernetes, skypilot, slurm
from pipeline.submit.jobs import Defaults, Job, check_for_cluster, jobs_of
from pipeline.submit.submission import SUBMIT, Submission
from pipeline.submit.yaml_jobs import read_site


class Cluster(StrEnum):
    """What schedules the jobs."""

    slurm = "slurm"
    k8s = "k8s"
    skypilot = "skypilot"


SITE_OPTIONS = {
    Cluster.slurm: "--partition=PARTITION --account=ACCOUNT",
    Cluster.k8s: "--namespace=NAMESPACE",
    Cluster.skypilot: "--infra=INFRA",
}


@app.command()
def submit(
    recipe: RecipeFile,
    to: Annotated[Cluster, typer.Option("--to", help="The cluster's scheduler.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="The folder of the job files.  [default: NAME-SCHEDULER]"),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            "--site",
            metavar="FILE",
            help="YAML that is merged into each job of k8s (its image, volumes) or skypilot.  [default: none]",
        ),
    ] = None,
    estimates: Annotated[
        bool, typer.Option("--estimate/--no-estimate", help="Estimate memory and time of each step, as `plan --cost`.")
    ] = True,
    hours: Annotated[
        float, typer.Option(min=0.5, max=8760, help="Time limit of a step whose time can't be estimated.")
    ] = 24.0,
    memory: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="GIB",
            help="Memory on each machine of a step whose memory can't be estimated.  [default: the cluster's]",
        ),
    ] = None,
    cores: Annotated[int, typer.Option(min=1, help="CPU cores of each process.")] = 8,
) -> None:
    """Write a job for each unfinished step of a recipe, and a script that queues them. Starts nothing."""
    # In a job of several machines the first of them is machine 0; a job sets its address when it starts.
    loaded, steps = load(recipe, [f"{slurm.ADDRESS}=set-by-the-job", *(overrides or [])])
    check_for_cluster(loaded, steps)
    if to is Cluster.slurm and site is not None:
        raise ConfigError("--site is not used by --to slurm; give the options of sbatch to submit.sh")
    site_values = read_site(site)
    planned = Run.of(loaded, steps, hash_limit=SMALL)
    check_states(planned, forced=False)
    jobs = jobs_of(planned, _estimate(planned) if estimates else None, Defaults(hours, memory, cores))
    if not jobs:
        print_text(f"{loaded.name}: all {len(steps)} steps are finished; there is nothing to submit")
        return
    folder = (out or Path(f"{loaded.name}-{to}")).absolute()
    submission = Submission(folder, loaded.name, str(recipe), overrides or [], _program(to))
    if to is Cluster.slurm:
        slurm.write_jobs(submission, jobs)
    elif to is Cluster.k8s:
        kubernetes.write_jobs(submission, jobs, site_values)
    else:
        skypilot.write_jobs(submission, jobs, site_values)
    _show(jobs, finished=len(steps) - len(jobs))
    print_text(f"written: {short_path(folder)}; review it, then queue the jobs, with options of your site:")
    print_text(f"  bash {shlex.quote(short_path(folder / SUBMIT))} {SITE_OPTIONS[to]}")
    print_text(f"watch the run: {command_name()} status {shlex.quote(short_path(loaded.folder))} --follow")


def _program(to: Cluster) -> list[str]:
    """The command `alignloop` of a job: this one on machines that share its environment, else that of the image."""
    if to is not Cluster.slurm:
        return ["alignloop"]
    called = Path(sys.argv[0]).absolute()
    return [sys.executable, str(called if called.is_file() else Path(sys.executable).with_name("alignloop"))]


def _estimate(run: Run) -> RunEstimate | None:
    """The estimate of the run; None, with a warning on stderr, where it fails itself."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix="alignloop-submit-") as scratch,
            planner_of(run, Path(scratch), probes=False) as planner,
        ):
            return planner.estimate()
    except (UnknownSizes, StageError) as error:
        print_text(f"warning: the run was not estimated: {error}", file=sys.stderr)
        return None


def _show(jobs: list[Job], *, finished: int) -> None:
    print_text(f"{len(jobs)} jobs, one after the other{f'; {finished} steps are finished' if finished else ''}")
    width = max(len(job.step.name) for job in jobs)
    for job in jobs:
        memory = f"{job.memory} GiB" if job.memory else "-"
        limit = f"{job.minutes / 60:g} h{'' if job.is_estimated else ' (not estimated)'}"
        machines = f"{job.machines} machine{'s' if job.machines > 1 else ''}"
        print_text(f"  {job.step.name:{width}}  {machines}, each {job.cores} cores, {job.gpus} GPUs, {memory}; {limit}")
