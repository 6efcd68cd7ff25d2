"""rejection_sampling: which answers win, and why others are dropped."""

from typing import Any

import numpy as np
import pytest

from data_schemas.reading import read_prompts, read_rows
from data_schemas.rows import Candidates, Conversation, Dropped, Message, Prompt
from stages import rejection_sampling
from stages.rejection_sampling import keep_scores_above, pick_winners, request_for, rows_of
from tests.stage_runs import run_here
from tests.toy_prompts import PROMPTS, candidates


def sampling(**keys: Any) -> rejection_sampling.RejectionSamplingArguments:
    return rejection_sampling.RejectionSamplingArguments(
        **{"prompts": ["prompts.jsonl"], "policies": ["policy"], "reward_model": "reward"} | keys
    )


@pytest.mark.parametrize(
    ("items", "kept"),
    [
        ([("a", 0.1, True), ("b", 0.9, True), ("c", 0.5, True)], 1),
        ([("a", 0.1, True), ("b", 0.9, False), ("c", 0.5, True)], 2),  # the best one was truncated
        ([("", 0.9, True), ("b", 0.1, True), ("c", 0.0, True)], 1),
        ([("a", 0.5, True), ("a ", 0.5, True), ("b", 0.5, True)], "tie"),
        ([("a", 0.9, True), ("b", 0.9, True), ("c", 0.1, True)], 0),  # the first of two equal best ones
        ([("a", 0.5, True), (" a", 0.5, True), ("", 0.9, True)], "identical"),
        ([("", 0.5, True), (" \n", 0.5, True)], "empty"),
        ([("a", 0.5, False), ("b", 0.7, False)], "unfinished"),
        ([("a", -2.0, True), ("b", -1.0, True)], 1),
    ],
)
def test_the_best_candidate_is_kept_or_the_reason_why_none_is(items, kept):
    assert pick_winners(candidates(*items), sampling()) == ([kept] if isinstance(kept, int) else Dropped(kept))


def test_unfinished_answers_may_win_if_configured():
    assert pick_winners(candidates(("a", 0.1, True), ("b", 0.9, False)), sampling(keep_unfinished=True)) == [1]


def test_the_best_are_kept_by_rank_and_within_the_length_limits():
    items = [("a", 0.1, True), ("b", 0.9, True), ("b ", 0.9, True), ("c", 0.5, True)]
    assert pick_winners(candidates(*items), sampling(num_winners=2)) == [1, 3]
    assert pick_winners(candidates(*items), sampling(num_winners=9)) == [1, 3, 0]
    assert pick_winners(candidates(*items), sampling(min_answer_tokens=4)) == Dropped("length")  # all have 3 tokens
    assert pick_winners(candidates(*items), sampling(max_answer_tokens=2)) == Dropped("length")
    assert pick_winners(candidates(*items), sampling(min_answer_tokens=3, max_answer_tokens=3)) == [1]


def test_winners_below_the_minimum_score_are_dropped_with_the_reason():
    groups = [
        Candidates(
            prompt=PROMPTS[0].prompt,
            prompt_id="p",
            group_id="g",
            kept=[0, 1],
            candidates=candidates(("a", best, True), ("b", best - 1, True)),
        )
        for best in (1.0, 3.0)
    ]
    reason = Dropped("below_min_score")
    low, high = keep_scores_above(groups, 2.0, reason)
    assert (low.kept, low.dropped) == ([], "below_min_score")
    assert (high.kept, high.dropped) == ([0, 1], None)
    assert [group.kept for group in keep_scores_above(groups, 2.5, reason)] == [[], [0]]


