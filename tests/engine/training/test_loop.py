"""The training loop around TRL's trainers: when it evaluates, which model it keeps, when it stops."""

import pytest

from engine.training.loop import best_step
from tests.engine.training.training_runs import assert_equal_weights, data, steps_with
from tests.stage_runs import metrics_of, run_here


def test_evaluates_before_the_first_step_at_eval_steps_and_at_the_end(tiny_model, rows, tmp_path):
    record = run_here(
        "sft", tmp_path / "sft", model_name_or_path=tiny_model, max_steps=5, eval_steps=2, **data(rows, "sft")
    )
    losses = {step: metrics_of(tmp_path / "sft")[step, "eval_loss"] for step in (0, 2, 4, 5)}
    assert steps_with(tmp_path / "sft", "eval_loss") == [0, 2, 4, 5]
    assert losses[5] < losses[4] < losses[2] < losses[0]
    assert record.metrics["eval_loss_at_step_0"] == losses[0]
    assert record.metrics["eval_loss"] == losses[5] and record.metrics["best_step"] == 5
    assert record.outputs == {"model": "model"} and not record.missing(tmp_path / "sft")
    assert not (tmp_path / "sft" / "checkpoints").exists()


def test_a_stage_that_only_got_worse_keeps_the_initial_model_and_logs_it(tiny_model, rows, tmp_path):
    record = run_here(
        "sft", tmp_path / "sft", model_name_or_path=tiny_model, max_steps=4, learning_rate=50.0, **data(rows, "sft")
    )
    assert record.metrics["best_step"] == 0
    assert record.metrics["eval_loss"] == record.metrics["eval_loss_at_step_0"]
    assert_equal_weights(tmp_path / "sft" / "model", tiny_model)
    assert "no step was better than the start" in (tmp_path / "sft" / "log.txt").read_text()


def test_patience_stops_a_stage_that_no_longer_gets_better(tiny_model, rows, tmp_path):
    record = run_here(
        "sft",
        tmp_path / "sft",
        model_name_or_path=tiny_model,
        max_steps=9,
        eval_steps=1,
        learning_rate=50.0,
        patience=2,
        **data(rows, "sft"),
    )
    assert record.metrics["steps"] == 2
    assert steps_with(tmp_path / "sft", "eval_loss") == [0, 1, 2]


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({0: 2.0, 5: 1.5, 10: 1.6}, 5),
        ({0: 2.0, 5: 2.0}, 0),  # the earlier of two equal ones
        ({0: 2.0, 5: float("nan"), 10: 1.9}, 10),
    ],
)
def test_the_best_step_has_the_lowest_finite_loss(losses, best):
    assert best_step(losses) == best
