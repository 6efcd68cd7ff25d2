"""Which pairs are trained on, and where the others are kept."""

import json
from typing import Any

import pytest

from data_schemas.errors import ConfigError, DataError
from data_schemas.rows import Dropped, Message, PreferencePair
from data_schemas.stage_keys import check_keys
from engine.curation.pair_selection import all_pairs, select_pairs, similarity, without_similar
from engine.runtime.arguments import PreferenceArguments
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker

QUESTION = [Message(role="user", content="Capital of France?")]


def ranking(*texts: str, **fields: Any) -> PreferencePair:
    answers = [[Message(role="assistant", content=text)] for text in texts]
    between = {"between": answers[1:-1]} if len(answers) > 2 else {}
    return PreferencePair(prompt=QUESTION, chosen=answers[0], rejected=answers[-1], **between | fields)


def texts(pair: PreferencePair | Dropped) -> list[str]:
    return [] if isinstance(pair, Dropped) else [answer[0].content for answer in pair.ranking]


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage("dpo", tmp_path, {}, Tracker(tmp_path, active=False), is_main=True)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("Paris", "paris ", 1.0), ("abcd", "abce", 0.75), ("abcd", "ab", 0.5), ("ab", "cd", 0.0)],
)
def test_similarity_is_one_less_the_share_of_characters_to_edit(one, other, expected):
    assert similarity(one, other) == expected == similarity(other, one)


@pytest.mark.parametrize(
    ("answers", "limit", "kept"),
    [
        (["abcd", "abce"], None, ["abcd", "abce"]),
        (["abcd", "abce"], 0.75, ["abcd", "abce"]),
        (["abcd", "abce"], 0.74, []),
        (["abcd", "abce", "wxyz"], 0.5, ["abcd", "wxyz"]),  # the better of two similar answers stays
        (["abcd", "wxyz", "abce"], 0.5, ["abcd", "wxyz"]),
        (["abcd", "abce", "abcf"], 0.5, []),
    ],
)
def test_answers_too_alike_to_a_better_one_are_left_out(answers, limit, kept):
    assert texts(without_similar(ranking(*answers), limit)) == kept


def test_scores_and_sources_stay_with_their_answers():
    pair = ranking("abcd", "wxyz", "abce", chosen_score=3.0, rejected_score=1.0, rejected_from="p", strength="better")
    left = without_similar(pair, 0.5)
    assert isinstance(left, PreferencePair)
    assert (left.chosen_score, left.rejected_score, left.rejected_from, left.strength) == (3.0, None, "", "better")


def test_only_the_chosen_levels_train_and_the_rest_is_kept_in_a_file_with_its_reason(stage):
    pairs = [ranking("a", "b", strength=level) for level in ("significantly_better", "better", "slightly_better")]
    pairs += [ranking("a", "b"), ranking("aaaaaaaaaa", "aaaaaaaaab")]
    arguments = PreferenceArguments(train_data=[], max_similarity=0.8)
    kept, dropped = select_pairs(stage, arguments, pairs)
    assert [pair.strength for pair in kept] == ["significantly_better", "better", None]
    assert dropped == {"dropped_strength": 1, "dropped_too_similar": 1}
    lines = [json.loads(line) for line in (stage.folder / "dropped_rows.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["strength", "too_similar"]
    assert [PreferencePair.model_validate(line["row"]) for line in lines] == [pairs[2], pairs[4]]
    assert len(select_pairs(stage, PreferenceArguments(train_data=[], strengths=None), pairs)[0]) == 5


def test_a_round_whose_pairs_are_all_dropped_is_one_line(stage):
    pairs = [ranking("a", "b", strength="marginally_better")] * 3
    with pytest.raises(DataError, match=r"dpo: all 3 training pairs are dropped \(strength 3\); see strengths and"):
        select_pairs(stage, PreferenceArguments(train_data=[]), pairs)


@pytest.mark.parametrize("stage_name", ["dpo", "reward_model"])
def test_a_strength_nobody_defined_is_refused_before_anything_runs(stage_name):
    with pytest.raises(ConfigError, match=r"strengths='much_better' is not one of .*marginally_better"):
        check_keys(stage_name, {"strengths": ["better", "much_better"]}, where="recipe")


def test_all_pairs_of_a_ranking():
    made = [texts(pair) for pair in all_pairs(ranking("a", "b", "c", "d", strength="better"))]
    assert made == [["a", "b"], ["a", "c"], ["a", "d"], ["b", "c"], ["b", "d"], ["c", "d"]]
    assert [texts(pair) for pair in all_pairs(ranking("a", "b"))] == [["a", "b"]]
