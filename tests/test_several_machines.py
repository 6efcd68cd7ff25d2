"""Several machines: what starts on each, and that it ends with its runner. test_distributed trains on two."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from pipeline.launch import command_line, node
from pipeline.plan import Step
from pipeline.recipe.sections import Launch
from tests.patience import PATIENCE
from tests.processes import alive


def step_on(machines: int, processes: int, *, profile: str = "ddp", wrapper: str = "srun -N2") -> Step:
    launch = Launch(
        profile=profile,
        num_processes=processes,
        num_machines=machines,
        device="cpu",
        wrapper=wrapper,  # pyright: ignore[reportArgumentType]
        main_process_ip="127.0.0.1",
    )
    return Step("round-1.sft", "sft", 1, "sft", {}, {}, launch)


def test_the_wrapper_starts_a_launcher_on_every_machine_that_all_read_one_file(tmp_path):
    command = command_line.launch_command(step_on(2, 16, profile="zero3"), tmp_path)
    ours = [sys.executable, "-P", "-m"]
    script = [str(command_line.ROOT / "stages" / "sft.py"), "--config", f"{tmp_path}/config.yaml"]
    assert command == [
        *ours,
        "pipeline.launch.wrapper",
        "srun",
        "-N2",
        *ours,
        "pipeline.launch.node",
        f"{tmp_path}/accelerate.yaml",
        *script,
    ]
    profile = yaml.safe_load((tmp_path / "accelerate.yaml").read_text())
    assert (profile["num_machines"], profile["num_processes"], profile["main_process_ip"]) == (2, 16, "127.0.0.1")
    assert profile["deepspeed_config"]["deepspeed_multinode_launcher"] == "standard"


def test_a_wrapper_may_take_one_machine_elsewhere(tmp_path):
    command = command_line.launch_command(step_on(1, 1), tmp_path)
    assert command[3:7] == ["pipeline.launch.wrapper", "srun", "-N2", sys.executable]
    assert command[7].endswith("stages/sft.py")


def test_cores_are_divided_among_the_processes_of_one_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    assert command_line.environment(step_on(4, 32), tmp_path, tmp_path)["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({"SLURM_NODEID": "3"}, "3"),
        ({"SLURM_NODEID": "0", "ALIGNLOOP_MACHINE_RANK": "1"}, "1"),  # the job's own setting wins over SLURM's
    ],
)
def test_a_machine_gets_its_rank_and_its_threads(tmp_path, monkeypatch, environment, rank):
    started = []
    monkeypatch.setattr(os, "execv", lambda _, words: started.append(words))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    for name in node.RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | {"OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "accelerate.yaml").write_text("{num_processes: 32, num_machines: 4}")
    node.main(str(tmp_path / "accelerate.yaml"), "sft.py", "--config", "config.yaml")
    assert started[0][-5:] == ["--machine_rank", rank, "sft.py", "--config", "config.yaml"]
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_a_machine_without_a_rank_is_an_error(monkeypatch):
    for name in node.RANKS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit, match="must set ALIGNLOOP_MACHINE_RANK or SLURM_NODEID"):
        node.main("accelerate.yaml")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_wrapper_ends_when_the_runner_does(tmp_path, number):
    """After SIGKILL to the runner, and after SIGTERM to the wrapper itself, which a stopping runner sends."""
    script = tmp_path / "srun.sh"
    script.write_text(f"sleep 600 &\necho $$ $! > {tmp_path}/pids\nwait\n")
    wrapped = [sys.executable, "-P", "-m", "pipeline.launch.wrapper", "sh", str(script)]
    run = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); p.wait()"
    environment = os.environ | {"PYTHONPATH": str(command_line.ROOT)}
    runner = subprocess.Popen([sys.executable, "-c", run, *wrapped], env=environment, stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    guard = int(runner.stdout.readline())
    deadline = time.monotonic() + 120
    while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pids = [guard, *map(int, (tmp_path / "pids").read_text().split())]
    os.kill(runner.pid if number == signal.SIGKILL else guard, number)
    runner.wait(timeout=PATIENCE)
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if alive(pid)]
        time.sleep(0.02)


@pytest.mark.parametrize(("host", "ends"), [(None, True), ("another-machine", False)])
def test_only_on_the_runners_machine_its_process_is_watched(host, ends):
    gone = subprocess.Popen(["true"])
    gone.wait()
    environment = {"ALIGNLOOP_RUNNER_PID": str(gone.pid), "PYTHONPATH": str(command_line.ROOT)}
    environment |= {"ALIGNLOOP_RUNNER_HOST": host} if host else {}
    code = "import sys, time; from engine.runtime.process import end_with_the_runner as e; e()"
    code += "; time.sleep(float(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "60" if ends else "1.5"],
        env=os.environ | environment,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == (70 if ends else 0)
