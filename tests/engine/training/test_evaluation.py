"""Evaluation numbers depend only on weights and rows: for any batch size they equal a plain computation."""

import json
import math
import random
from typing import Any

import pytest
import torch

from data_schemas.rows import Message
from engine.models.loading import load_causal
from engine.runtime.stage import StageResult
from engine.tokens.template import encode_answer, encode_dialog
from engine.training import method
from engine.training.evaluation import rank_batches
from engine.training.reward import precision_recall
from tests.stage_runs import call_stage


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "processes", "batches"),
    [
        (9, 4, 1, [[[0, 1, 2, 3], [4, 5, 6, 7], [8]]]),
        (9, 4, 2, [[[0, 2, 4, 6], [8]], [[1, 3, 5, 7], []]]),  # the second process's spare batch is empty
        (9, 2, 2, [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], []]]),
        (2, 8, 3, [[[0]], [[1]], [[]]]),
        (8, 8, 1, [[[0, 1, 2, 3, 4, 5, 6, 7]]]),
    ],
)
def test_every_process_has_as_many_batches_and_no_row_is_twice(num_rows, batch_size, processes, batches):
    made = [rank_batches(num_rows, batch_size=batch_size, rank=rank, processes=processes) for rank in range(processes)]
    assert made == batches


def test_precision_and_recall_by_hand():
    assert set(random.Random(0).sample(range(4), 2)) == {1, 3}, "of 4 pairs, seed 0 shows these chosen first"
    # Chosen first: pair 1 is right (a true positive), pair 3 is not. Rejected first: pair 2 is a false positive.
    assert precision_recall([0.2, 0.7, -0.1, -0.4], seed=0) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    # Pair 3 right as well: 2 true positives, 1 false positive.
    better = precision_recall([0.2, 0.7, -0.1, 0.4], seed=0)
    assert better == {"precision": pytest.approx(2 / 3), "recall": 1.0, "f1": pytest.approx(0.8)}
    # A model that gives every answer the same score never says "better".
    assert precision_recall([0.0] * 4, seed=0) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_a_model_that_always_says_first_is_at_chance():
    """The sign of its margin depends on the order: if the chosen answer were always first, precision would be 1."""
    first = set(random.Random(0).sample(range(100), 50))
    margins = [1.0 if pair in first else -1.0 for pair in range(100)]
    assert precision_recall(margins, seed=0)["precision"] == 0.5


def trainer_of(stage: str, tiny_model, rows, folder, monkeypatch, **keys: Any) -> Any:
    """The stage's trainer on 9 held-out rows, not trained, with perturbed weights."""
    found = []
    monkeypatch.setattr(method, "train_and_save", lambda trainer, *_, **__: found.append(trainer) or StageResult({}))
    kind = "conversations" if stage == "sft" else "pairs"
    data = {"train_data": [rows / f"{kind}.jsonl"], "eval_data": [rows / f"{kind}_eval.jsonl"]}
    keys = {"keep_checkpoints": True, **keys}
    assert call_stage(stage, folder, model_name_or_path=tiny_model, **data, **keys) == 0
    trainer = found[0]
    if stage == "dpo":
        trainer.attach_reference_log_probs("eval")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return trainer


def evaluate(trainer: Any, batch_size: int) -> dict[str, float]:
    trainer.args.per_device_eval_batch_size = batch_size
    return trainer.evaluation_loop(trainer.get_eval_dataloader(), "evaluation").metrics


def assert_same_for_all_batch_sizes(trainer: Any) -> dict[str, float]:
    by_one = evaluate(trainer, 1)
    for batch_size in (4, 8):
        other = evaluate(trainer, batch_size)
        assert other.keys() == by_one.keys()
        for name, value in by_one.items():
            assert other[name] == pytest.approx(value, rel=1e-6, abs=2e-6), name
    return by_one


def held_out(rows, kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (rows / f"{kind}_eval.jsonl").read_text().splitlines()]


def messages(dialog: list[dict[str, str]]) -> list[Message]:
    return [Message(**message) for message in dialog]


