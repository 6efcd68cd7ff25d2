"""The part of the alignment benchmark with an LLM judge: the judge's errors, the server, the labels and the table."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.alignment import llm_judge
from benchmarks.alignment.gold_judge import MODEL, NOISE, ORDER_BIAS, preference, verdict
from benchmarks.alignment.llm_judge import Measured, judge_server, label, table, true_win_rate
from data_schemas.errors import WaitingForPeople
from data_schemas.rows import Message, Prompt
from engine.judging.people.asking import PeopleRow, ask_people
from engine.judging.verdicts import RUBRIC, Pairing, question
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from toy_world.facts import read_prompt
from toy_world.make import evaluation_prompts

REQUESTS = evaluation_prompts("report")[:300]


def right(request: str) -> str:
    return f"{read_prompt(request)[0].fact.answer}."


def asked(request: str, one: str, other: str, *, swapped: bool = False) -> str:
    """The question of an LLM judge."""
    prompt = Prompt(prompt=[Message(role="user", content=request)])
    return question(Pairing(prompt, one, other), RUBRIC, swapped=swapped).prompt[0].content


def codes(request: str, **shares: float) -> tuple[str, str]:
    """The judge's verdicts on the right answer and a rude refusal, in both orders."""
    texts = (right(request), "No idea, go away.")
    return tuple(verdict(asked(request, *texts, swapped=swapped), **shares)[2] for swapped in (False, True))  # pyright: ignore


def test_a_judge_without_errors_follows_gold_in_both_orders():
    assert {codes(request, noise=0, order_bias=0) for request in REQUESTS} == {("A", "B")}
    assert {codes(request, noise=1, order_bias=0) for request in REQUESTS} == {("B", "A")}
    assert {codes(request, noise=0, order_bias=1) for request in REQUESTS} == {("A", "A")}
    same = asked(REQUESTS[0], "No idea.", "No clue.")
    assert verdict(same, order_bias=0) == "[[tie]]" and verdict(same, order_bias=1) == "[[A:1]]"


def test_noise_turns_both_orders_and_the_bias_one_of_them():
    found = [codes(request) for request in REQUESTS]
    consistent = [first != second for first, second in found]
    # Standard errors of 300 pairs: 0.026 and 0.023.
    assert np.mean(consistent) == pytest.approx(1 - ORDER_BIAS, abs=0.08)
    agreeing = [first for (first, _), is_consistent in zip(found, consistent, strict=True) if is_consistent]
    assert np.mean([first == "B" for first in agreeing]) == pytest.approx(NOISE, abs=0.07)
    assert np.mean([code == "A" for pair in found for code in pair]) == pytest.approx(0.5 + ORDER_BIAS / 2, abs=0.08)
    assert found == [codes(request) for request in REQUESTS]  # asked again, it says the same


def test_the_strength_follows_the_difference_of_gold():
    request = REQUESTS[0]  # asks for one word
    others = ("No idea.", f'"{right(request)}"', right(request))  # gold is 1.2, 0.3 and 0 lower
    assert [preference(request, right(request), other) for other in others] == [4, 2, 0]
    assert preference(request, "No idea.", right(request)) == -4


def test_the_server_answers_a_chat_request_and_ends_with_the_block():
    content = asked(REQUESTS[0], right(REQUESTS[0]), "No idea.")
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": content}]}).encode()
    with judge_server() as endpoint:
        assert endpoint["base_url"].startswith("http://127.0.0.1:") and endpoint["model"] == MODEL
        request = urllib.request.Request(f"{endpoint['base_url']}/chat/completions", data=body)
        with urllib.request.urlopen(request) as reply:
            answer = json.load(reply)
    assert answer["choices"][0]["message"]["content"].endswith(verdict(content))
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(request)


def test_the_person_labels_a_page_by_gold(tmp_path):
    folder = tmp_path / "step"
    folder.mkdir()
    stage = Stage("evaluate_policy", folder, {}, Tracker(folder, active=False), is_main=True)
    prompts = [Prompt(prompt=[Message(role="user", content=request)]) for request in REQUESTS[:20]]
    texts = [("No idea.", right(request)) for request in REQUESTS[:18]] + [("No idea.", "No clue.")] * 2
    rows = [PeopleRow(prompt, *pair) for prompt, pair in zip(prompts, texts, strict=True)]
    with pytest.raises(WaitingForPeople):
        ask_people(stage, rows, ["gold"], overlap=0, seed=0)
    label(folder / "people")
    labels = ask_people(stage, rows, ["gold"], overlap=0, seed=0)
    assert [labels[row.id]["gold"].verdict for row in rows] == ["other"] * 18 + ["tie"] * 2
    assert {labels[row.id]["gold"].first for row in rows} == {"one", "other"}


def answers(folder: Path, *texts: str) -> Path:
    folder.mkdir()
    row: dict[str, Any] = {"prompt": [{"role": "user", "content": REQUESTS[0]}]}
    row["candidates"] = [{"text": text} for text in texts]
    (folder / "answers.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_the_true_win_rate_counts_ties_as_half(tmp_path):
    one = answers(tmp_path / "one", right(REQUESTS[0]), "No idea.", right(REQUESTS[0]), "No idea.")
    other = answers(tmp_path / "other", "No idea.", right(REQUESTS[0]), right(REQUESTS[0]), "No clue.")
    assert true_win_rate(one, other) == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)


def test_the_table_says_whether_gold_rises_and_the_truth_is_covered():
    judge = {"annotator_position_consistency": 0.7, "annotator_prefers_first": 0.65}
    rising = Measured(np.array([[0.1] * 9, [0.3] * 9]), judge, [0.6, 0.55, 0.65, 0.7, 0.65, 0.75], truth=0.72)
    falling = Measured(np.array([[0.3] * 9, [0.1] * 9]), judge, [0.6, 0.55, 0.65, 0.7, 0.65, 0.75], truth=0.6)
    lines = table({0: rising, 1: falling})
    rates = "0.600 [0.550, 0.650] | 0.700 [0.650, 0.750] | 0.720 |"
    assert lines[2] == f"| 0 | 0.100 0.300 | +0.200 [+0.200, +0.200] | 0.70 | 0.65 | {rates}"
    assert lines[-1] == (
        "Gold rises beyond its interval with 1 of 2 seeds. The corrected interval covers the true win rate with 1 of "
        "2, the judge's own with 1."
    )
    assert llm_judge.run_folder(3).name == "alignment-3-llm-judge"
