"""Where the numbers of a run are logged: metrics.jsonl, wandb and TensorBoard."""

import json
import logging
from typing import Any, ClassVar

import pytest

from engine.runtime import notices
from engine.runtime.tracking import Tracker
from tests.engine.training.training_runs import data
from tests.stage_runs import metrics_of, run_here


def test_each_step_and_key_is_logged_once_also_after_a_resume(tmp_path):
    tracker = Tracker(tmp_path, active=True)
    tracker.log({"loss": 2.0, "note": "text", "flag": True}, step=1)
    tracker.log({"loss": 3.0, "grad_norm": 1.0}, step=1)
    tracker.log({"loss": 1.0}, step=2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0.')  # cut off by a crash
    resumed = Tracker(tmp_path, active=True)
    resumed.forget_after(1)
    resumed.log({"loss": 0.5}, step=2)
    assert metrics_of(tmp_path) == {(1, "loss"): 2.0, (1, "grad_norm"): 1.0, (2, "loss"): 0.5}
    assert resumed.history("loss") == {1: 2.0, 2: 0.5}
    Tracker(tmp_path, active=False).log({"loss": 9.0}, step=9)
    assert (9, "loss") not in metrics_of(tmp_path)


def test_a_failure_of_wandb_does_not_fail_the_stage(tiny_model, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "neither online nor offline")
    run_here(
        "sft", tmp_path / "sft", model_name_or_path=tiny_model, report_to="wandb", max_steps=1, **data(rows, "sft")
    )
    assert "wandb failed and is not used for the rest of this step" in (tmp_path / "sft" / "log.txt").read_text()
    assert (1, "loss") in metrics_of(tmp_path / "sft")


def test_wandb_that_fails_during_the_run_is_disabled(tmp_path, caplog):
    class Broken:
        calls = 0

        def log(self, values: dict[str, Any]) -> None:
            self.calls += 1
            raise RuntimeError("no connection\nmore lines")

    tracker = Tracker(tmp_path, active=True)
    tracker._run = broken = Broken()
    with caplog.at_level(logging.WARNING):
        tracker.log({"loss": 1.0}, step=1)
        tracker.log({"loss": 0.5}, step=2)
    tracker.finish()
    assert broken.calls == 1 and "no connection" in caplog.text and "more lines" not in caplog.text
    assert metrics_of(tmp_path) == {(1, "loss"): 1.0, (2, "loss"): 0.5}


def test_wandb_is_one_run_a_step_with_a_stable_id_inside_the_folder(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    for _ in ("begun", "resumed"):
        tracker = Tracker(tmp_path / "first", active=True)
        tracker.start_wandb(tmp_path / "first", name="round-1.sft", group="run", config={"seed": 1})
        tracker.log({"loss": 1.0}, step=1)
        tracker.finish()
    id = (tmp_path / "first" / "wandb_id.txt").read_text()
    runs = [path.name.rpartition("-")[2] for path in (tmp_path / "first" / "wandb").glob("offline-run-*")]
    assert runs and set(runs) == {id}
    from engine.runtime.tracking import _run_id

    assert _run_id(tmp_path / "second") != id
    assert json.loads((tmp_path / "first" / "metrics.jsonl").read_text()) == {"step": 1, "loss": 1.0}


@pytest.fixture
def events():
    """Every scalar in TensorBoard's event files: (step, key) -> value. One that occurs twice is an error."""
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder):
        accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
        accumulator.Reload()
        found = [
            ((event.step, key), event.value)
            for key in accumulator.Tags()["scalars"]
            for event in accumulator.Scalars(key)
        ]
        assert len(found) == len(dict(found))
        return dict(found)

    return read


def test_tensorboard_has_the_numbers_of_metrics_jsonl(tiny_model, rows, tmp_path, events):
    record = run_here(
        "sft", tmp_path / "sft", model_name_or_path=tiny_model, report_to=["tensorboard"], **data(rows, "sft")
    )
    metrics = metrics_of(tmp_path / "sft")
    assert (3, "loss") in metrics and events(tmp_path / "sft") == pytest.approx(metrics, rel=1e-6)
    assert record.warnings == [] and "report_to" not in record.keys


def test_a_resumed_stage_has_each_event_once(tmp_path, events):
    killed = Tracker(tmp_path, active=True)
    killed.start_tensorboard(tmp_path)
    for step, loss in ((0, 3.0), (1, 2.0), (2, 1.5)):
        killed.log({"loss": loss}, step=step)
    killed._writer.flush()
    assert len(events(tmp_path)) == 3
    resumed = Tracker(tmp_path, active=True)  # from the checkpoint of step 1
    resumed.start_tensorboard(tmp_path)
    resumed.forget_after(1)
    resumed.log({"loss": 1.25}, step=2)
    resumed.finish()
    assert events(tmp_path) == {(0, "loss"): 3.0, (1, "loss"): 2.0, (2, "loss"): 1.25}


def test_tensorboard_that_fails_is_disabled_and_wandb_goes_on(tmp_path):
    class Broken:
        def add_scalar(self, *args: Any) -> None:
            raise OSError("no space\nmore lines")

    class Run:
        logged: ClassVar[list[dict[str, Any]]] = []

        def log(self, values: dict[str, Any]) -> None:
            self.logged.append(values)

    tracker = Tracker(tmp_path, active=True)
    tracker._writer, tracker._run = Broken(), Run()
    notices.start(None)
    tracker.log({"loss": 1.0}, step=1)
    tracker.log({"loss": 0.5}, step=2)
    assert notices.kept() == ["tensorboard failed and is not used for the rest of this step: no space"]
    assert [values["step"] for values in Run.logged] == [1, 2] and tracker._writer is None
