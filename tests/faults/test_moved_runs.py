"""A run that was moved to another folder is reused and continued."""

import os
import shutil
import signal
import socket
import subprocess

from engine.runtime import stage as stage_module
from pipeline.state.verifying import check_run
from tests.faults.runs import NO_ROUND, STEPS, assert_same_model, states, training
from tests.pipeline.toy_house import copied
from tests.processes import alive
from tests.stage_runs import call_stage, run_here


def test_a_moved_run_is_reused_and_continues_without_its_old_folder(finished, tmp_path):
    world, old, new = copied(finished, tmp_path / "old"), tmp_path / "old", tmp_path / "another name"
    old.rename(new)
    world.work, world.run_folder = new, new / "runs" / "toy"
    links = {link.name: link.resolve() for link in (world.run_folder / "steps").iterdir()}
    assert links == {step: world.folder(step) for step in STEPS}
    # As on another machine, where these ids belong to other processes.
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        for folder in (world.run_folder, world.folder("round-0.sft")):
            (folder / ".lock").write_text(f"{stranger.pid} {socket.gethostname()}\n")
        assert "stopped" not in world.call("status", "runs/toy")[1]
        assert world.call(*NO_ROUND)[0] == 0
        assert (world.launched(), states(world)) == ([], {"reused"})
        assert not any(one.problems for one in check_run(world.run_folder))

        shutil.rmtree(world.folder("round-0.evaluate_policy"))
        (world.folder("round-0.sft") / "artifact.json").unlink()
        assert world.call(*NO_ROUND)[0] == 0
        assert alive(stranger.pid)
        stranger.kill()
    assert world.launched() == ["round-0.sft", "round-0.evaluate_policy"]
    for step in ("round-0.sft", "round-0.evaluate_policy"):
        text = " ".join((world.folder(step) / "config.yaml").read_text().split())  # YAML folds a long path
        assert str(new) in text and str(old) not in text and str(finished.work) not in text


def test_a_moved_unfinished_stage_resumes_from_its_checkpoint(trained, tiny_model, rows, tmp_path, monkeypatch):
    keys = training(tiny_model, rows)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "_finish", lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGINT))
        assert call_stage("sft", tmp_path / "here" / "sft", **keys) == 130
    signal.signal(signal.SIGINT, before)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setattr("engine.training.loop.TrainingLoop.training_step", None)  # calling it would be an error
    run_here("sft", tmp_path / "there" / "sft", **keys)
    assert_same_model(tmp_path / "there" / "sft", trained)
