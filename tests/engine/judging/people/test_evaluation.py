"""People in an evaluation: what they are asked, and what their labels do to the judge's win rate."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_schemas.errors import WaitingForPeople
from data_schemas.people import FOLDER, Batch, Label
from engine.judging.people.asking import PeopleRow
from engine.judging.people.evaluation import Correction, correct, points_of
from engine.sampling.answers import Answer
from tests.data_schemas.test_people import lines_of
from tests.toy_prompts import question

NUM_PROMPTS, NUM_ANSWERS = 300, 2
PROMPTS = [
    question(f"Question {number}?").model_copy(update={"tag": "chat" if number % 2 else "math"})
    for number in range(NUM_PROMPTS)
]


def answers_of(policy: str, texts: str = "{policy} says {number}.{k}") -> list[list[Answer]]:
    return [
        [Answer(prompt, k, texts.format(policy=policy, number=number, k=k), [], ended=True) for k in range(NUM_ANSWERS)]
        for number, prompt in enumerate(PROMPTS)
    ]


NEW, BEST = answers_of("new"), answers_of("best")
BIASED_PK = np.ones((NUM_PROMPTS, NUM_ANSWERS))  # the judge always prefers the new policy
TRUTH_P = np.random.default_rng(5).random(NUM_PROMPTS) < 0.4


def call(folder, *, points_PK=BIASED_PK, others=BEST, budget: int = 200) -> Correction:
    stage: Any = SimpleNamespace(folder=folder, values={"run_group": "demo", "step": "e"}, is_main=True)
    arguments: Any = SimpleNamespace(people=["ana"], people_budget=budget, people_overlap=0.2, seed=3)
    return correct(stage, arguments, NEW, others, points_PK)


def label_by_truth(folder) -> int:
    """Ana prefers the new policy where the truth does. Returns how many rows she had."""
    batch = Batch.read(folder / FOLDER)
    assert batch is not None
    wins = {
        PeopleRow(own.prompt, own.text, other.text).id: TRUTH_P[place]
        for place in range(NUM_PROMPTS)
        for own, other in zip(NEW[place], BEST[place], strict=True)
    }
    labels = [
        {"row": one.row, "first": one.first, "strength": "better", "seconds": 1.0}
        | {"verdict": "one" if wins[one.row] else "other"}
        for one in batch.people["ana"]
    ]
    (folder / FOLDER / "ana.jsonl").write_text("".join(lines_of(labels, run="demo", step="e", batch=batch.batch)))
    return len(labels)


def test_the_labels_of_people_correct_a_judge_that_always_prefers_the_new_policy(tmp_path):
    with pytest.raises(WaitingForPeople, match="ana 0 of 200 done"):
        call(tmp_path)
    assert label_by_truth(tmp_path) == 200
    found = call(tmp_path)
    assert [found.metrics[f"judged_win_rate{end}"] for end in ("", "_low", "_high")] == [1.0, 1.0, 1.0]
    low, mean, high = (found.metrics[f"corrected_win_rate{end}"] for end in ("_low", "", "_high"))
    assert isinstance(low, float) and isinstance(mean, float) and isinstance(high, float)
    assert low < TRUTH_P.mean() < high and 0.3 < mean < 0.5 and high - low < 0.15
    assert len(found.labels) == found.metrics["people_rows"] == 200
    agreement = found.metrics["people_agree_with_model"]
    assert isinstance(agreement, float) and 0.3 < agreement < 0.5  # the judge is right only where the new policy wins


def test_a_judge_that_is_right_makes_the_interval_narrower(tmp_path):
    right_PK = np.repeat(TRUTH_P[:, None], NUM_ANSWERS, axis=1).astype(float)
    for folder in (tmp_path / "biased", tmp_path / "right"):
        folder.mkdir()
        with pytest.raises(WaitingForPeople):
            call(folder)
        label_by_truth(folder)
    of_biased = call(tmp_path / "biased").metrics
    of_right = call(tmp_path / "right", points_PK=right_PK).metrics
    assert of_right["people_agree_with_model"] == 1
    widths = [
        float(one["corrected_win_rate_high"]) - float(one["corrected_win_rate_low"]) for one in (of_biased, of_right)
    ]  # type: ignore
    assert widths[1] < 0.9 * widths[0]
    assert of_right["corrected_win_rate"] == pytest.approx(TRUTH_P.mean())


def test_equal_answers_are_ties_that_nobody_is_asked_about(tmp_path):
    found = call(tmp_path, others=NEW)
    assert found.metrics["corrected_win_rate"] == 0.5 and found.labels == {}
    assert found.metrics["people_rows"] == 0


def test_the_points_of_several_people_are_their_mean_and_a_skipped_row_has_none():
    def label(verdict: str) -> Label:
        strength = None if verdict in ("tie", "skipped") else "better"
        return Label.model_validate(
            {"row": "r", "first": "one", "verdict": verdict, "strength": strength, "seconds": 1}
        )

    assert points_of({"ana": label("one"), "ben": label("tie")}) == 0.75
    assert points_of({"ana": label("other"), "ben": label("skipped")}) == 0.0
    assert points_of({"ana": label("skipped")}) is None
