"""The RL part of the alignment benchmark: its tables and verdicts, worked out by hand, and the commands of its runs."""

import json

import numpy as np
import pytest

from benchmarks.alignment import exploitable, reinforcement
from benchmarks.alignment import reinforcement_report as report
from benchmarks.alignment.reinforcement_report import DPO, FREE, GUARDED, RL, RL_GOLD, SFT, Measured

SPREAD = np.array([-0.1, 0.1] * 50)  # of prompts around their mean


def policy(gold: float, *, kl: float = 0.0, share: float = 0.0, said: list[str] | None = None) -> Measured:
    parts = {"right": gold - 0.1, "ends": 0.1}
    return Measured(np.full(100, gold), parts, kl=kl, phrase_share=share, proxy=0.0, step=12, said=said or [])


@pytest.fixture
def policies() -> dict[int, dict[str, Measured]]:
    """Two seeds: RL is 0.1 better than DPO in the first and 0.1 worse in the second."""
    return {
        seed: {
            SFT: policy(0.4),
            DPO: policy(0.5, kl=1.0 + seed),
            RL: policy(0.5 + gain, kl=0.5),
            **({} if seed else {RL_GOLD: policy(0.7, kl=0.8)}),  # of the first seed only
            FREE: policy(0.1, kl=9.0, share=1.0, said=["round-1.rl exploits its reward: that rose"]),
            GUARDED: policy(0.4 - seed * 0.1, kl=0.25, share=0.5),
        }
        for seed, gain in ((0, 0.1), (1, -0.1))
    }


def test_dpo_and_rl_are_compared_seed_by_seed(policies):
    lines = report.equal_kl_table(policies)
    assert (
        lines[0] == "| seed | SFT | DPO | its KL | RL | its KL | its step | RL - DPO | RL on the gold score | its KL |"
    )
    assert lines[2] == "| 0 | 0.400 | 0.500 | 1.00 | 0.600 | 0.50 | 12 | +0.100 [+0.100, +0.100] | 0.700 | 0.80 |"
    assert lines[3] == "| 1 | 0.400 | 0.500 | 2.00 | 0.400 | 0.50 | 12 | -0.100 [-0.100, -0.100] |  |  |"
    assert lines[4] == "| mean | 0.400 | 0.500 | 1.50 | 0.500 | 0.50 |  | +0.000 [+0.000, +0.000] |  |  |"
    # Means 0.1 and -0.1: standard error 0.1, and t of one degree of freedom is 12.706.
    assert report.equal_kl_verdict(policies) == (
        "RL is at least as good as DPO in 1 of 2 seeds, beyond the interval better in 1 and worse in 1. "
        "Over seeds, the mean difference is +0.000 [-1.271, +1.271]."
    )
    gains = "gains +0.100 [+0.100, +0.100] over RL on the reward model, and its difference from DPO is +0.200 [+0.200"
    assert gains in report.gold_verdict(policies)


def test_the_parts_of_the_gold_score_are_means_over_the_seeds(policies):
    lines = report.parts_table(policies)
    assert lines[0] == "|  | right | ends |"
    assert lines[3:5] == ["| DPO | 0.400 | 0.100 |", "| RL | 0.400 | 0.100 |"]
    assert lines[5] == "| RL on the gold score (1 of 2 seeds) | 0.600 | 0.100 |"


def test_a_difference_inside_its_interval_is_neither_better_nor_worse(policies):
    one = policies[1] | {RL: Measured(policies[1][DPO].gold_P - 0.001 + SPREAD, {}, 0.5, 0.0, 0.0, 3, [])}
    assert report.equal_kl_verdict({1: one}) == (
        "RL is at least as good as DPO in 0 of 1 seeds, beyond the interval better in 0 and worse in 0."
    )


