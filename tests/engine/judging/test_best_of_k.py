"""Best-of-K of a loop's own reward model, from scores and from an evaluation's folder."""

import numpy as np
import pytest

from data_schemas.errors import DataError
from engine.judging.best_of_k import best_of_k, read_best_of_k
from tests.pipeline.report.page.run_folders import write_run


def test_the_reward_models_choice_lies_between_chance_and_the_judges():
    judge_PK = np.array([[0.0, 1.0], [4.0, 2.0], [1.0, 1.0]])
    reward_PK = np.array([[5.0, 6.0], [1.0, 2.0], [3.0, 3.0]])  # right, wrong, and equal answers
    best = best_of_k(judge_PK, reward_PK, policy="sft", seed=0)
    assert (best.mean, best.by_judge, best.by_reward_model) == (1.5, pytest.approx(2.0), pytest.approx(4 / 3))
    assert best.gain[0] == pytest.approx(-1 / 6) and best.gain[1] <= best.gain[0] <= best.gain[2]
    assert best.sentence().startswith("best of 2 answers of sft to 3 prompts, by the judge's mean: 1.333 where this")


def test_an_evaluation_has_both_scores(tmp_path):
    # Each further answer is a quarter better, and the reward model likes it less: it always chooses the worst.
    folder = write_run(tmp_path, answers=3) / "round-1.evaluate_policy-0123abcd"
    best = read_best_of_k(folder)
    assert (best.policy, best.num_prompts, best.num_answers) == ("round-1.dpo", 3, 3)
    assert best.gain == pytest.approx((-0.25, -0.25, -0.25))
    (folder / "proxy_scores.json").write_text("[1.0]")
    with pytest.raises(DataError, match="is not an evaluation as its step wrote it"):
        read_best_of_k(folder)
