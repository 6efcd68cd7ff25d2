"""A run that was stopped or got SIGTERM and is resumed equals an uninterrupted one."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from data_schemas.artifact import Artifact
from data_schemas.files import read_json
from engine.training import run
from tests.engine.training.training_runs import assert_equal_weights, data
from tests.stage_runs import call_stage, metrics_of, run_here

RESUME = {"max_steps": 6, "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def uninterrupted(tiny_model, rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "sft"
    run_here("sft", folder, model_name_or_path=tiny_model, **RESUME, **data(rows, "sft"))
    return folder


@pytest.fixture(scope="module")
def interrupted(tiny_model, rows, tmp_path_factory) -> Path:
    """The same stage, stopped after its 5th step: checkpoints at 2 and 4, step 5 already logged."""
    folder = tmp_path_factory.mktemp("interrupted") / "sft"
    ends = run.TrackingCallback.on_log

    def stop_at_5(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ends(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.TrackingCallback, "on_log", stop_at_5)
        keys = {"model_name_or_path": tiny_model, **RESUME, **data(rows, "sft")}
        assert call_stage("sft", folder, **keys) == 130
    assert read_json(folder / "outcome.json")["state"] == "interrupted"
    assert Artifact.read(folder) is None
    assert {path.name for path in folder.glob("checkpoints/checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert (5, "loss") in metrics_of(folder)
    return folder


@pytest.mark.parametrize("lost", ["nothing", "the marker of the newest checkpoint", "a byte of the newest checkpoint"])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    lost, uninterrupted, interrupted, tiny_model, rows, tmp_path
):
    folder = tmp_path / "sft"
    shutil.copytree(interrupted, folder)
    resumed_from = 4
    newest = folder / "checkpoints" / "checkpoint-4"
    if lost != "nothing":
        resumed_from = 2
    if lost == "the marker of the newest checkpoint":
        (newest / "whole.json").unlink()
        # A killed process leaves truncated files. Loading them would be an error.
        (newest / "optimizer.pt").write_bytes(b"cut")
    if lost == "a byte of the newest checkpoint":
        content = bytearray((newest / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (newest / "model.safetensors").write_bytes(content)
    run_here("sft", folder, model_name_or_path=tiny_model, **RESUME, **data(rows, "sft"))
    logged = (folder / "log.txt").read_text()
    assert f"resuming from step {resumed_from}\n" in logged
    assert ("checkpoint-4 is not resumed from: " in logged) == (lost != "nothing")
    assert_equal_weights(folder / "model", uninterrupted / "model")
    assert metrics_of(folder) == metrics_of(uninterrupted)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_line_of_the_log_over_steps_before_and_after_a_kill_has_the_same_numbers(
    stage, tiny_model, rows, tmp_path, monkeypatch
):
    keys = {"model_name_or_path": tiny_model, **RESUME, "logging_steps": 3, **data(rows, stage)}
    run_here(stage, tmp_path / "whole", **keys)

    def killed(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.TrackingCallback, "on_step_end", killed)
        assert call_stage(stage, tmp_path / "killed", **keys) == 130
    run_here(stage, tmp_path / "killed", **keys)
    assert "resuming from step 4\n" in (tmp_path / "killed" / "log.txt").read_text()
    assert {step for step, name in metrics_of(tmp_path / "whole") if name == "loss"} == {3, 6}
    assert metrics_of(tmp_path / "killed") == metrics_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("where", "step", "saved", "is_due"),
    [
        ("on_step_end", 5, 5, False),
        ("on_step_end", 4, 4, True),  # of which an evaluation is due
        ("on_log", 4, 4, True),  # the evaluation comes next
        ("on_log", 5, 6, True),
        ("on_prediction_step", 4, 4, True),
        ("on_prediction_step", 6, 6, True),  # the last step
        ("on_prediction_step", 0, None, False),
    ],
)
def test_sigterm_saves_a_checkpoint_from_which_everything_is_the_same(
    where, step, saved, is_due, uninterrupted, tiny_model, rows, tmp_path, monkeypatch
):
    folder, keys = tmp_path / "sft", {"model_name_or_path": tiny_model, **RESUME, **data(rows, "sft")}
    own = getattr(run.TrackingCallback, where)

    def signalled(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        own(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(run.TrackingCallback, where, signalled)
        assert call_stage("sft", folder, **keys) == 143
    outcome = read_json(folder / "outcome.json")
    assert outcome["kind"] == "preempted"
    assert outcome["hint"] == f"run the same command again: training resumes from step {saved or 0}"
    assert "SIGTERM would have been answered within" in (folder / "log.txt").read_text()
    steps = {int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoints/checkpoint-*")}
    assert max(steps, default=None) == saved
    if saved:
        assert read_json(folder / "checkpoints" / f"checkpoint-{saved}" / "whole.json")["evaluation_is_due"] is is_due

    run_here("sft", folder, **keys)
    assert_equal_weights(folder / "model", uninterrupted / "model")
    wanted = {key: value for key, value in metrics_of(uninterrupted).items() if key[1].startswith("eval_")}
    found = {key: value for key, value in metrics_of(folder).items() if key[1].startswith("eval_")}
    assert found == wanted
    mine, whole = Artifact.read(folder), Artifact.read(uninterrupted)
    assert mine is not None
    assert whole is not None
    assert mine.metrics == whole.metrics


def test_a_second_sigterm_during_a_pending_evaluation_does_not_change_the_checkpoint(
    uninterrupted, tiny_model, rows, tmp_path, monkeypatch
):
    folder, keys = tmp_path / "sft", {"model_name_or_path": tiny_model, **RESUME, **data(rows, "sft")}
    own = run.TrackingCallback.on_prediction_step

    def signalled(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        own(self, args, state, control, **kwargs)

    marker, written = folder / "checkpoints" / "checkpoint-4" / "whole.json", []
    with monkeypatch.context() as patch:
        patch.setattr(run.TrackingCallback, "on_prediction_step", signalled)
        for _ in range(2):
            assert call_stage("sft", folder, **keys) == 143
            written.append(marker.stat().st_ino)
    assert written[0] == written[1]
    run_here("sft", folder, **keys)
    assert_equal_weights(folder / "model", uninterrupted / "model")
