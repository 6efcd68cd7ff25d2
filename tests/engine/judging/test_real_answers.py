"""The judge's code on real answers: two models' to 150 prompts of Arena-Hard in many languages. Needs
ALIGNLOOP_TEST_DATA."""

import gzip
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from data_schemas.rows import Message, Prompt
from engine.judging.judge_report import report_of
from engine.judging.length_control import length_controlled
from engine.judging.paired_evaluation import lengths, paired_metrics, points_against
from engine.judging.verdicts import Comparison, Pairing
from engine.runtime import notices
from engine.sampling.answers import Answer
from tests.engine.endpoints.scripted_server import Request, Say, ScriptedServer
from tests.engine.judging.scripted_judges import parts_of
from tests.engine.judging.test_llm_judge import llm_judge

# Shapes: P = prompts, K = answers to each prompt, here 1.
MODELS = ("o3-mini-2025-01-31", "gemini-2.0-flash-001")
STRENGTH_AT_EQUAL_LENGTH, LENGTH_SLOPE = math.log(0.6 / 0.4), 1.5  # of the judge with a known preference


@dataclass(frozen=True)
class Answered:
    """The prompts with both models' answers, [P][1] each."""

    prompts: list[Prompt]
    one: list[list[Answer]]
    other: list[list[Answer]]

    def pairings(self) -> list[Pairing]:
        groups = zip(self.prompts, self.one, self.other, strict=True)
        return [Pairing(prompt, one.text, other.text) for prompt, (one,), (other,) in groups]


@pytest.fixture(scope="module")
def answered(test_data) -> Answered:
    with gzip.open(test_data / "arena_hard_v2" / "answers.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    prompts = [Prompt(prompt=[Message(role="user", content=row["prompt"])]) for row in rows]
    sides = [
        [
            [Answer(prompt=prompt, k=0, text=row["answers"][model], ids=[], ended=True, policy=model)]
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        for model in MODELS
    ]
    return Answered(prompts, *sides)


def drawn(*texts: str) -> float:
    return int(hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8], 16) / 2**32


def compared(answered: Answered, script: Callable[[Request], Say], folder) -> list[Comparison]:
    with ScriptedServer(script) as server:
        return llm_judge(server, folder).compare(answered.pairings())


def test_a_judge_sees_every_answer_completely_and_in_both_orders(answered, tmp_path):
    seen: set[tuple[str, str]] = set()

    def script(request: Request) -> Say:
        seen.add(parts_of(request["messages"][-1]["content"]))
        return Say("[[tie]]")

    compared(answered, script, tmp_path)
    texts = [(pairing.one.strip(), pairing.other.strip()) for pairing in answered.pairings()]
    assert len(texts) == 150 and sum(not prompt.prompt[0].content.isascii() for prompt in answered.prompts) > 70
    assert seen == {*texts, *(pair[::-1] for pair in texts)}


def test_a_verdict_is_found_after_reasons_that_quote_both_answers(answered, tmp_path):
    """The reasons are as long as the answers and in their languages. Some verdicts are cut off, some are only words."""
    shorter_wins = {pairing.prompt.prompt_id: len(pairing.one) < len(pairing.other) for pairing in answered.pairings()}
    failing = {pairing.one.strip(): place for place, pairing in enumerate(answered.pairings()) if place % 10 < 2}

    def script(request: Request) -> Say:
        one, other = parts_of(request["messages"][-1]["content"])
        reasons = f"Ответ A: {one}\n\n回答 B：{other}\n\n최종 판정: "
        place = failing.get(one)
        if place is not None:  # only where the first model's answer is A
            return Say(reasons, finish="length") if place % 10 else Say(f"{reasons}B가 더 좋습니다.")
        return Say(f"{reasons}[[{'A:3' if len(one) < len(other) else 'B:2'}]]")

    comparisons = compared(answered, script, tmp_path)
    report = report_of(comparisons)
    assert report.unparsable == {"no_code": 15, "cut_off": 15}
    assert (report.num_parsed, report.position_consistency) == (120, 1.0)
    parsed = [one for one in comparisons if one.is_parsed]
    assert [one.points == 1 for one in parsed] == [shorter_wins[one.pairing.prompt.prompt_id] for one in parsed]
    assert {one.strength for one in parsed} == {"slightly_better"}  # the weaker one of both orders
    assert max(len(text) for one in parsed for text in one.texts) > 10_000


def win_chance(differences: np.ndarray) -> np.ndarray:
    """P(the first model wins) by length difference: 60 % at equal length."""
    return 1 / (1 + np.exp(-STRENGTH_AT_EQUAL_LENGTH - LENGTH_SLOPE * np.tanh(differences / differences.std())))


def test_length_control_finds_the_preference_at_equal_length(answered, tmp_path):
    """The judge would prefer the first model's answers in 60 % of the pairs, but it likes length, and they are
    shorter."""
    notices.start(None)
    differences_P = (lengths(answered.one) - lengths(answered.other)).astype(float)[:, 0]
    texts = [(pairing.one.strip(), pairing.other.strip()) for pairing in answered.pairings()]
    chances = dict(zip(texts, win_chance(differences_P), strict=True))

    def script(request: Request) -> Say:
        one, other = parts_of(request["messages"][-1]["content"])
        first, second = (one, other) if (one, other) in chances else (other, one)
        is_won = drawn(first, second) < chances[first, second]
        return Say("[[A:4]]" if is_won == (first == one) else "[[B:4]]")

    with ScriptedServer(script) as server:
        judge = llm_judge(server, tmp_path)
        points = points_against(judge, answered.one, {"first": answered.other})
    metrics = paired_metrics(["first"], points, answered.one, {"first": answered.other}, {}, judge=judge.name, seed=0)
    raw, high = (float(metrics[f"win_rate_vs_first{end}"] or 0) for end in ("", "_high"))
    controlled = [float(metrics[f"lc_win_rate_vs_first{end}"] or 0) for end in ("", "_low", "_high")]
    assert high < 0.6 and raw == pytest.approx(float(win_chance(differences_P).mean()), abs=0.08)
    assert controlled[1] <= 0.6 <= controlled[2] and controlled[0] > raw
    notices.start(None)


def test_the_length_controlled_interval_covers_the_truth_at_real_lengths(answered):
    own, theirs = lengths(answered.one), lengths(answered.other)
    chance_PK, random = win_chance((own - theirs).astype(float)), np.random.default_rng(0)
    num_covered = {"raw": 0, "controlled": 0}
    for seed in range(100):
        points_PK = (random.random(chance_PK.shape) < chance_PK).astype(float)
        rate = length_controlled(points_PK, own, theirs, seed=seed)
        assert rate is not None
        num_covered["controlled"] += rate.low <= 0.6 <= rate.high
        half = 1.96 * points_PK.std() / math.sqrt(len(points_PK))
        num_covered["raw"] += abs(points_PK.mean() - 0.6) <= half
    assert num_covered["controlled"] >= 93 and num_covered["raw"] < 30
