"""Which prompts each round draws."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_schemas.reading import write_rows
from data_schemas.rows import Candidates
from engine.sampling.prompts import draw_both_sides, draw_prompts, num_seen_before
from tests.toy_prompts import PROMPTS, candidates


def test_each_round_draws_the_next_prompts_then_wraps():
    ids = [row.prompt_id for row in draw_prompts(PROMPTS, None, seed=1, purpose="annotate")]
    assert sorted(ids) == sorted(row.prompt_id for row in PROMPTS)
    drawn = [
        [row.prompt_id for row in draw_prompts(PROMPTS, 3, seed=1, purpose="annotate", round=number)]
        for number in (1, 2, 3)
    ]
    assert drawn == [ids[:3], ids[3:6], ids[6:] + ids[:2]]
    other = [row.prompt_id for row in draw_prompts(PROMPTS[::-1], 3, seed=1, purpose="annotate")]
    assert other == drawn[0], "the order of the file does not count"
    assert [row.prompt_id for row in draw_prompts(PROMPTS, None, seed=1, purpose="other")] != ids


@pytest.mark.parametrize("count", [None, 1, 3, 4, len(PROMPTS), len(PROMPTS) + 5])
def test_how_many_prompts_earlier_rounds_have_drawn(count: int | None):
    seen: set[str] = set()
    for number in range(1, 6):
        ids = {row.prompt_id for row in draw_prompts(PROMPTS, count, seed=1, purpose="annotate", round=number)}
        assert num_seen_before(len(PROMPTS), count, round=number) == len(ids & seen)
        seen |= ids


def scored(place: int, *scores: float) -> Candidates:
    """A row of rejection sampling for a prompt, with the spread of its scores."""
    prompt = PROMPTS[place]
    return Candidates(
        prompt=prompt.prompt,
        prompt_id=f"with a system prompt {place}",  # which is another prompt of the same group
        group_id=prompt.group_id,
        candidates=candidates(*((f"answer {score}", score, True) for score in scores)),
        spread=float(np.std(scores)),
    )


def draw(folder: Path, files: list[Path], **keys: Any) -> tuple[list[str], dict[str, int]]:
    """The groups of the training prompts that a round draws, and the counts of the draw."""
    prompts = folder / "prompts.jsonl"
    write_rows(prompts, PROMPTS)
    arguments = SimpleNamespace(
        prompts=[str(prompts)],
        validation_prompts=[str(prompts)],
        num_validation_prompts=3,
        earlier_candidates=[str(file) for file in files],
        **{"num_prompts": 3, "prompt_order": "hardest_first", "seed": 1, "round": 2} | keys,
    )
    drawn = draw_both_sides(arguments, purpose="annotate")
    held_out = [row.prompt_id for side, row in drawn.prompts if side == "validation"]
    usual = draw_prompts(PROMPTS, 3, seed=1, purpose="annotate", round=arguments.round)
    assert held_out == [row.prompt_id for row in usual], "held-out prompts keep their order"
    return [row.group_id for side, row in drawn.prompts if side == "train"], drawn.counts


def test_hard_prompts_are_drawn_first_and_easy_ones_last(tmp_path):
    groups = [row.group_id for row in PROMPTS]
    rows = [scored(0, 1.0, 1.1), scored(1, 0.0, 4.0), scored(2, 0.0, 2.0)]
    write_rows(tmp_path / "one.jsonl", rows)
    drawn, seen = draw(tmp_path, [tmp_path / "one.jsonl"])
    # Differences of 4, 2 and 0.1: 1.97, 0.98 and 0.05 of their mean, where 1 stands for prompts without answers.
    assert drawn[0] == groups[1]
    assert not {groups[0], groups[2]} & set(drawn)
    assert seen == {"prompts_of_known_difficulty": 1}
    drawn, seen = draw(tmp_path, [tmp_path / "one.jsonl"], num_prompts=len(PROMPTS))
    assert (drawn[0], drawn[-2:]) == (groups[1], [groups[2], groups[0]])
    assert seen == {"prompts_of_known_difficulty": 3}
    unknown = [row.group_id for row in draw_prompts(PROMPTS, None, seed=1, purpose="annotate")]
    assert drawn[1:-2] == [group for group in unknown if group not in groups[:3]]


def test_rounds_go_on_with_the_next_prompts_among_those_of_unknown_difficulty(tmp_path):
    write_rows(tmp_path / "one.jsonl", [scored(0, 0.0, 9.0), scored(1, 0.0, 0.1)])
    order = [row.group_id for row in draw_prompts(PROMPTS, None, seed=1, purpose="annotate")]
    for number in (2, 3):
        start = (number - 1) * 3 % len(order)
        known = {PROMPTS[0].group_id, PROMPTS[1].group_id}
        following = [group for group in order[start:] + order[:start] if group not in known]
        drawn, _ = draw(tmp_path, [tmp_path / "one.jsonl"], round=number)
        assert drawn == [PROMPTS[0].group_id, *following[:2]]


def test_reward_models_of_another_scale_count_alike(tmp_path):
    write_rows(tmp_path / "one.jsonl", [scored(0, 0.0, 30.0), scored(1, 0.0, 10.0)])  # 1.5 and 0.5 of their mean
    write_rows(tmp_path / "two.jsonl", [scored(2, 0.0, 0.19), scored(3, 0.0, 0.01)])  # 1.9 and 0.1
    groups = [row.group_id for row in PROMPTS]
    drawn, _ = draw(tmp_path, [tmp_path / "one.jsonl", tmp_path / "two.jsonl"], num_prompts=len(PROMPTS))
    assert drawn[:2] == [groups[2], groups[0]] and drawn[-2:] == [groups[1], groups[3]]


def test_the_newest_answers_decide_how_hard_a_prompt_is(tmp_path):
    groups = [row.group_id for row in PROMPTS]
    write_rows(tmp_path / "one.jsonl", [scored(0, 1.0, 1.1), scored(1, 0.0, 4.0)])
    write_rows(tmp_path / "two.jsonl", [scored(1, 2.0, 2.0), scored(2, 0.0, 2.0)])
    drawn, _ = draw(tmp_path, [tmp_path / "one.jsonl", tmp_path / "two.jsonl"], num_prompts=len(PROMPTS))
    assert (drawn[0], drawn[-1]) == (groups[2], groups[1])


def test_without_earlier_answers_the_order_is_the_usual_one(tmp_path):
    usual = [row.group_id for row in draw_prompts(PROMPTS, 3, seed=1, purpose="annotate", round=2)]
    assert draw(tmp_path, [])[0] == draw(tmp_path, [], prompt_order="random")[0] == usual
