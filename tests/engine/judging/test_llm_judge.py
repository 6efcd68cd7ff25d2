"""An LLM judge behind a real server: the report finds its bias, and a coin is refused."""

import random
from pathlib import Path
from typing import Any

import pytest

from data_schemas.errors import ConfigError
from engine.judging.judge_report import JudgeReport, report_of
from engine.judging.llm_judge import LLMAnnotator, LLMJudge, LLMJudgeArguments
from engine.judging.verdicts import Pairing
from engine.runtime import notices
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling.answers import Answer
from tests.engine.endpoints.scripted_server import Request, Say, ScriptedServer
from tests.engine.judging.scripted_judges import Decide, by_coin, by_length, by_place, by_text, judge
from tests.toy_prompts import PROMPTS, question


def llm_judge(server: ScriptedServer, folder: Path, **keys: Any) -> LLMJudge:
    folder = folder / "run" / "step"
    folder.mkdir(parents=True, exist_ok=True)
    stage = Stage("annotate", folder, {}, Tracker(folder, active=False), is_main=True)
    arguments = LLMJudgeArguments(endpoints={"judge": server.endpoint()}, **{"min_consistency": None} | keys)
    return LLMJudge.of(stage, arguments, "judge")


def pairings(count: int) -> list[Pairing]:
    drawn = random.Random(5)
    texts = [["".join(drawn.choices("abcdef ", k=drawn.randint(5, 60))) + "." for _ in range(2)] for _ in range(count)]
    return [Pairing(question(f"Question {n}?"), *texts[n]) for n in range(count)]


def reported(decide: Decide, folder: Path, count: int = 400) -> JudgeReport:
    with ScriptedServer(judge(decide)) as server:
        return report_of(llm_judge(server, folder).compare(pairings(count)))


def test_a_consistent_judge_is_reported_as_one(tmp_path):
    report = reported(by_text, tmp_path, 60)
    assert (report.position_consistency, report.tie_rate, report.prefers_first) == (1.0, 0.0, 0.5)
    assert report.prefers_longer is not None and 0.3 < report.prefers_longer < 0.7 and not report.num_unparsable


def test_the_report_finds_a_judge_that_prefers_the_first_answer(tmp_path):
    report = reported(by_place, tmp_path)
    # p = 0.7 and 400 pairs: 800 verdicts with a standard error of 0.016, and agreement 2 p (1 - p) = 0.42 of 0.025.
    assert report.prefers_first == pytest.approx(0.7, abs=0.05)
    assert report.position_consistency == pytest.approx(0.42, abs=0.08)
    assert report.tie_rate == pytest.approx(0.58, abs=0.08)


def test_the_report_finds_a_judge_that_prefers_the_longer_answer(tmp_path):
    notices.start(None)
    with ScriptedServer(judge(by_length)) as server:
        one = llm_judge(server, tmp_path)
        report = report_of(one.compare(pairings(100)))
        one.metrics("judge")
    assert report.prefers_longer == 1.0 and report.position_consistency == 1.0
    assert notices.kept() == [f"the judge {one.name} prefers the longer answer in 100% of its decisions"]
    notices.start(None)


def test_the_report_finds_a_coin(tmp_path):
    report = reported(by_coin, tmp_path)
    assert report.position_consistency == pytest.approx(0.5, abs=0.08)
    assert report.prefers_first == pytest.approx(0.5, abs=0.06)
    assert report.prefers_longer == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize(
    ("decide", "is_refused"), [(by_coin, True), (by_place, True), (by_text, False), (by_length, False)]
)
def test_a_judge_that_is_a_coin_is_refused_before_much_is_paid_for(decide, is_refused, tmp_path):
    with ScriptedServer(judge(decide)) as server:
        one = llm_judge(server, tmp_path, min_consistency=0.7)
        if not is_refused:
            assert len(one.compare(pairings(200))) == 200
            return
        with pytest.raises(
            ConfigError, match=r"gives the same verdict in .* of 64 pairs when the answers change places"
        ):
            one.compare(pairings(200))
        assert len(server.requests) == 2 * 64


def test_few_comparisons_refuse_no_judge(tmp_path):
    with ScriptedServer(judge(by_place)) as server:
        assert len(llm_judge(server, tmp_path, min_consistency=1.0).compare(pairings(15))) == 15


def answers_of(*texts: str) -> list[Answer]:
    return [Answer(PROMPTS[0], k, text, [], ended=True) for k, text in enumerate(texts)]


def test_all_answers_to_a_prompt_are_ranked_by_their_comparisons(tmp_path):
    with ScriptedServer(judge(by_text)) as server:
        annotator = LLMAnnotator(llm_judge(server, tmp_path))
        four, equal, empty = annotator([answers_of("b", "d", "a", "c"), answers_of("x", "x "), answers_of("", "y")])
        assert len(server.requests) == 2 * 6  # six pairs of four answers, in both orders; none for the others
    assert four.scores_N == [pytest.approx(1 / 3), 1.0, 0.0, pytest.approx(2 / 3)]
    assert four.strengths is not None and four.strengths[1, 2] == "better"
    assert not equal.dropped and not empty.dropped  # they are dropped as identical and as empty


def test_verdicts_that_cannot_be_read_are_dropped_and_counted(tmp_path):
    notices.start(None)

    def script(request: Request) -> Say:
        is_odd = "Question 1?" in request["messages"][0]["content"]
        return Say("两个答案都不错。") if is_odd else judge(by_text)(request)

    with ScriptedServer(script) as server:
        one = llm_judge(server, tmp_path)
        compared = one.compare(pairings(4))
        metrics = one.metrics("judge")
    assert [one.points for one in compared].count(None) == 1 and compared[1].points is None
    assert metrics["judge_unparsable"] == metrics["judge_unparsable_no_code"] == 2
    assert metrics["judge_comparisons"] == 4 and metrics["judge_position_consistency"] == 1.0
    assert notices.kept() == [f"2 of 8 verdicts of the judge {one.name} cannot be read and are dropped"]
    notices.start(None)


def test_a_prompt_without_a_verdict_is_dropped_for_this_reason(tmp_path):
    with ScriptedServer(lambda request: Say("Hm.")) as server:
        (judgement,) = LLMAnnotator(llm_judge(server, tmp_path))([answers_of("a", "b")])
    assert judgement.dropped == "unparsable_verdict"


def test_the_rubric_is_part_of_the_judges_name_and_of_what_is_paid_for(tmp_path):
    with ScriptedServer(judge(by_text)) as server:
        usual, other = llm_judge(server, tmp_path), llm_judge(server, tmp_path, rubric="Only spelling counts.")
        assert usual.name != other.name and usual.name.startswith("scripted-1, rubric ")
        usual.compare(pairings(1))
        other.compare(pairings(1))
        assert len(server.requests) == 4
        assert "Only spelling counts." in server.requests[-1]["messages"][0]["content"]
