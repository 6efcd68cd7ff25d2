"""What the page reads of an evaluation's answers."""

import json

import pytest

from pipeline.report.page import answers
from pipeline.report.page.answers import Evaluated, PromptAnswers, marked_words, read_evaluation, side_by_side, win_rate


def prompt(*scores, text="an answer", asked="a prompt"):
    return PromptAnswers("", asked, text, True, scores, [None] * len(scores), [2] * len(scores))


def test_the_proxys_scores_belong_to_prompts_and_answers_in_their_order(tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": asked}],
            "prompt_id": asked,
            "candidates": [{"text": "x", "num_tokens": 1, "ended": True, "score": score} for score in (0.5, 1)],
        }
        for asked in ("a", "b")
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "proxy_scores.json").write_text("[1.0, 2.0, 3.0, NaN]")
    read = read_evaluation(tmp_path, "sft", {"answers": "answers.jsonl", "proxy_scores": "proxy_scores.json"})
    assert read.prompts["a"].proxies == [1.0, 2.0] and read.prompts["b"].proxies == [3.0, None]
    assert read.scores == [0.5, 1.0, 0.5, 1.0] and read.proxies == [1.0, 2.0, 3.0]
    assert read.lengths == [1.0] * 4 and read.problem == ""


def test_of_a_dialog_the_last_message_is_the_prompt_however_long_the_earlier_ones_are(tmp_path):
    messages = [{"role": "system", "content": "s" * 2_000}, {"role": "user", "content": "the question"}]
    candidate = {"text": "x", "num_tokens": 1, "ended": True}
    (tmp_path / "answers.jsonl").write_text(
        json.dumps({"prompt": messages, "prompt_id": "a", "candidates": [candidate]})
    )
    read = read_evaluation(tmp_path, "sft", {"answers": "answers.jsonl"}).prompts["a"]
    assert read.prompt == "the question"
    assert read.earlier.startswith("system: sss") and read.earlier.endswith("more characters)")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"prompt_id": 1}', '{"prompt_id": "a", "prompt": [], "candidates": []}']
)
def test_damaged_answers_are_a_problem_with_a_name(tmp_path, content):
    (tmp_path / "answers.jsonl").write_text(content)
    read = read_evaluation(tmp_path, "sft", {"answers": "answers.jsonl"})
    assert read.prompts == {} and "answers.jsonl could not be read to its end" in read.problem


def test_wins_are_counted_by_prompt_and_answer_and_ties_count_half():
    first = Evaluated("first", "", {"a": prompt(1.0, 0.0), "b": prompt(0.5, None), "c": prompt(1.0)})
    other = Evaluated("other", "", {"a": prompt(0.0, 0.0), "b": prompt(0.75, 0.0), "d": prompt(1.0)})
    assert win_rate(first, other) == pytest.approx((1 + 0.5 + 0) / 3)
    assert win_rate(other, first) == pytest.approx((0 + 0.5 + 1) / 3)
    assert win_rate(first, Evaluated("none", "", {})) is None


def test_the_largest_gains_and_losses_are_shown_first_in_turn():
    before = {name: prompt(0.5, asked=name) for name in "abcde"}
    after = {name: prompt(score, asked=name) for name, score in zip("abcde", (0.5, 1.0, 0.0, 0.75, 0.25), strict=True)}
    shown = side_by_side([Evaluated("first", "", before), Evaluated("last", "", {**after, "f": prompt(1.0)})])
    # The largest gain (b), the largest loss (c), the first by id (a), then the next gain and the next loss.
    assert [one.prompt for one in shown] == ["b", "c", "a", "d", "e"]
    assert [one.change for one in shown] == [0.5, -0.5, 0.0, 0.25, -0.25]


def test_long_texts_are_cut_and_only_some_prompts_are_shown(monkeypatch):
    monkeypatch.setattr(answers, "MAX_SHOWN_CHARACTERS", 1_000)
    many = Evaluated("one", "", {f"{number:03}": prompt(0.0, text="x" * 90, asked="y" * 10) for number in range(100)})
    assert len(side_by_side([many])) == 10
    assert answers.shortened("z" * 1_205) == "z" * 1_200 + "… (5 more characters)"


def test_words_that_the_other_answer_lacks_are_marked():
    assert marked_words("Vienna is a city", "Vienna was a city") == [("Vienna", False), ("is", True), ("a city", False)]
    assert marked_words("the same", "the same") == [("the same", False)]
