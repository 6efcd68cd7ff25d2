"""DPO's two terms, alone and in the trainer."""

import math

import pytest
import torch
from conftest import metrics_of, run_here

from engine.preferences import nll_per_answer


def test_nll_is_normalised_by_each_answers_length():
    # Two pairs: the chosen answers have 2 and 1 tokens, the rejected ones do not count.
    log_probs = torch.tensor([[-9.0, -1.0, -3.0], [-9.0, -9.0, -5.0], [-7.0, -7.0, -7.0], [-7.0, -7.0, -7.0]])
    mask = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 1, 1], [1, 1, 1]])
    # (1 + 3) / 2 = 2 for the first, 5 for the second: 3.5. By tokens it would be 9 / 3 = 3.
    assert float(nll_per_answer(log_probs, mask)) == 3.5


@pytest.mark.parametrize("options", [{}, {"precompute_ref_log_probs": True}], ids=str)
def test_at_the_start_the_loss_is_log_2_plus_the_weighted_nll(tiny_model, rows, tmp_path, options):
    """Policy and reference are the same: every margin is 0, however the reference is had."""
    run_here(
        "dpo", tmp_path / "dpo", model_name_or_path=tiny_model, train_data=[rows / "pairs.jsonl"],
        eval_data=[rows / "pairs_eval.jsonl"], max_steps=1, loss_weights=[1.0, 0.5], **options,
    )  # fmt: skip
    start = {key: value for (step, key), value in metrics_of(tmp_path / "dpo").items() if step == 0}
    assert start["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert start["eval_loss"] == pytest.approx(math.log(2) + 0.5 * start["eval_nll"], abs=1e-6)


def test_without_the_sft_term_the_loss_is_trls_alone(tiny_model, rows, tmp_path):
    run_here(
        "dpo", tmp_path / "dpo", model_name_or_path=tiny_model, train_data=[rows / "pairs.jsonl"],
        eval_data=[rows / "pairs_eval.jsonl"], max_steps=1, loss_type=["sigmoid"], loss_weights=[1.0],
    )  # fmt: skip
    values = metrics_of(tmp_path / "dpo")
    assert values[0, "eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (0, "eval_nll") not in values