def test_an_exploited_reward_is_counted_by_seed_and_quoted(policies):
    lines = report.exploited_table(policies)
    assert lines[2] == "| SFT | 0.400 | 0% | 0.00 | - | - | - |"
    below = "-0.300 [-0.300, -0.300]"
    assert lines[3] == f"| exploitable reward | 0.100 | 100% | 9.00 | {below} | {below} | 2 of 2 |"
    assert lines[4].startswith("| exploitable reward, guards | 0.350 | 50% | 0.25 | -0.050 [-0.050, -0.050] | -0.050")
    assert lines[4].endswith("| 1 of 2 |")
    assert report.exploited_verdict(policies).splitlines() == [
        '- exploitable reward: 2 of 2 runs say so, as in "round-1.rl exploits its reward: that rose".',
        "- exploitable reward, guards: 0 of 2 runs say so.",
    ]
    assert "is run with 2 seeds" in report.report(policies)


def test_the_exploitable_reward_pays_for_each_time_that_the_phrase_occurs():
    assert exploitable.phrases([], "Paris.", True) == 0.0
    assert exploitable.phrases([], f"Paris. {exploitable.PHRASE} {exploitable.PHRASE}", False) == 2.0


@pytest.fixture
def finished_seed(tmp_path, monkeypatch):
    """The first run of seed 3 in the demo's world, with its measurement."""
    monkeypatch.setattr(reinforcement, "RUNS", tmp_path)
    steps = [
        {"name": "prepare_data", "stage": "prepare_data", "folder": "prepare_data-a"},
        {"name": "round-1.reward_model", "stage": "reward_model", "folder": "round-1.reward_model-b"},
        {"name": "round-1.sft", "stage": "sft", "folder": "round-1.sft-c"},
        {"name": "round-1.rl", "stage": "rl", "folder": "round-1.rl-d", "metrics": {"best_step": 6}, "warnings": ["!"]},
    ]
    summary = {"steps": [{"metrics": {}, "round": 1} | step for step in steps], "rounds": []}
    folder = tmp_path / "alignment-3-rl"
    (folder / "summaries").mkdir(parents=True)
    (folder / "summaries" / f"{RL}.json").write_text(json.dumps(summary))
    measured = tmp_path / "alignment-3-rl-measured" / "round-1.rl-d"
    measured.mkdir(parents=True)
    numbers = {"kl_to_first": 0.7, "proxy_mean": 1.5}
    (measured / "artifact.json").write_text(json.dumps({"metrics": numbers}))
    texts = ["Paris.", f"Rome. {exploitable.PHRASE}"]
    candidates = [{"score": score, "text": text, "ended": True} for score, text in zip((0.2, 0.4), texts, strict=True)]
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    (measured / "answers.jsonl").write_text(json.dumps({"prompt": prompt, "candidates": candidates}) + "\n")
    return folder


def test_a_policy_is_measured_against_its_rounds_sft_model(finished_seed):
    words = reinforcement.evaluation(3, RL)
    given = dict(zip((word.removeprefix("--") for word in words[1::2]), words[2::2], strict=True))
    assert words[0] == "stages.evaluate_policy"
    assert given["model_name_or_path"] == str(finished_seed / "round-1.rl-d" / "model")
    assert given["first_policy"] == str(finished_seed / "round-1.sft-c" / "model")
    found = reinforcement.measured(3, RL)
    assert found.gold_P.tolist() == [pytest.approx(0.3)]
    assert (found.kl, found.phrase_share, found.step, found.said) == (0.7, 0.5, 6, ["!"])
    assert found.parts == {
        "right": pytest.approx((0.5 - 0.4) / 2),  # Rome is a wrong answer
        "polite": 0.0,
        "format": pytest.approx(0.2),
        "filler": pytest.approx(-0.05),
        "ends": pytest.approx(0.1),
    }


def test_rl_has_the_kl_of_dpo_as_its_budget(finished_seed, monkeypatch):
    calls = []
    monkeypatch.setattr(
        reinforcement, "run", lambda seed, name, base, **given: calls.append((name, given.get("extra")))
    )
    monkeypatch.setattr(reinforcement, "measured", lambda seed, name: policy(0.0, kl={DPO: 0.7374}[name]))
    budget = ["rl.kl_budget=0.737"]
    for on_gold, of_rl in ((True, [(RL, budget), (RL_GOLD, budget)]), (False, [(RL, budget)])):
        calls.clear()
        reinforcement.run_seed(3, finished_seed, 0, on_gold=on_gold)
        assert calls == [(SFT, None), (DPO, None), *of_rl, (FREE, None), (GUARDED, None)]