def token_log_probs(model: Any, ids: list[int]) -> torch.Tensor:
    """log p of each token after the first, from a single row, [T - 1]."""
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, :-1].double(), dim=-1)
    return log_probs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_sft_loss_is_a_mean_over_trained_tokens(tiny_model, tokenizer, rows, tmp_path, monkeypatch):
    trainer = trainer_of("sft", tiny_model, rows, tmp_path / "sft", monkeypatch)
    metrics = assert_same_for_all_batch_sizes(trainer)
    total, tokens, right = 0.0, 0, 0
    for row in held_out(rows, "conversations"):
        dialog = encode_dialog(tokenizer, messages(row["messages"]))
        trained = torch.tensor(dialog.trained[1:])
        total -= float(token_log_probs(trainer.model, dialog.ids)[trained].sum())
        with torch.no_grad():
            best = trainer.model(input_ids=torch.tensor([dialog.ids])).logits[0, :-1].argmax(-1)
        right += int((best == torch.tensor(dialog.ids[1:]))[trained].sum())
        tokens += int(trained.sum())
    assert metrics["eval_loss"] == pytest.approx(total / tokens, abs=1e-6)
    assert metrics["eval_mean_token_accuracy"] == pytest.approx(right / tokens, abs=1e-6)


def test_reward_accuracy_and_margin_are_means_over_pairs(tiny_model, tokenizer, rows, tmp_path, monkeypatch):
    trainer = trainer_of("reward_model", tiny_model, rows, tmp_path / "rm", monkeypatch)
    metrics = assert_same_for_all_batch_sizes(trainer)
    margins = []
    for row in held_out(rows, "pairs"):
        scores = []
        for answer in (row["chosen"], row["rejected"]):
            prompt_ids, answer_ids = encode_answer(tokenizer, messages(row["prompt"]), messages(answer))
            with torch.no_grad():
                hidden = trainer.model.model(input_ids=torch.tensor([prompt_ids + answer_ids])).last_hidden_state
                scores.append(float(trainer.model.score(hidden[0, -1])))
        margins.append(scores[0] - scores[1])
    assert 0 < sum(margin > 0 for margin in margins) < 9, "a case where all pairs agree shows nothing"
    assert metrics["eval_accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / 9)
    assert metrics["eval_margin"] == pytest.approx(sum(margins) / 9, abs=1e-6)
    assert metrics["eval_loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 9, abs=1e-6)
    assert metrics["eval_f1"] == pytest.approx(precision_recall(margins, seed=0)["f1"])


def test_dpo_loss_and_accuracy_are_means_over_pairs(tiny_model, tokenizer, rows, tmp_path, monkeypatch):
    trainer = trainer_of("dpo", tiny_model, rows, tmp_path / "dpo", monkeypatch)
    metrics = assert_same_for_all_batch_sizes(trainer)
    reference = load_causal(str(tiny_model))
    losses, margins, nlls = [], [], []
    for row in held_out(rows, "pairs"):
        ratios = []
        for answer in (row["chosen"], row["rejected"]):
            prompt_ids, answer_ids = encode_answer(tokenizer, messages(row["prompt"]), messages(answer))
            of_policy = token_log_probs(trainer.model, prompt_ids + answer_ids)[-len(answer_ids) :]
            of_reference = token_log_probs(reference, prompt_ids + answer_ids)[-len(answer_ids) :]
            assert answer_ids[-1] == tokenizer.eos_token_id  # all of an answer's formatting under this template
            ratios.append(float((of_policy - of_reference)[:-1].sum()))
            if answer is row["chosen"]:
                nlls.append(-float(of_policy.mean()))
        margins.append(0.1 * (ratios[0] - ratios[1]))
        losses.append(math.log1p(math.exp(-margins[-1])) + 0.2 * nlls[-1])
    assert 0 < sum(margin > 0 for margin in margins) < 9, "a case where all pairs agree shows nothing"
    assert metrics["eval_rewards/accuracies"] == pytest.approx(sum(margin > 0 for margin in margins) / 9)
    assert metrics["eval_rewards/margins"] == pytest.approx(sum(margins) / 9, abs=1e-5)
    assert metrics["eval_nll"] == pytest.approx(sum(nlls) / 9, abs=1e-6)
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / 9, abs=1e-6)
