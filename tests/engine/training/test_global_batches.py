"""A step trains on the same rows for any micro batch and any number of processes."""

from types import SimpleNamespace

import pytest
import torch

from data_schemas.errors import ConfigError
from engine.training.global_batches import GlobalBatches, balanced, fit_batch
from tests.engine.training.training_runs import STAGES, assert_equal_weights, data
from tests.stage_runs import metrics_of, run_here, weights_of


@pytest.mark.parametrize("stage", STAGES)
def test_the_micro_batch_changes_nothing(stage, tiny_model, rows, tmp_path):
    """8x1, 4x2 and 2x4 rows a step are the same step, also with DPO's loss of [sigmoid, sft]."""
    results = []
    for micro in (8, 4, 2):
        folder = tmp_path / str(micro)
        run_here(
            stage,
            folder,
            model_name_or_path=tiny_model,
            per_device_train_batch_size=micro,
            eval_steps=3,
            per_device_eval_batch_size=micro,
            optim="sgd",
            learning_rate=0.05,
            **data(rows, stage),
        )
        values = {key: value for key, value in metrics_of(folder).items() if key[1] in ("loss", "eval_loss")}
        results.append((weights_of(folder / "model"), values))
    start = weights_of(tiny_model)
    assert max(float((results[0][0][name] - start[name]).abs().max()) for name in start if name in results[0][0]) > 1e-3
    for weights, values in results[1:]:
        assert values == pytest.approx(results[0][1], abs=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, results[0][0][name], atol=1e-5, rtol=0, msg=name)


def test_a_step_sees_the_same_rows_for_any_number_of_processes():
    """One process with 4 rows a step, or two processes with every other row of it: the sampler yields whole steps."""
    sampler = GlobalBatches(11, global_batch_size=4, seed=3)
    first = list(sampler)
    assert len(sampler) == len(first) == 8  # the last 3 rows do not fill a step
    assert len(set(first)) == 8 and set(first) < set(range(11))
    assert list(GlobalBatches(11, global_batch_size=4, seed=3)) == first
    step = [0]
    sampler = GlobalBatches(11, global_batch_size=4, seed=3, steps_taken=lambda: step[0])
    epochs = []
    for step[0] in range(4):  # two steps an epoch; a run that resumes after one of them is in the same epoch
        epochs.append(list(sampler))
    assert epochs[0] == epochs[1] == first != epochs[2] == epochs[3]
    assert list(GlobalBatches(11, global_batch_size=4, seed=4)) != first


@pytest.mark.parametrize(
    ("num_tokens", "size", "runs"),
    [
        ([9, 8, 1, 1], 2, [[0, 3], [1, 2]]),  # 10 and 9 instead of 17 and 2
        ([5, 4, 3, 2, 1, 1], 2, [[0, 5], [1, 4], [2, 3]]),
        ([5, 4, 3], 3, [[0, 1, 2]]),  # one run: as drawn
    ],
)
def test_a_global_batch_is_divided_so_that_tokens_are_balanced(num_tokens, size, runs):
    made = balanced(range(len(num_tokens)), num_tokens, size=size)
    assert [sorted(made[start : start + size]) for start in range(0, len(made), size)] == [sorted(run) for run in runs]


def test_balancing_moves_no_row_into_another_step():
    drawn = list(GlobalBatches(64, global_batch_size=8, seed=1))
    divided = list(GlobalBatches(64, global_batch_size=8, seed=1, micro_batch_size=2, num_tokens=range(64)))
    assert divided != drawn
    for start in range(0, 64, 8):
        assert sorted(divided[start : start + 8]) == sorted(drawn[start : start + 8])


def test_fewer_rows_than_a_global_batch_train_as_one_batch_and_a_warning_says_so(tiny_model, rows, tmp_path):
    keys = {"model_name_or_path": tiny_model, "max_steps": 2, **data(rows, "sft")}
    records = {
        size: run_here("sft", tmp_path / str(size), **keys | {"global_batch_size": size, "learning_rate": 1e-3})
        for size in (32, 24)
    }
    assert [record.metrics["steps"] for record in records.values()] == [2, 2]
    assert_equal_weights(tmp_path / "32" / "model", tmp_path / "24" / "model")
    assert not any("global_batch_size" in text for text in records[24].warnings)
    (warning,) = (text for text in records[32].warnings if "global_batch_size" in text)
    assert warning.startswith(
        "24 training rows are fewer than one global_batch_size=32: every optimizer step has all 24"
    )
    with pytest.raises(ConfigError):
        GlobalBatches(3, global_batch_size=4, seed=0)


@pytest.mark.parametrize(
    ("num_rows", "processes", "packing", "batch"),
    [
        (38, 1, False, (38, 2, 19)),  # global, micro, accumulation: 8 does not divide 38
        (37, 1, False, (37, 1, 37)),
        (48, 2, False, (48, 8, 3)),
        (37, 2, False, (64, 8, 4)),  # a step could not have all rows: the sampler refuses
        (38, 1, True, (64, 8, 8)),  # TRL packs the rows, and there will be fewer
        (64, 1, False, (64, 8, 8)),
        (65, 1, False, (64, 8, 8)),
    ],
)
def test_a_batch_is_lowered_to_the_rows_where_they_are_fewer(num_rows, processes, packing, batch, monkeypatch):
    monkeypatch.setattr("engine.runtime.world.num_processes", lambda: processes)
    arguments = SimpleNamespace(global_batch_size=64)
    training = SimpleNamespace(
        per_device_train_batch_size=8, gradient_accumulation_steps=8 // processes, packing=packing
    )
    fit_batch(arguments, training, num_rows)  # pyright: ignore[reportArgumentType]
    sizes = training.per_device_train_batch_size, training.gradient_accumulation_steps
    assert (arguments.global_batch_size, *sizes) == batch
