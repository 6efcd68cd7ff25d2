"""The reward model's loss on rankings, worked out by hand."""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_schemas.rows import PreferencePair
from engine.models.loading import load_reward, load_tokenizer
from engine.training.reward import BradleyTerryTrainer, RankingCollator
from stages.reward_model import RewardModelArguments, encoder
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


def with_margins(*rankings: tuple[list[int], float]) -> dict[str, torch.Tensor]:
    rows = [{"answers": [[reward, 9] for reward in ranking], "margin": [margin]} for ranking, margin in rankings]
    return RankingCollator(pad_token_id=0)(rows)


def test_a_margin_is_subtracted_in_training_only(trainer):
    # Of a ranking of three answers, neighbours have half of the margin of the best over the worst.
    trainer.model.training = True
    trainer._metrics["train"] = defaultdict(list)
    of_three = -(math.log(sigmoid(2 - 0.3)) + math.log(sigmoid(1 - 0.6)) + math.log(sigmoid(-1 - 0.3))) / 3
    of_two = -math.log(sigmoid(1 - 1.0))
    given = with_margins(([3, 1, 2], 0.6), ([5, 4], 1.0))
    assert given["margins"].tolist() == pytest.approx([0.3, 0.6, 0.3, 1.0])
    assert float(trainer.compute_loss(rewards, given)) == pytest.approx((of_three + of_two) / 2)
    trainer.model.training = False
    plain = float(trainer.compute_loss(rewards, batch([3, 1, 2], [5, 4])))
    assert float(trainer.compute_loss(rewards, given)) == plain


def test_the_margin_is_that_of_the_rows_strength(tiny_model):
    tokenizer = load_tokenizer(str(tiny_model))
    arguments = RewardModelArguments(train_data=["pairs.jsonl"], level_margins=[3.0, 2.0, 1.0, 0.0])
    encode, _ = encoder(tokenizer, arguments)
    levels = ["significantly_better", "better", "slightly_better", "marginally_better", None]
    rows = [PreferencePair.model_validate(pair(0) | ({"strength": level} if level else {})) for level in levels]
    assert [encode(row)[0].margin for row in rows] == [[3.0], [2.0], [1.0], [0.0], [0.0]]
    plain, _ = encoder(tokenizer, RewardModelArguments(train_data=["pairs.jsonl"]))
    assert plain(rows[0])[0].margin == []


def test_margins_change_what_is_trained_and_not_how_it_is_measured(tiny_model, rows, tmp_path):
    strong = [pair(number) | {"strength": "significantly_better"} for number in range(24)]
    data = write_jsonl(tmp_path / "strong.jsonl", strong)
    keys = {"train_data": [data], "eval_data": [rows / "pairs_eval.jsonl"], "max_steps": 4, "eval_steps": 2}
    margins = [3.0, 2.0, 1.0, 0.0]
    records = [
        run_here("reward_model", tmp_path / name, model_name_or_path=tiny_model, **keys, **more)
        for name, more in (("plain", {}), ("margins", {"level_margins": margins}))
    ]
    assert records[0].metrics["eval_loss_at_step_0"] == records[1].metrics["eval_loss_at_step_0"]
    heads = [load_reward(str(tmp_path / name / "model")).score.weight for name in ("plain", "margins")]
    assert not torch.equal(*heads)
    assert not [line for line in records[1].warnings if "level_margins" in line]
    none = run_here(
        "reward_model",
        tmp_path / "none",
        model_name_or_path=tiny_model,
        level_margins=margins,
        **keys | {"train_data": [rows / "pairs.jsonl"]},
    )
    assert any("level_margins changes nothing: none of " in line for line in none.warnings)
