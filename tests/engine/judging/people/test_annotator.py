"""People as the annotator: who gets which rows, what they decide, and which rows go to them after a model."""

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from data_schemas.errors import WaitingForPeople
from data_schemas.people import FOLDER, Batch, Label
from engine.judging.annotators import Judgement
from engine.judging.people.annotator import PeopleAnnotator, candidate_of, judgement_of
from engine.judging.people.asking import deal
from engine.sampling.answers import Answer
from stages.annotate import compare_answers
from tests.data_schemas.test_people import lines_of
from tests.toy_prompts import PROMPTS

MARGINS = [1.0, 0.5, 0.25]


def answers_to(place: int, *texts: str) -> list[Answer]:
    return [Answer(PROMPTS[place], k, text, [], ended=True, policy=f"p{k}") for k, text in enumerate(texts)]


def label(verdict: str, strength: str | None = None, **fields: Any) -> Label:
    return Label.model_validate(
        {"row": "r", "first": "one", "verdict": verdict, "strength": strength, "seconds": 2} | fields
    )


def test_every_row_goes_to_somebody_and_the_overlap_to_all():
    rows = [f"row-{number}" for number in range(20)]
    dealt = deal(rows, ["ana", "ben", "cleo"], overlap=0.25, seed=1)
    counts = Counter(one.row for shown in dealt.values() for one in shown)
    assert Counter(counts.values()) == {3: 5, 1: 15}
    assert [len(shown) for shown in dealt.values()] == [10, 10, 10]
    assert dealt == deal(rows, ["ana", "ben", "cleo"], overlap=0.25, seed=1)
    orders = [[one.row for one in shown] for shown in dealt.values()]
    assert all(order != sorted(order) for order in orders)
    assert {one.first for one in dealt["ana"]} == {"one", "other"}
    assert len(deal(rows, ["ana"], overlap=0.25, seed=1)["ana"]) == 20


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"ana": label("one", "better")}, ("a", "b", "better", None)),
        ({"ana": label("other", "significantly_better")}, ("b", "a", "significantly_better", None)),
        # 4 and -1: the mean of 1.5 rounds to a level of 2, and one of two prefers the rejected answer.
        (
            {"ana": label("one", "significantly_better"), "ben": label("other", "marginally_better")},
            ("a", "b", "slightly_better", 0.5),
        ),
        ({"ana": label("one", "better"), "ben": label("tie")}, ("a", "b", "slightly_better", 0.25)),
        ({"ana": label("one", "better"), "ben": label("skipped")}, ("a", "b", "better", None)),
        ({"ana": label("tie")}, "equal_score"),
        ({"ana": label("one", "better"), "ben": label("other", "better")}, "equal_score"),
        ({"ana": label("skipped")}, "skipped"),
    ],
)
def test_what_people_say_becomes_a_pair_or_the_reason_why_not(labels, expected):
    pair = compare_answers(answers_to(0, "a", "b"), judgement_of(2, (0, 1), labels), margins=MARGINS)
    if isinstance(expected, str):
        assert pair.reason == expected  # pyright: ignore
        return
    assert (pair.chosen[0].content, pair.rejected[0].content, pair.strength, pair.disagreement) == expected  # pyright: ignore


def test_an_edited_answer_is_ranked_above_the_chosen_one():
    labels = {"ana": label("other", "better", edited=" b, but better "), "ben": label("other", "better")}
    pair = compare_answers(answers_to(0, "a", "b"), judgement_of(2, (0, 1), labels), margins=MARGINS)
    assert [answer[0].content for answer in pair.ranking] == ["b, but better", "b", "a"]  # pyright: ignore
    assert (pair.chosen_from, pair.rejected_from) == ("people", "p0")  # pyright: ignore


@pytest.mark.parametrize("edited", ["a", "b "])
def test_an_edit_that_repeats_an_answer_is_none(edited):
    labels = {"ana": label("other", "better", edited=edited)}
    pair = compare_answers(answers_to(0, "a", "b"), judgement_of(2, (0, 1), labels), margins=MARGINS)
    assert [answer[0].content for answer in pair.ranking] == ["b", "a"]  # pyright: ignore


def test_answers_that_people_did_not_compare_are_in_no_pair():
    judgement = judgement_of(3, (0, 2), {"ana": label("one", "better")})
    pair = compare_answers(answers_to(0, "a", "b", "c"), judgement, margins=MARGINS, keep_rankings=True)
    assert [answer[0].content for answer in pair.ranking] == ["a", "c"]  # pyright: ignore


