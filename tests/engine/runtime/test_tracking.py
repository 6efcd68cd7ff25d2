"""Where the numbers of a stage are logged: metrics.jsonl, and the services that `report_to` names."""

import json
from collections.abc import Mapping

import pytest

from engine.runtime import notices, trackers, tracking
from engine.runtime.trackers import TrackedRun
from engine.runtime.tracking import Tracker
from tests.engine.training.training_runs import data
from tests.stage_runs import metrics_of, run_here
from tests.wandb_files import group_of, logged_offline


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


class Broken:
    """A service that fails at the first number."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self.calls.append("log")
        raise OSError("no space\nmore lines")

    def finish(self) -> None:
        self.calls.append("finish")


class Kept(Broken):
    """A service that keeps what it gets, and fails at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self.logged.append((step, dict(values)))

    def finish(self) -> None:
        raise TimeoutError


def test_a_service_that_fails_is_one_warning_and_the_others_go_on(tmp_path, monkeypatch):
    made = {"wandb": Broken(), "tensorboard": Kept()}
    monkeypatch.setattr(trackers, "start", lambda name, run, logged: made[name])
    notices.start(None)
    tracker = Tracker(tmp_path, active=True)
    tracker.start(["none", "wandb", "tensorboard", "wandb"], TrackedRun(tmp_path, "sft"))
    tracker.log({"loss": 1.0}, step=1)
    tracker.log({"loss": 0.5}, step=2)
    tracker.finish()
    assert made["wandb"].calls == ["log"]
    assert made["tensorboard"].logged == [(1, {"loss": 1.0}), (2, {"loss": 0.5})]
    assert metrics_of(tmp_path) == {(1, "loss"): 1.0, (2, "loss"): 0.5}
    assert notices.kept() == [
        "wandb failed and is not used for the rest of this step: no space",
        "tensorboard failed and is not used for the rest of this step: TimeoutError",
    ]


def test_a_service_that_is_not_installed_is_one_warning(tiny_model, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "is_installed", lambda name: False)
    keys = data(rows, "sft") | {"model_name_or_path": tiny_model, "max_steps": 1}
    record = run_here("sft", tmp_path / "sft", report_to=["mlflow", "tensorboard"], **keys)
    unused = "is not installed, so the numbers of this step are only in metrics.jsonl; install it, as by pip install"
    assert record.warnings == [
        f"report_to: mlflow {unused} 'alignloop[mlflow]'",
        f"report_to: tensorboard {unused} 'alignloop[tensorboard]'",
    ]
    assert (1, "loss") in metrics_of(tmp_path / "sft")


def test_a_stage_that_logs_nothing_while_it_runs_logs_the_numbers_of_its_record(rows, tmp_path):
    record = run_here("prepare_data", tmp_path / "data", instructions=[rows / "conversations.jsonl"])
    numbers = {key: value for key, value in record.metrics.items() if isinstance(value, int | float)}
    assert numbers and metrics_of(tmp_path / "data") == {(0, key): value for key, value in numbers.items()}


def test_wandb_is_one_run_a_step_with_a_stable_id_and_the_names_of_metrics_jsonl(tmp_path):
    for _ in ("begun", "resumed"):
        tracker = Tracker(tmp_path, active=True)
        tracker.start(["wandb"], TrackedRun(tmp_path, "round-1.sft", group="run", config={"seed": 1}))
        tracker.log({"loss": 1.0, "eval_rewards/accuracies": 0.5}, step=1)
        tracker.finish()
    id = (tmp_path / "wandb_id.txt").read_text()
    runs = [path.stem.removeprefix("run-") for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")]
    assert runs and set(runs) == {id}
    assert trackers._kept_id(tmp_path / "other.txt") != id
    numbers = {"loss": 1.0, "eval_rewards/accuracies": 0.5, "step": 1}
    assert logged_offline(tmp_path) == [numbers] and group_of(tmp_path) == {"run"}
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == numbers


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
    killed.start(["tensorboard"], TrackedRun(tmp_path, "sft"))
    for step, loss in ((0, 3.0), (1, 2.0), (2, 1.5)):
        killed.log({"loss": loss}, step=step)
    killed.services["tensorboard"].writer.flush()
    assert len(events(tmp_path)) == 3
    resumed = Tracker(tmp_path, active=True)  # from the checkpoint of step 1
    resumed.start(["tensorboard"], TrackedRun(tmp_path, "sft"))
    resumed.forget_after(1)
    resumed.log({"loss": 1.25}, step=2)
    resumed.finish()
    assert events(tmp_path) == {(0, "loss"): 3.0, (1, "loss"): 2.0, (2, "loss"): 1.25}
