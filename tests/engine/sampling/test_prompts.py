"""Which prompts each round draws."""

import pytest

from engine.sampling.prompts import draw_prompts, num_seen_before
from tests.toy_prompts import PROMPTS


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
