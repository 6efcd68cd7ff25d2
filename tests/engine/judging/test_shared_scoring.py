"""Scores of answers that share their prompt are the same as those of padded rows."""

import random

import pytest
import torch

from engine.judging.shared_scoring import SharedScorer, group_by_prompt, in_groups
from engine.models.loading import load_causal, load_reward

LOG_PROB_ROWS = [([5, 6, 7], [8, 9]), ([10], [11, 12, 13, 14]), ([5, 6, 7], [26, 8]), ([20, 21, 22, 23, 24], [26])]


@pytest.mark.parametrize("shares", [True, False])
def test_log_prob_sums_are_the_answer_tokens_log_probs(shares, tiny_model, stage):
    model = load_causal(str(tiny_model), dtype="float32").eval()
    wanted = []
    for prompt, answer in LOG_PROB_ROWS:
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=torch.tensor([prompt + answer])).logits[0].double(), -1)
        positions = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        wanted.append(sum(float(log_probs[at, token]) for at, token in zip(positions, answer, strict=True)))
    scorer = SharedScorer(model, is_reward_model=False)
    if shares:
        assert scorer.shares_rows
    else:
        scorer.shares_rows = False
    found = in_groups(stage, "sums", LOG_PROB_ROWS, scorer.log_prob_sums, batch_size=2, content=())
    assert found == pytest.approx(wanted, abs=1e-4)


def test_batches_hold_whole_prompts_and_about_as_many_tokens():
    rows = [([1], [2] * 4), ([3] * 9, [4]), ([1], [5] * 3), ([6] * 5, [7]), ([1], [8]), ([6] * 5, [9] * 2)]
    # Prompt 1 has 1 + 4 + 3 + 1 = 9 tokens, prompt 3 has 10, prompt 6 has 8: 27 of 6 answers, so 4 answers have 18.
    assert group_by_prompt(rows, batch_size=4) == [[[3, 5], [0, 2, 4]], [[1]]]
    assert group_by_prompt(rows, batch_size=99) == [[[3, 5], [0, 2, 4], [1]]]
    assert group_by_prompt(rows, batch_size=1) == [[[3, 5]], [[0, 2, 4]], [[1]]]
    assert group_by_prompt([], batch_size=4) == []


def test_many_answers_to_one_prompt_are_several_groups(monkeypatch):
    monkeypatch.setattr("engine.judging.shared_scoring.GROUP_TOKENS", 10)
    # 3 + 4 + 3 tokens are 10; the third answer would be beyond.
    assert group_by_prompt([([1] * 3, [2] * 4), ([1] * 3, [3] * 3), ([1] * 3, [4])], batch_size=9) == [[[2], [0, 1]]]


@pytest.mark.parametrize("batch_size", [1, 3, 99])
def test_rewards_of_answers_that_share_their_prompt_are_those_of_padded_rows(batch_size, tiny_reward_model, stage):
    model = load_reward(str(tiny_reward_model), dtype="float32").eval()
    draw = random.Random(3)
    prompts = [[draw.randrange(3, 250) for _ in range(length)] for length in (30, 4, 11)]
    rows = [
        (prompt, [draw.randrange(3, 250) for _ in range(draw.randrange(1, 20))]) for _ in range(5) for prompt in prompts
    ]
    rows.append(rows[0])  # the same answer twice
    scorer, padded = (SharedScorer(model, is_reward_model=True) for _ in range(2))
    assert scorer.shares_rows
    padded.shares_rows = False
    found = in_groups(stage, "shared", rows, scorer.rewards, batch_size=batch_size, content=["shared"])
    wanted = in_groups(stage, "padded", rows, padded.rewards, batch_size=batch_size, content=["padded"])
    assert found == pytest.approx(wanted, abs=1e-5)
    assert found[0] == pytest.approx(found[-1], abs=1e-5) and len({round(score, 4) for score in found}) == 15
