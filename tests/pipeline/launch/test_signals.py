"""A runner that is stopped or killed ends its stages."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.launch.command_line import ROOT
from pipeline.launch.processes import STEP_FOLDER, Interrupted, StageProcess, program, signals_raise
from tests.patience import PATIENCE
from tests.pipeline.toy_house import ONE_ROUND, STEPS_OF_ONE_ROUND
from tests.processes import alive, within


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("behaviour", ["hang", "stubborn"])
def test_a_signal_stops_the_stage_and_all_its_children(world, number, exit_code, behaviour):
    process = world.start("run", "toy.yaml", *ONE_ROUND, TOY=json.dumps({"round-0.sft": behaviour}))
    pids = world.hanging()
    assert all(map(alive, pids))
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == exit_code
    assert not any(map(alive, pids))
    line = err.splitlines()[-1]
    kept = "round-0.sft has no checkpoint yet and will start from its beginning"
    assert line.startswith(f"interrupted: 2 of 10 steps are finished and kept, {kept}; to resume: ")
    assert line.endswith("alignloop.py run toy.yaml --set rounds=1")
    assert world.summary()["state"] == "interrupted"
    assert world.states()["round-0.sft"] == "interrupted"


def test_a_step_that_is_stopped_after_its_record_is_complete(world):
    process = world.start("run", "toy.yaml", *ONE_ROUND, TOY='{"round-0.sft": "hang at the end"}')
    world.hanging()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("interrupted: 3 of 10 steps are finished and kept; to resume: ")
    assert (world.summary()["state"], world.states()["round-0.sft"]) == ("interrupted", "ran")
    (entry,) = (step for step in world.summary()["steps"] if step["name"] == "round-0.sft")
    assert entry["metrics"] == {"eval_loss": 1.5}


def test_the_stage_of_a_killed_runner_is_ended_before_its_step_is_run_again(world):
    process = world.start("run", "toy.yaml", *ONE_ROUND, TOY='{"round-0.sft": "hang"}')
    pids = world.hanging()
    process.kill()
    process.communicate()
    assert all(map(alive, pids))  # the toy stage does not watch its runner; ours do
    assert "stopped: the process that ran it has ended" in world.call("status", "runs/toy")[1]
    world.launched()
    assert world.run()[0] == 0
    assert not any(map(alive, pids))
    assert world.launched() == STEPS_OF_ONE_ROUND[2:]


def test_a_run_under_nohup_outlives_its_terminal(world):
    process = world.start("run", "toy.yaml", *ONE_ROUND, before=["nohup"], TOY='{"round-0.sft": "hang"}')
    pids = world.hanging()
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and not any(map(alive, pids))


def test_a_plan_that_is_stopped_leaves_no_process_and_no_file(tmp_path):
    """`plan --cost` asks a separate program for estimates, which writes temporary files."""
    (tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "plan", str(ROOT / "configs" / "demo.yaml"), "--cost"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    assert within(PATIENCE, children.read_text)
    programs = [int(pid) for pid in children.read_text().split()]
    process.terminate()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and err == "estimating what the steps will need\n"
    assert not any(map(alive, programs)) and not list((tmp_path / "temporary").iterdir())


def test_a_helper_that_outlives_its_stage_is_not_reported_as_progress_that_is_saved(tmp_path, capfd):
    """As vLLM, which takes seconds to end."""
    command = ["bash", "-c", "(trap '' TERM; sleep 2) & exit 3"]
    env = {**os.environ, STEP_FOLDER: str(tmp_path)}
    stage = StageProcess(command, tmp_path, env, cores=None, grace_seconds=PATIENCE)
    stage.wait(PATIENCE)
    assert stage.finish()[0] == 3
    assert capfd.readouterr().err == ""


def test_a_signal_while_a_program_is_being_started_ends_it(monkeypatch):
    started = []

    class Signalled(subprocess.Popen):
        """The signal arrives after the fork, and before the caller has the process."""

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self.pid)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Signalled)
    with pytest.raises(Interrupted), signals_raise([signal.SIGTERM]), program(["sleep", "1000"]):
        raise AssertionError("the signal was lost")
    assert len(started) == 1 and not alive(started[0])
