"""Steps that would do harm stop the training before the optimizer's step, or are skipped and counted."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from data_schemas.errors import ConfigError
from data_schemas.files import read_json
from data_schemas.key_rules import check_values
from engine.runtime.complete_folder import find_damage
from engine.training import guards
from engine.training.global_batches import GlobalBatches
from engine.training.guards import WINDOW, GuardedSteps, what_is_wrong
from engine.training.reward import BradleyTerryTrainer
from tests.stage_runs import call_stage, metrics_of, run_here, weights_of

KEYS = {
    "max_steps": 4,
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "learning_rate": 3e-3,
    "seed": 5,
    "global_batch_size": 4,
    "logging_steps": 1,
}


@pytest.mark.parametrize(
    ("loss", "norm", "recent", "sigma", "expected"),
    [
        (1.0, 1.0, [], 10.0, ""),
        (math.nan, 1.0, [], None, "the loss is nan"),
        (math.inf, 1.0, [], None, "the loss is inf"),
        (1.0, math.nan, [], None, "the gradient's norm is nan"),
        (1.0, math.inf, [], None, "the gradient's norm is inf"),
        (
            9.0,
            1.0,
            [1.0, 2.0] * 64,
            10.0,
            "the loss is 9, 15 standard deviations above the mean of the last 128 (1.5)",
        ),
        (9.0, 1.0, [1.0, 2.0] * 64, None, ""),
        (6.4, 1.0, [1.0, 2.0] * 64, 10.0, ""),  # 9.8 of them
        (9.0, 1.0, [1.0, 2.0] * 31, 10.0, ""),  # too few to decide
        (1.0, 1.0, [1.0] * 128, 10.0, ""),  # no deviation, no spike
    ],
)
def test_what_is_wrong_with_a_step(loss, norm, recent, sigma, expected):
    assert what_is_wrong(loss, norm, recent, sigma) == expected


@pytest.fixture
def bad_third_step(monkeypatch):
    spoil_third_step(monkeypatch)


def spoil_third_step(patch: pytest.MonkeyPatch) -> None:
    """The loss and the gradients of the third step become NaN."""
    own = GuardedSteps.training_step

    def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = own(self, model, *args, **kwargs)
        if self.state.global_step == 2 and self.skipped_steps == 0:
            for weight in model.parameters():
                weight.grad = torch.full_like(weight, math.nan)
            loss = loss * math.nan
            self._micro_losses[-1] = loss
        return loss

    patch.setattr(GuardedSteps, "training_step", training_step)


def keys_of(tiny_model: Path, rows: Path, **more: Any) -> dict[str, Any]:
    data = {"train_data": [rows / "conversations.jsonl"], "eval_data": [rows / "conversations_eval.jsonl"]}
    return {"model_name_or_path": tiny_model, **KEYS, **data, **more}


@pytest.mark.usefixtures("bad_third_step")
def test_a_bad_step_stops_training_and_is_reported_with_its_rows_and_a_hint(tiny_model, rows, tmp_path):
    assert call_stage("sft", tmp_path / "sft", **keys_of(tiny_model, rows)) == 1
    marker = read_json(tmp_path / "sft" / "checkpoints" / "checkpoint-2" / "whole.json")
    assert marker["step"] == 2
    in_order = list(GlobalBatches(24, global_batch_size=4, seed=KEYS["seed"]))
    told = ", ".join(str(row + 1) for row in sorted(in_order[8:12]))
    cause = read_json(tmp_path / "sft" / "outcome.json")["cause"]
    assert cause == (
        f"step 3: the loss is nan; training rows {told}; a checkpoint of step 2 is kept. Lower learning_rate "
        "(now 0.003) or max_grad_norm (1), inspect these rows, or set on_bad_step: skip"
    )


def test_training_resumes_from_the_checkpoint_that_a_bad_step_leaves(tiny_model, rows, tmp_path, monkeypatch):
    """After a hardware fault the same command resumes at the step before, and reaches the same weights."""
    keys = keys_of(tiny_model, rows, save_strategy="no", lora_dropout=0.3, use_peft=True, lora_r=4)
    run_here("sft", tmp_path / "alone", **keys)
    with monkeypatch.context() as patch:
        spoil_third_step(patch)
        assert call_stage("sft", tmp_path / "sft", **keys) == 1
    assert "a checkpoint of step 2 is kept" in read_json(tmp_path / "sft" / "outcome.json")["cause"]
    assert find_damage(tmp_path / "sft" / "checkpoints" / "checkpoint-2") == ""
    run_here("sft", tmp_path / "sft", **keys)
    assert "resuming from step 2" in (tmp_path / "sft" / "log.txt").read_text()
    for name, tensor in weights_of(tmp_path / "alone" / "model").items():
        assert torch.equal(tensor, weights_of(tmp_path / "sft" / "model")[name]), name
    assert metrics_of(tmp_path / "sft") == metrics_of(tmp_path / "alone")


def test_rewards_that_collapse_to_a_constant_stop_the_stage(tiny_model, rows, tmp_path, monkeypatch):
    own = BradleyTerryTrainer.training_step

    def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = own(self, model, *args, **kwargs)
        model.score.weight.data.zero_()
        return loss

    monkeypatch.setattr(BradleyTerryTrainer, "training_step", training_step)
    data = {"train_data": [rows / "pairs.jsonl"], "eval_data": [rows / "pairs_eval.jsonl"]}
    keys = keys_of(tiny_model, rows, optim="sgd", learning_rate=1e-60) | data
    assert call_stage("reward_model", tmp_path / "rm", **keys) == 1
    assert read_json(tmp_path / "rm" / "outcome.json")["cause"].startswith(
        "step 2: the rewards have collapsed to a constant: in every held-out row all answers have the reward 0"
    )


@pytest.mark.usefixtures("bad_third_step")
def test_a_bad_step_can_be_skipped_and_changes_no_weight(tiny_model, rows, tmp_path):
    keys = keys_of(tiny_model, rows, on_bad_step="skip", lr_scheduler_type="constant")
    record = run_here("sft", tmp_path / "sft", **keys)
    assert record.metrics["skipped_steps"] == 1
    assert record.metrics["steps"] == 4
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights_of(tmp_path / "sft" / "model").values())
    logged = metrics_of(tmp_path / "sft")
    assert all(math.isfinite(logged[step, "loss"]) for step in (1, 2, 3, 4))
    assert "step 3 is skipped: the loss is nan (skipped so far: 1)" in (tmp_path / "sft" / "log.txt").read_text()


def test_the_losses_that_a_spike_is_measured_by_survive_a_resume(tiny_model, rows, tmp_path, monkeypatch):
    seen: list[list[float]] = []
    own = guards.what_is_wrong

    def remember(loss: float, norm: float, recent: Any, sigma: float | None) -> str:
        seen.append([*recent, loss])
        if len(seen) == 4:
            raise KeyboardInterrupt
        return own(loss, norm, recent, sigma)

    monkeypatch.setattr(guards, "what_is_wrong", remember)
    assert call_stage("sft", tmp_path / "sft", **keys_of(tiny_model, rows)) == 130
    run_here("sft", tmp_path / "sft", **keys_of(tiny_model, rows))
    assert seen[4:] == [seen[2], seen[3]]  # steps 3 and 4 again, from the checkpoint of step 2
    assert [len(losses) for losses in seen] == [1, 2, 3, 4, 3, 4]
    assert WINDOW == 128


def test_float16_is_refused_unless_it_is_forced():
    keys = {"train_data": ["a.jsonl"], "model_name_or_path": "m"}
    for half in ({"fp16": True}, {"dtype": "float16"}):
        with pytest.raises(ConfigError, match=r"sft: float16 overflows .* set bf16: true, or force_fp16: true"):
            check_values("sft", keys | half, where="sft")
        check_values("sft", keys | half | {"force_fp16": True}, where="sft")
