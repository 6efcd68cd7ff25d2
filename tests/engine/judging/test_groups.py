"""An evaluation's numbers by the tags of its prompts."""

import numpy as np
import pytest

from data_schemas.errors import ConfigError
from data_schemas.rows import Prompt
from engine.judging.groups import check_tags, group_metrics, groups_of, lowest_gains, values_by_prompt
from engine.runtime import notices
from tests.toy_prompts import PROMPTS

TAGS = ["math"] * 12 + ["code"] * 12 + [""] * 2


def test_prompts_are_grouped_by_tag_and_those_without_are_a_group_too():
    groups = groups_of(["b", "", "a/c", "b"])
    assert {name: members.tolist() for name, members in groups.items()} == {
        "tag/a/c": [2],
        "tag/b": [0, 3],
        "tag/untagged": [1],
    }
    assert groups_of(["", ""]) == {}


def test_each_tag_has_its_own_mean_gain_and_win_rate_paired_by_prompt():
    before = np.tile([0.0, 1.0], (26, 1))
    # By hand: math gains 1 with each answer, code loses 0.5 with every second one, and the two others stay.
    now = before + np.array([1.0] * 12 + [0.0] * 14)[:, None]
    now[12:24, 1] -= 0.5
    metrics = group_metrics(groups_of(TAGS), values_by_prompt(now, {}, {"best": before, "baseline": None}), seed=0)
    names = [f"{metric}{end}" for metric in ("judge_mean", "score_gain_vs_best") for end in ("", "_low", "_high")]
    assert [metrics[f"tag/math/{name}"] for name in names] == [1.5, 1.5, 1.5, 1.0, 1.0, 1.0]
    assert [metrics[f"tag/code/{name}"] for name in names] == [0.25, 0.25, 0.25, -0.25, -0.25, -0.25]
    assert metrics["tag/math/win_rate_vs_best"] == 1.0 and metrics["tag/code/win_rate_vs_best"] == 0.25
    # Two prompts have a mean, and no interval that a gate could believe.
    assert metrics["tag/untagged/judge_mean"] == 0.5 and metrics["tag/untagged/prompts"] == 2
    assert "tag/untagged/judge_mean_low" not in metrics
    assert list(lowest_gains(metrics, "tag")) == [("code", -0.25, -0.25), ("math", 1.0, 1.0)]


def test_an_llm_judges_points_are_the_win_rate_and_prompts_without_a_verdict_do_not_count():
    points = np.full((26, 1), 1.0)
    points[:12] = 0.25
    points[0] = np.nan
    metrics = group_metrics(groups_of(TAGS), values_by_prompt(points, {"best": points}, {"best": None}), seed=0)
    assert metrics["tag/math/win_rate_vs_best"] == 0.25 and metrics["tag/math/score_gain_vs_best"] == -0.25
    assert metrics["tag/code/score_gain_vs_best_low"] == pytest.approx(0.5)
    points[:12] = np.nan
    metrics = group_metrics(groups_of(TAGS), values_by_prompt(points, {"best": points}, {}), seed=0)
    assert metrics["tag/math/prompts"] == 12 and "tag/math/judge_mean" not in metrics


def test_a_condition_by_tag_needs_tags_and_names_those_it_does_not_see():
    def tagged(**counts: int) -> list[Prompt]:
        return [row.model_copy(update={"tag": tag}) for tag, count in counts.items() for row in PROMPTS[:1] * count]

    check_tags(tagged(math=3), None)
    with pytest.raises(ConfigError, match=r"gate_max_tag_fall=0.1: no tag has 10 of the 9 evaluation prompts or more"):
        check_tags(tagged(math=9), 0.1)
    with pytest.raises(ConfigError, match=r"no tag has 10 of the 7 evaluation prompts"):
        check_tags(PROMPTS, 0.1)
    notices.start(None)
    check_tags(tagged(math=10, code=9), 0.1)
    assert notices.kept() == ["gate_max_tag_fall: code: less than 10 prompts, not checked"]
    notices.start(None)
