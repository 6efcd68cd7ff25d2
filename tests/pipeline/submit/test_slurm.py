"""The jobs that `alignloop submit` writes, on a stand-in for SLURM: their order, SIGTERM and requeue, their result."""

import shlex
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.submit.slurm import write_jobs
from pipeline.submit.submission import Submission
from tests.patience import PATIENCE
from tests.pipeline.fake_stages import build_inputs
from tests.pipeline.submit.stand_in_slurm import Slurm, warn
from tests.pipeline.submit.submitted import PROGRAM, SAVES, SETTINGS, job_named, records
from tests.pipeline.toy_house import copied
from tests.processes import within

SUBMIT = ("submit", "toy.yaml", "--to", "slurm", "--no-estimate", *SETTINGS)
TRAINING = "102"  # the job of round-0.sft


@pytest.fixture
def slurm(world, tmp_path) -> Slurm:
    """A cluster with the queued jobs of a run without rounds."""
    code, _, err = world.call(*SUBMIT)
    assert code == 0, err
    cluster = Slurm(tmp_path / "slurm")
    done = cluster.submit(world.work / "toy-slurm", "--partition=gpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2] == "102 jobs/03-round-0.sft.sh"
    assert [job["options"]["partition"] for job in cluster.jobs().values()] == ["gpu"] * 4
    return cluster


def test_a_job_that_is_warned_saves_is_queued_again_and_resumes_to_the_result_of_run(world, slurm, tmp_path):
    plain = copied(world, tmp_path / "plain")
    assert plain.call("run", "toy.yaml", *SETTINGS)[0] == 0
    for number in ("100", "101"):
        assert slurm.ready() == number
        assert slurm.end(number, slurm.start(number)) == "COMPLETED"
    training = slurm.start(TRAINING, TOY=SAVES)
    world.hanging()
    warn(training)
    assert slurm.end(TRAINING, training) == "PENDING"
    assert slurm.ready() == TRAINING  # what follows waits for it
    slurm.run_all(TOY=SAVES)
    assert slurm.states() == ["COMPLETED"] * 4
    assert world.launched() == ["prepare_data", "prepare_base", "round-0.sft", "round-0.sft", "round-0.evaluate_policy"]
    log = (world.work / "toy-slurm" / "logs" / f"toy.round-0.sft-{TRAINING}.txt").read_text()
    assert "round-0.sft resumes from checkpoint-50" in log
    assert "resumed" in log
    assert world.summary()["state"] == "done"
    assert len(records(world)) == 4
    assert records(world) == records(plain)
    code, out, _ = world.call(*SUBMIT)
    assert (code, out) == (0, "toy: all 4 steps are finished; there is nothing to submit\n")


@pytest.fixture
def hanging(tmp_path, monkeypatch) -> Slurm:
    """A cluster with two jobs of a program that hangs, the first of which is running and has been warned."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    jobs = [job_named("first"), job_named("second")]
    program = [sys.executable, str(tmp_path / "program.py")]
    write_jobs(Submission(tmp_path / "out", "toy", "toy.yaml", [], program), jobs)
    slurm = Slurm(tmp_path / "slurm")
    assert slurm.submit(tmp_path / "out").returncode == 0
    return slurm


def warned(slurm: Slurm, **values: object) -> str:
    """The state of the first job after a warning at which its entry in the queue has these values."""
    process = slurm.start("100")
    assert within(PATIENCE, Path("hangs").exists)
    slurm.change("100", **values)
    warn(process)
    return slurm.end("100", process)


def test_a_job_that_is_cancelled_or_preempted_does_not_queue_itself_again(hanging):
    assert warned(hanging, state="CANCELLED") == "CANCELLED"


def test_a_job_is_queued_again_by_itself_only_so_often_and_its_failure_ends_what_follows(hanging):
    hanging.change("100", restarts=19)
    assert warned(hanging) == "PENDING"
    assert hanging.jobs()["100"]["restarts"] == 20
    Path("hangs").unlink()
    assert warned(hanging) == "FAILED"
    assert "first was queued again 20 times" in Path("out/logs/toy.first-100.txt").read_text()
    assert hanging.ready() is None
    assert hanging.states() == ["FAILED", "CANCELLED"]


def test_jobs_are_not_submitted_twice_while_they_are_queued(hanging):
    again = hanging.submit(Path("out"))
    assert (again.returncode, len(hanging.jobs())) == (2, 2)
    assert again.stderr == "error: jobs of queued.txt are still in the queue; wait for them or cancel them\n"
    Path("done").touch()
    hanging.run_all()
    assert hanging.states() == ["COMPLETED", "COMPLETED"]
    assert hanging.submit(Path("out")).returncode == 0


def test_a_job_asks_for_what_its_step_needs(tmp_path, monkeypatch, capsys):
    work = build_inputs(tmp_path / "work").parent
    monkeypatch.chdir(work)
    machines = "{profile: ddp, num_processes: 16, num_machines: 2, wrapper: env, device: gpu, grace_seconds: 100}"
    words = [*SUBMIT, "--set", f"sft.launch={machines}", "--hours", "3", "--memory", "64", "--cores", "2"]
    monkeypatch.setattr(sys, "argv", ["alignloop", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    out = capsys.readouterr().out
    job = (work / "toy-slurm" / "jobs" / "03-round-0.sft.sh").read_text()
    directives = [line.removeprefix("#SBATCH --") for line in job.splitlines() if line.startswith("#SBATCH")]
    assert directives[:-1] == [
        "job-name=toy.round-0.sft",
        "nodes=2",
        "ntasks-per-node=1",
        "cpus-per-task=16",
        "gpus-per-node=8",
        "mem=64G",
        "time=3:00:00",
        "signal=B:TERM@160",
        "requeue",
        "open-mode=append",
    ]
    (command,) = (shlex.split(line) for line in job.splitlines() if "--only" in line)
    assert command[2:6] == ["run", "toy.yaml", "--set", "launch.main_process_ip=$(hostname)"]
    assert command[-3:] == ["--only", "round-0.sft", "&"]
    assert 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"' in job
    assert "round-0.sft              2 machines, each 16 cores, 8 GPUs, 64 GiB; 3 h (not estimated)" in out
    data = (work / "toy-slurm" / "jobs" / "01-prepare_data.sh").read_text()
    assert "gpus-per-node" not in data and "nodes=1" in data and "hostname" not in data
