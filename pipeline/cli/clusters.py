"""The command that takes a recipe to a cluster: submit."""

import shlex
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from data_schemas.errors import StageError
from pipeline.cli.app import app, print_text
from pipeline.cli.recipes import Overrides, RecipeFile, load
from pipeline.planner.admission import check_states
from pipeline.planner.estimate import RunEstimate, UnknownSizes, planner_of
from pipeline.report.errors import command_name
from pipeline.report.live import short_path
from pipeline.state.fingerprint import SMALL
from pipeline.state.run import Run
from pipeline.submit.jobs import Defaults, Job, check_for_cluster, jobs_of
from pipeline.submit.slurm import ADDRESS, SUBMIT, write_jobs


class Cluster(StrEnum):
    """What schedules the jobs."""

    slurm = "slurm"


@app.command()
def submit(
    recipe: RecipeFile,
    to: Annotated[Cluster, typer.Option("--to", help="The cluster's scheduler.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="The folder of the job files.  [default: NAME-slurm]"),
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
    loaded, steps = load(recipe, [f"{ADDRESS}=set-by-the-job", *(overrides or [])])
    check_for_cluster(loaded, steps)
    planned = Run.of(loaded, steps, hash_limit=SMALL)
    check_states(planned, forced=False)
    jobs = jobs_of(planned, _estimate(planned) if estimates else None, Defaults(hours, memory, cores))
    if not jobs:
        print_text(f"{loaded.name}: all {len(steps)} steps are finished; there is nothing to submit")
        return
    folder = out or Path(f"{loaded.name}-{to}")
    called = Path(sys.argv[0]).absolute()
    program = called if called.is_file() else Path(sys.executable).with_name("alignloop")
    write_jobs(
        folder,
        jobs,
        run=loaded.name,
        recipe=str(recipe),
        settings=overrides or [],
        program=[sys.executable, str(program)],
    )
    _show(jobs, finished=len(steps) - len(jobs))
    print_text(f"written: {short_path(folder.absolute())}; review it, then queue the jobs, with options of your site:")
    print_text(f"  bash {shlex.quote(short_path(folder.absolute() / SUBMIT))} --partition=PARTITION --account=ACCOUNT")
    print_text(f"watch the run: {command_name()} status {shlex.quote(short_path(loaded.folder))} --follow")


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
