"""annotate: from scored answers to pairs and rankings."""

import dataclasses
import random
from typing import Any

import pytest

from data_schemas.files import read_json
from data_schemas.reading import read_pairs
from data_schemas.rows import Dropped
from engine.judging.annotators import Judgement
from engine.sampling.answers import Answer
from stages import annotate
from stages.annotate import strength_of
from tests.stage_runs import call_stage, run_here
from tests.toy_prompts import PROMPTS


@pytest.mark.parametrize(
    ("difference", "strength"),
    [
        (3.0, "significantly_better"),
        (1.0, "significantly_better"),
        (0.99, "better"),
        (0.5, "better"),
        (0.3, "slightly_better"),
        (0.1, "marginally_better"),
    ],
)
def test_strength_by_score_difference(difference, strength):
    assert strength_of(difference, [1.0, 0.5, 0.25]) == strength


def answered(text: str, *, ended: bool = True, policy: str = "") -> Answer:
    return Answer(PROMPTS[0], 0, text, [], ended, policy)


MARGINS = [1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("answers", "scores", "result"),
    [
        ([answered("a"), answered("b")], [0.1, 0.7], ("b", "a", "better", "new", "old")),
        ([answered("a"), answered("b")], [2.0, 0.7], ("a", "b", "significantly_better", "old", "new")),
        ([answered("a"), answered(" a\n")], [0.1, 0.7], "identical"),
        ([answered("a"), answered("b")], [0.7, 0.7], "equal_score"),
        ([answered(" "), answered("b")], [0.1, 0.7], "empty"),
        ([answered("a"), answered("b", ended=False)], [0.1, 0.7], "unfinished_chosen"),
        ([answered("a", ended=False), answered("b")], [0.1, 0.7], ("b", "a", "better", "new", "old")),
    ],
)
def test_two_answers_give_a_pair_or_the_reason_why_not(answers, scores, result):
    named = [dataclasses.replace(answer, policy=name) for answer, name in zip(answers, ("old", "new"), strict=True)]
    pair = annotate.compare_answers(named, Judgement(scores), margins=MARGINS)
    if isinstance(pair, Dropped):
        assert pair.reason == result
        return
    assert (pair.chosen_score, pair.rejected_score) == (max(scores), min(scores))
    assert pair.group_id == PROMPTS[0].group_id
    contents = (pair.chosen[0].content, pair.rejected[0].content)
    assert (*contents, pair.strength, pair.chosen_from, pair.rejected_from) == result


def ranking_of(texts: str, scores: list[float], **keys: Any) -> tuple[str, ...] | str:
    """The ranking of answers of one letter, best first, or why they are dropped; an upper-case one was cut off."""
    answers = [answered(letter, ended=letter.islower()) for letter in texts]
    pair = annotate.compare_answers(answers, Judgement(scores), margins=MARGINS, **keys)
    return pair.reason if isinstance(pair, Dropped) else tuple(answer[0].content for answer in pair.ranking)


@pytest.mark.parametrize(
    ("texts", "scores", "keys", "expected"),
    [
        ("abcd", [0.1, 0.9, 0.5, 0.3], {}, ("b", "a")),
        ("abcd", [0.1, 0.9, 0.5, 0.3], {"keep_rankings": True}, ("b", "c", "d", "a")),
        ("abcd", [0.5, 0.9, 0.5, 0.3], {"keep_rankings": True}, ("b", "a", "d")),  # c ties with a
        ("aba", [0.1, 0.9, 0.1], {"keep_rankings": True}, ("b", "a")),
        ("aBc", [0.1, 0.9, 0.5], {}, ("c", "a")),  # the best was truncated
        ("aBc", [0.1, 0.9, 0.5], {"keep_unfinished": True}, ("B", "a")),
        ("ABC", [0.1, 0.9, 0.5], {}, "unfinished_chosen"),
        ("abc", [0.5, 0.5, 0.5], {}, "equal_score"),
        ("aaa", [0.1, 0.2, 0.3], {}, "identical"),
        (" b ", [0.1, 0.2, 0.3], {}, "empty"),
        (" bc", [0.9, 0.2, 0.3], {}, ("c", "b")),
    ],
)
def test_several_answers_give_a_pair_or_a_ranking(texts, scores, keys, expected):
    assert ranking_of(texts, scores, **keys) == expected


def test_a_random_lower_answer_is_the_rejected_one_if_configured():
    scores = [0.1, 0.9, 0.5, 0.3]
    rejected = {ranking_of("abcd", scores, draw=random.Random(seed))[1] for seed in range(30)}
    assert rejected == {"a", "c", "d"}
    assert ranking_of("abcd", scores, draw=random.Random(3)) == ranking_of("abcd", scores, draw=random.Random(3))


def test_an_annotator_may_give_strengths_and_voters_their_disagreement():
    judgement = Judgement(
        [0.0, 9.0], strengths={(1, 0): "slightly_better"}, votes_VN=[[1.0, 2.0], [3.0, 0.0], [0.0, 0.5]]
    )
    pair = annotate.compare_answers([answered("a"), answered("b")], judgement, margins=MARGINS)
    assert not isinstance(pair, Dropped)
    assert (pair.strength, pair.disagreement) == ("slightly_better", pytest.approx(1 / 3))


def test_a_failed_annotation_is_resumed_with_another_function(tiny_model, rows, tmp_path, monkeypatch):
    """The answers in the failed step's folder are reused, although the corrected function makes another step."""
    judge = tmp_path / "judge.py"
    judge.write_text("def score(prompt, answer, ended):\n    return 1 / 0\n")
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    keys = {
        "prompts": [rows / "prompts.jsonl"],
        "policies": [tiny_model],
        "annotator_function": "judge:score",
        "max_new_tokens": 8,
        "keep_unfinished": True,
    }
    assert call_stage("annotate", tmp_path / "one", **keys) == 2
    assert "raised ZeroDivisionError: division by zero" in read_json(tmp_path / "one" / "outcome.json")["cause"]
    judge.write_text("def score(prompt, answer, ended):\n    return float(len(answer))\n")
    monkeypatch.setattr("engine.sampling.transformers_engine.generate_answers", None)  # calling it would be an error
    run_here("annotate", tmp_path / "two", **keys)
    assert call_stage("annotate", tmp_path / "three", **keys | {"seed": 8}) == 1  # other answers are new ones


def test_annotate_writes_pairs_from_two_policies(tiny_model, tied_model, rows, tmp_path, monkeypatch):
    (tmp_path / "judge.py").write_text("def score(prompt, answer, ended):\n    return float(len(answer))\n")
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    record = run_here(
        "annotate",
        tmp_path / "annotate",
        prompts=[rows / "prompts.jsonl"],
        policies=[tiny_model, tied_model],
        policy_names=["round-1.dpo", "round-0.sft"],
        annotator_function="judge:score",
        max_new_tokens=8,
        keep_unfinished=True,
    )
    pairs = read_pairs([tmp_path / "annotate" / "pairs.train.jsonl"]).rows
    dropped = sum(value for key, value in record.metrics.items() if key.startswith("dropped_"))
    assert len(pairs) == record.metrics["pairs"] > 0 and len(pairs) + dropped == 10
    for pair in pairs:
        assert {pair.chosen_from, pair.rejected_from} == {"round-1.dpo", "round-0.sft"}
        assert pair.chosen_score == len(pair.chosen[0].content) > len(pair.rejected[0].content)
    assert record.outputs == {"pairs.train": "pairs.train.jsonl"}  # without validation prompts there is no such output