def test_each_prompt_draws_its_temperature_and_system_prompt_by_the_seed():
    arguments = sampling(temperature_range=[0.4, 0.9], system_prompts=["Be brief.", "Be kind."], seed=5)
    drawn = [request_for(prompt, arguments) for prompt in PROMPTS]
    assert drawn == [request_for(prompt, arguments) for prompt in PROMPTS]
    temperatures = [temperature for _, temperature in drawn]
    assert all(0.4 <= t <= 0.9 for t in temperatures) and len(set(temperatures)) == len(PROMPTS)
    assert {prompt.prompt[0].content for prompt, _ in drawn} == {"Be brief.", "Be kind."}
    for (shown, _), prompt in zip(drawn, PROMPTS, strict=True):
        assert (shown.prompt[1:], shown.group_id) == (prompt.prompt, prompt.group_id)
        assert shown.prompt_id != prompt.prompt_id
    own = Prompt(prompt=[Message(role="system", content="Mine."), *PROMPTS[0].prompt])
    assert request_for(own, arguments)[0] == own
    assert request_for(PROMPTS[0], sampling()) == (PROMPTS[0], None)


def test_a_winners_row_has_its_original_prompt_and_the_spread_as_difficulty():
    system = [Message(role="system", content="Be kind."), *PROMPTS[0].prompt]
    group = Candidates(
        prompt=system,
        prompt_id="p",
        group_id="g",
        kept=[1],
        spread=0.5,
        candidates=candidates(("a", 0.0, True), ("b", 1.0, True)),
    )
    (row,) = rows_of(group, PROMPTS[0], source="s", keep_system_prompt=False)
    assert (row.messages[:-1], row.messages[-1].content, row.difficulty) == (PROMPTS[0].prompt, "b", 0.5)
    (row,) = rows_of(group, PROMPTS[0], source="s", keep_system_prompt=True)
    assert row.messages[:-1] == system


REJECTION_SAMPLING = {"num_answers": 3, "max_new_tokens": 10, "keep_unfinished": True, "generation_batch_size": 4}


def test_two_processes_sample_the_same_rows_as_one(
    tiny_model, tied_model, tiny_reward_model, rows, run_stage, tmp_path
):
    # Two policies in turn, each prompt with its own temperature and its own system prompt.
    keys = {
        "policies": [tiny_model, tied_model],
        "reward_model": tiny_reward_model,
        "prompts": [rows / "prompts.jsonl"],
        "temperature_range": [0.5, 1.5],
        "system_prompts": ["Be brief.", "Be kind."],
        **REJECTION_SAMPLING,
    }
    one = run_here("rejection_sampling", tmp_path / "one", **keys)
    two = run_stage("rejection_sampling", tmp_path / "two", profile="ddp", processes=2, **keys)
    for name in ("candidates.jsonl", "winners.train.jsonl", "winners.validation.jsonl"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text(), name
    assert two.metrics == one.metrics
    groups = read_rows(tmp_path / "one" / "candidates.jsonl", Candidates)
    prompts = read_prompts([rows / "prompts.jsonl"]).rows
    assert sorted(group.prompt[-1].content for group in groups) == sorted(row.prompt[-1].content for row in prompts)
    own = {row.prompt[0].content for row in prompts if row.prompt[0].role == "system"}
    assert {group.prompt[0].content for group in groups} == {"Be brief.", "Be kind."} | own
    assert all([candidate.k for candidate in group.candidates] == [0, 1, 2] for group in groups)
    sources = [str(tiny_model), str(tied_model), str(tiny_model)]
    assert all([candidate.policy for candidate in group.candidates] == sources for group in groups)
    winners = read_rows(tmp_path / "one" / "winners.train.jsonl", Conversation)
    kept = [(group, group.candidates[group.kept[0]]) for group in groups if group.kept]
    assert [row.messages[-1].content for row in winners] == [winner.text for _, winner in kept]
    assert all(winner.score == max(c.score for c in group.candidates) for group, winner in kept)
    assert [row.difficulty for row in winners] == [
        pytest.approx(np.std([candidate.score for candidate in group.candidates])) for group, _ in kept
    ]
    assert {row.messages[0].content for row in winners if row.messages[0].role == "system"} <= own
