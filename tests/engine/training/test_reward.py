"""The reward model's loss on rankings, worked out by hand."""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.models.loading import load_reward
from engine.training.reward import BradleyTerryTrainer, RankingCollator
from tests.stage_runs import metrics_of, run_here
from tests.toy_rows import pair, write_jsonl


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def trainer() -> Any:
    """The trainer's loss without a model, where an answer's reward is its first token."""
    made = BradleyTerryTrainer.__new__(BradleyTerryTrainer)
    made.args = SimpleNamespace(center_rewards_coefficient=None)
    made.model = SimpleNamespace(training=False)
    made._metrics = {"eval": defaultdict(list)}
    made._total_train_tokens = 0
    made.accelerator = SimpleNamespace(gather=lambda value: value)
    return made


def rewards(input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
    return SimpleNamespace(logits=input_ids[:, :1].float())


def batch(*rankings: list[int]) -> dict[str, torch.Tensor]:
    """Rankings of answers of two tokens, the first being the reward."""
    return RankingCollator(pad_token_id=0)([{"answers": [[reward, 9] for reward in ranking]} for ranking in rankings])


def test_all_pairs_of_a_ranking_in_one_step_each_ranking_weighing_the_same(trainer):
    # [3, 1, 2] has the pairs 3-1, 3-2, 1-2 with margins 2, 1, -1; [5, 4] one pair with margin 1.
    of_three = -(math.log(sigmoid(2)) + math.log(sigmoid(1)) + math.log(sigmoid(-1))) / 3
    loss, margins = trainer.compute_loss(rewards, batch([3, 1, 2], [5, 4]), return_outputs=True)
    assert float(loss) == pytest.approx((of_three - math.log(sigmoid(1))) / 2)
    assert margins.tolist() == [1.0, 1.0]  # the best over the worst: 3 - 2, 5 - 4
    logged = {name: values[0] for name, values in trainer._metrics["eval"].items() if name != "num_tokens"}
    assert logged["accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert logged["margin"] == pytest.approx(((2 + 1 - 1) / 3 + 1) / 2)
    assert logged["mean_reward"] == pytest.approx((3 + 1 + 2 + 5 + 4) / 5)
    assert (logged["min_reward"], logged["max_reward"]) == (1.0, 5.0)


def test_centered_rewards(trainer):
    trainer.args.center_rewards_coefficient = 0.5
    loss = trainer.compute_loss(rewards, batch([3, 1]))
    assert float(loss) == pytest.approx(-math.log(sigmoid(2)) + 0.5 * (3 + 1) ** 2)


def test_a_batch_of_rankings(trainer):
    made = RankingCollator(pad_token_id=7)([{"answers": [[1, 2, 3], [4]]}, {"answers": [[5], [6, 6], [8]]}])
    assert made["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7], [5, 7, 7], [6, 6, 7], [8, 7, 7]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert list(zip(made["better"].tolist(), made["worse"].tolist(), strict=True)) == [(0, 1), (2, 3), (2, 4), (3, 4)]
    assert made["num_pairs"].tolist() == [1, 3, 3, 3]
    assert (made["best"].tolist(), made["worst"].tolist()) == ([0, 2], [1, 4])


def test_rankings_and_pairs_train_together(tiny_model, rows, tmp_path):
    ranked = []
    for number in range(24):
        row = pair(number)
        edited = [{"role": "assistant", "content": f"{row['chosen'][-1]['content']} Indeed."}]
        ranked.append(row | ({"edited": edited} if number % 2 else {}))
    data = write_jsonl(tmp_path / "ranked.jsonl", ranked)
    record = run_here(
        "reward_model",
        tmp_path / "rm",
        model_name_or_path=tiny_model,
        train_data=[data],
        eval_data=[rows / "pairs_eval.jsonl"],
        max_steps=2,
        eval_steps=2,
    )
    assert record.metrics["steps"] == 2
    assert math.isfinite(metrics_of(tmp_path / "rm")[2, "eval_loss"])


def test_a_reward_model_that_is_trained_further_keeps_its_head(tiny_model, rows, tmp_path):
    keys = {"train_data": [rows / "pairs.jsonl"], "eval_data": [rows / "pairs_eval.jsonl"], "max_steps": 1}
    run_here("reward_model", tmp_path / "one", model_name_or_path=tiny_model, seed=1, **keys)
    run_here(
        "reward_model",
        tmp_path / "two",
        model_name_or_path=tmp_path / "one" / "model",
        seed=2,
        learning_rate=1e-60,
        **keys,
    )
    heads = [load_reward(str(tmp_path / name / "model")).score.weight for name in ("one", "two")]
    assert torch.equal(heads[0], heads[1])
