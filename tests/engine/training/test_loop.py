"""The training loop around TRL's trainers: when it evaluates, which model it keeps, when it stops."""

import pytest

from engine.training.loop import best_step, kept_step
from engine.training.run import warnings_of
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


def test_the_warning_of_an_unchanged_model_says_where_accuracy_rose():
    losses, accuracies = {0: 1.0, 5: 1.2, 10: 1.1}, {0: 0.5, 5: 0.6, 10: 0.6}
    unchanged = "no step was better than the start (eval_loss 1.0000): the model is saved as it was loaded"
    assert list(warnings_of(losses, accuracies, 0, keep="best_by_loss")) == [
        f"{unchanged}; the accuracy on held-out pairs rose from 0.500 to 0.600 at step 10, which keep=best_by_accuracy "
        "saves"
    ]
    assert list(warnings_of(losses, {0: 0.5, 5: 0.4, 10: 0.5}, 0, keep="best_by_loss")) == [unchanged]
    assert list(warnings_of(losses, {}, 0, keep="best_by_loss")) == [unchanged]  # rows without pairs
    assert list(warnings_of(losses, accuracies, 5, keep="last")) == [
        "the saved model, of step 5, has a higher eval_loss (1.2000) than the start (1.0000), since keep is last"
    ]
    assert not list(warnings_of({0: 1.0, 5: 0.9}, accuracies, 5, keep="best_by_loss"))
    reward = ("reward on held-out prompts", -1)
    assert list(warnings_of({0: -0.36, 5: -0.25}, {}, 0, keep="best_by_loss", measure=reward)) == [
        "no step was better than the start (reward on held-out prompts 0.3600): the model is saved as it was loaded"
    ]
    assert list(warnings_of({0: -0.36, 5: -0.25}, {}, 5, keep="last", measure=reward)) == [
        "the saved model, of step 5, has a lower reward on held-out prompts (0.2500) than the start (0.3600), since "
        "keep is last"
    ]


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


@pytest.mark.parametrize(
    ("accuracies", "keep", "kept"),
    [
        ({0: 0.5, 5: 0.7, 10: 0.9}, "best_by_loss", 5),
        ({0: 0.5, 5: 0.7, 10: 0.9}, "best_by_accuracy", 10),
        ({0: 0.9, 5: 0.7, 10: 0.9}, "best_by_accuracy", 10),  # of two equal ones, the one with the lower loss
        ({0: float("nan"), 5: 0.2, 10: 0.1}, "best_by_accuracy", 5),
        ({}, "best_by_accuracy", 5),
        ({0: 0.5, 5: 0.7, 10: 0.9}, "last", 10),
    ],
)
def test_the_kept_step_is_what_keep_asks_for(accuracies, keep, kept):
    assert kept_step({0: 2.0, 5: 1.5, 10: 1.6}, accuracies, keep=keep) == kept


def test_the_last_model_is_kept_although_it_is_worse_and_a_warning_names_both_losses(tiny_model, rows, tmp_path):
    keys = {"model_name_or_path": tiny_model, "max_steps": 2, "learning_rate": 50.0, "on_bad_step": "skip"}
    record = run_here("sft", tmp_path / "sft", keep="last", **keys, **data(rows, "sft"))
    losses = {step: metrics_of(tmp_path / "sft")[step, "eval_loss"] for step in (0, 2)}
    assert losses[2] > losses[0]
    assert (record.metrics["best_step"], record.metrics["eval_loss"]) == (2, losses[2])
    assert record.keys["keep"] == "last"
    (warning,) = [text for text in record.warnings if "higher eval_loss" in text]
    assert f"({losses[2]:.4f})" in warning and f"({losses[0]:.4f})" in warning and "keep is last" in warning
    with pytest.raises(AssertionError):
        assert_equal_weights(tmp_path / "sft" / "model", tiny_model)


@pytest.mark.parametrize(("stage", "name"), [("reward_model", "eval_accuracy"), ("dpo", "eval_rewards/accuracies")])
def test_the_best_accuracy_is_that_of_the_stages_own_metric(stage, name, tiny_model, rows, tmp_path):
    keys = {"model_name_or_path": tiny_model, "max_steps": 3, "eval_steps": 1, "learning_rate": 3e-3}
    record = run_here(stage, tmp_path / stage, keep="best_by_accuracy", **keys, **data(rows, stage))
    logged = metrics_of(tmp_path / stage)
    accuracies = {step: logged[step, name] for step in range(4)}
    assert record.metrics[name] == max(accuracies.values()) > min(accuracies.values())
    assert record.keys["keep"] == "best_by_accuracy"


def test_the_default_of_keep_is_no_part_of_a_records_identity(tiny_model, rows, tmp_path):
    record = run_here("sft", tmp_path / "sft", model_name_or_path=tiny_model, max_steps=1, **data(rows, "sft"))
    assert "keep" not in record.keys and "patience" in record.keys