@pytest.mark.parametrize(
    ("texts", "judgement", "opinion", "expected"),
    [
        (("a", "b", "c"), Judgement([0.1, 0.9, 0.5]), None, ((1, 0), 0.0, (0.8, 0))),
        (("a", "b"), Judgement([0.5, 0.5]), None, ((0, 1), 1.0, (0.0, 0))),  # no winner
        (("a", "b"), Judgement([0.0, 0.0], dropped="unparsable_verdict"), None, ((0, 1), 1.0, (0.0, 0))),
        (("a", "b"), Judgement([1.0, 0.0]), [0.1, 0.2], ((0, 1), 1.0, (1.0, 0))),  # the reward model contradicts
        (("a", "b"), Judgement([1.0, 0.0]), [0.3, 0.2], ((0, 1), 0.0, (1.0, 0))),
        (("a", "b"), Judgement([1.0, 0.0], votes_VN=[[1, 0], [0, 1], [1, 1]]), None, ((0, 1), 0.5, (1.0, 0))),
        (("a", "b"), Judgement([1.0, 0.0], strengths={(0, 1): "slightly_better"}), None, ((0, 1), 0.0, (1.0, 2))),
        (("a", " a"), Judgement([1.0, 0.0]), None, None),
        ((" ", "a"), Judgement([1.0, 0.0]), None, None),
    ],
)
def test_how_doubtful_a_models_verdict_is(texts, judgement, opinion, expected):
    found = candidate_of(0, answers_to(0, *texts), judgement, opinion, keep_unfinished=False)
    assert (found and (found.pair, found.doubt, pytest.approx(found.margin))) == expected


class Scripted:
    """A model whose margins are given; 0 is a tie. It always prefers the answer "good"."""

    def __init__(self, margins: list[float]) -> None:
        self.margins = margins

    def __call__(self, answers):
        return [Judgement([margin, 0.0]) for margin in self.margins]


def people_after(folder, margins: list[float], **options: Any) -> PeopleAnnotator:
    stage: Any = SimpleNamespace(folder=folder, values={"run_group": "demo", "step": "round-1.annotate"}, is_main=True)
    return PeopleAnnotator(stage, ["ana"], 0.2, 3, 7, "", False, first=Scripted(margins), **options)


def label_all(folder, verdict: str) -> None:
    """Ana labels every row of her page in the same way, with `strength` better."""
    batch = Batch.read(folder / FOLDER)
    assert batch is not None
    labels = [
        {"row": one.row, "first": one.first, "verdict": verdict, "strength": "better", "seconds": 3.0}
        for one in batch.people["ana"]
    ]
    (folder / FOLDER / "ana.jsonl").write_text("".join(lines_of(labels, batch=batch.batch)))


def test_the_most_doubtful_rows_go_to_people_and_the_model_keeps_the_others(tmp_path):
    margins = [0.9, 0.0, 0.2, 0.7, 0.1, 0.8]
    answers = [answers_to(place, "good", "bad") for place in range(6)]
    annotator = people_after(tmp_path, margins)
    with pytest.raises(WaitingForPeople, match="ana 0 of 3 done"):
        annotator(answers)
    label_all(tmp_path, "other")
    judgements = people_after(tmp_path, margins)(answers)
    assert [judgement.ranked is not None for judgement in judgements] == [False, True, True, False, True, False]
    pairs = [compare_answers(group, one, margins=MARGINS) for group, one in zip(answers, judgements, strict=True)]
    assert [pair.chosen[0].content for pair in pairs] == ["good", "bad", "bad", "good", "bad", "good"]  # pyright: ignore


def test_the_metrics_say_what_people_did_and_how_often_they_agree_with_the_model(tmp_path):
    answers = [answers_to(place, "good", "bad") for place in range(4)]
    with pytest.raises(WaitingForPeople):
        people_after(tmp_path, [0.0, 0.2, 0.1, 0.3])(answers)
    batch = Batch.read(tmp_path / FOLDER)
    assert batch is not None
    verdicts = ["one", "tie", "other"]
    labels: list[dict[str, Any]] = [
        {"row": shown.row, "first": shown.first, "verdict": verdict, "seconds": seconds}
        | ({} if verdict == "tie" else {"strength": "better"})
        for shown, verdict, seconds in zip(batch.people["ana"], verdicts, (2.0, 9.0, 4.0), strict=True)
    ]
    labels[0]["edited"] = "best"
    (tmp_path / FOLDER / "ana.jsonl").write_text("".join(lines_of(labels, batch=batch.batch)))
    annotator = people_after(tmp_path, [0.0, 0.2, 0.1, 0.3])
    annotator(answers)
    metrics = annotator.metrics()
    counts = [metrics[f"people_{name}"] for name in ("rows", "labels", "skipped", "ties", "edited", "seconds_per_row")]
    assert counts == [3, 3, 0, 1, 1, 4.0]
    firsts = [shown.first for shown in batch.people["ana"]]
    assert metrics["people_prefer_first"] == ((firsts[0] == "one") + (firsts[2] == "other")) / 2
    assert metrics["people_kappa"] is None and metrics["people_alpha"] is None


def test_a_file_of_earlier_rows_is_refused(tmp_path):
    with pytest.raises(WaitingForPeople):
        people_after(tmp_path, [0.1])([answers_to(0, "good", "bad")])
    label_all(tmp_path, "one")
    people_after(tmp_path, [0.1])([answers_to(0, "good", "bad")])
    with pytest.raises(ValueError, match=r"ana\.jsonl is outdated: the rows of round-1\.annotate have changed"):
        people_after(tmp_path, [0.1])([answers_to(0, "good", "another")])
    assert json.loads((tmp_path / FOLDER / "batch.json").read_text())["batch"]
