"""annotate: from scored answers to pairs and rankings."""

import random
from typing import Any

import pytest

from data_schemas.files import read_json
from data_schemas.reading import read_pairs
from engine.judging.annotators import Group, Judgement
from engine.judging.scoring import ScoringItem
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


def answered(text: str, *, ended: bool = True) -> ScoringItem:
    return ScoringItem(PROMPTS[0], text, ended)


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
    made = annotate.compare_answers(Group(PROMPTS[0], answers), Judgement(scores), ["old", "new"], margins=MARGINS)
    if not isinstance(made, str):
        assert (made.chosen_score, made.rejected_score) == (max(scores), min(scores))
        assert made.group_id == PROMPTS[0].group_id
        made = (made.chosen[0].content, made.rejected[0].content, made.strength, made.chosen_from, made.rejected_from)
    assert made == result


def made_of(texts: str, scores: list[float], **keys: Any) -> tuple[str, ...] | str:
    """What answers of one letter make, best first; an upper-case one was cut off."""
    answers = [answered(letter, ended=letter.islower()) for letter in texts]
    made = annotate.compare_answers(Group(PROMPTS[0], answers), Judgement(scores), list(texts), margins=MARGINS, **keys)
    return made if isinstance(made, str) else tuple(answer[0].content for answer in made.ranking)


@pytest.mark.parametrize(
    ("texts", "scores", "keys", "made"),
    [
        ("abcd", [0.1, 0.9, 0.5, 0.3], {}, ("b", "a")),
        ("abcd", [0.1, 0.9, 0.5, 0.3], {"keep_rankings": True}, ("b", "c", "d", "a")),
        ("abcd", [0.5, 0.9, 0.5, 0.3], {"keep_rankings": True}, ("b", "a", "d")),  # c ties with a
        ("aba", [0.1, 0.9, 0.1], {"keep_rankings": True}, ("b", "a")),
        ("aBc", [0.1, 0.9, 0.5], {}, ("c", "a")),  # the best was cut off
        ("aBc", [0.1, 0.9, 0.5], {"keep_unfinished": True}, ("B", "a")),
        ("ABC", [0.1, 0.9, 0.5], {}, "unfinished_chosen"),
        ("abc", [0.5, 0.5, 0.5], {}, "equal_score"),
        ("aaa", [0.1, 0.2, 0.3], {}, "identical"),
        (" b ", [0.1, 0.2, 0.3], {}, "empty"),
        (" bc", [0.9, 0.2, 0.3], {}, ("c", "b")),
    ],
)
def test_several_answers_give_a_pair_or_a_ranking(texts, scores, keys, made):
    assert made_of(texts, scores, **keys) == made


def test_a_random_lower_answer_is_the_rejected_one_if_configured():
    scores = [0.1, 0.9, 0.5, 0.3]
    rejected = {made_of("abcd", scores, draw=random.Random(seed))[1] for seed in range(30)}
    assert rejected == {"a", "c", "d"}
    assert made_of("abcd", scores, draw=random.Random(3)) == made_of("abcd", scores, draw=random.Random(3))


def test_an_annotator_may_give_the_strength_and_voters_their_disagreement():
    group = Group(PROMPTS[0], [answered("a"), answered("b")])
    judgement = Judgement([0.0, 9.0], strength="slightly_better", votes_VN=[[1.0, 2.0], [3.0, 0.0], [0.0, 0.5]])
    pair = annotate.compare_answers(group, judgement, ["x", "y"], margins=MARGINS)
    assert not isinstance(pair, str)
    assert (pair.strength, pair.disagreement) == ("slightly_better", pytest.approx(1 / 3))


def test_a_failed_annotation_is_resumed_with_another_function(tiny_model, rows, tmp_path, monkeypatch):
    """Answers are found again in the folder of the failed step, which the mended function has made another step."""
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
    monkeypatch.setattr("engine.sampling.transformers_engine.write_answers", None)  # to call it would be an error
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
    assert record.outputs == {"pairs.train": "pairs.train.jsonl"}  # no validation prompts: no such output
