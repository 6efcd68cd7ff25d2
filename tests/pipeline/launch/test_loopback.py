"""On one machine, the processes of a step can be reached only from this machine."""

import subprocess
from pathlib import Path

import psutil
import pytest

from pipeline.launch import command_line
from pipeline.recipe.sections import Launch
from pipeline.steps import Step
from tests.patience import PATIENCE
from tests.processes import within

# Two ranks that sum a number over gloo and then wait, with all their connections open.
RANK = """
import sys, time
from pathlib import Path
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
number = torch.ones(1)
dist.all_reduce(number)
here = Path(sys.argv[2]).parent
(here / f"sum-{dist.get_rank()}.txt").write_text(str(number.item()))
while not (here / "end").exists():
    time.sleep(0.05)
"""


@pytest.mark.parametrize("profile", ["ddp", "zero2"])
def test_every_socket_of_a_step_of_two_processes_listens_on_loopback(profile, tmp_path):
    step = Step("sft", "sft", None, "sft", {}, {}, Launch(profile=profile, num_processes=2, device="cpu"))
    command = command_line.launch_command(step, tmp_path)
    (script,) = (place for place, word in enumerate(command) if word.endswith("stages/sft.py"))
    command[script] = str(tmp_path / "rank.py")
    (tmp_path / "rank.py").write_text(RANK)
    environment = command_line.environment(step, tmp_path, tmp_path)
    with (tmp_path / "console.txt").open("w") as console:
        launcher = subprocess.Popen(command, env=environment, stdout=console, stderr=subprocess.STDOUT)
    try:
        sums = [tmp_path / f"sum-{rank}.txt" for rank in range(2)]
        assert within(200, lambda: all(map(Path.exists, sums)) or launcher.poll() is not None)
        assert [path.read_text() for path in sums] == ["2.0", "2.0"], (tmp_path / "console.txt").read_text()
        tree = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
        listening = [
            (process.name(), connection.laddr.ip, connection.laddr.port)
            for process in tree
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(tree) >= 3 and len(listening) >= 3  # the launcher's store, and gloo in each rank
        assert {address for _, address, _ in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
    finally:
        (tmp_path / "end").touch()
        for process in psutil.Process(launcher.pid).children(recursive=True) if launcher.poll() is None else []:
            process.wait(timeout=PATIENCE)
        assert launcher.wait(timeout=PATIENCE) == 0


def test_several_machines_keep_their_interfaces(tmp_path, monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    two = Launch(profile="ddp", num_processes=2, num_machines=2, device="cpu", wrapper="srun", main_process_ip="a")
    step = Step("sft", "sft", None, "sft", {}, {}, two)
    assert "GLOO_SOCKET_IFNAME" not in command_line.environment(step, tmp_path, tmp_path)
    assert "engine.runtime.loopback_launch" not in command_line.launch_command(step, tmp_path)


def test_the_interface_that_a_user_has_chosen_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    step = Step("sft", "sft", None, "sft", {}, {}, Launch(profile="ddp", num_processes=2, device="cpu"))
    assert command_line.environment(step, tmp_path, tmp_path)["GLOO_SOCKET_IFNAME"] == "eth7"
