"""Stages with models behind an endpoint: a judge, a teacher, a baseline; killed, and out of budget."""

import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from data_schemas.endpoints import PAID_ANSWERS
from data_schemas.files import read_json
from data_schemas.reading import read_pairs, read_rows
from data_schemas.rows import Candidates, Conversation
from pipeline.launch import command_line
from pipeline.plan import Step
from pipeline.recipe.sections import Launch
from tests.engine.endpoints.scripted_server import Action, Fail, Hang, Request, Say, ScriptedServer
from tests.engine.judging.scripted_judges import by_length, by_text, judge
from tests.patience import PATIENCE
from tests.processes import within
from tests.stage_runs import call_stage, run_here, stage_keys


def annotating(server: ScriptedServer, policy: Path, other: Path, rows: Path, **endpoint: Any) -> dict[str, Any]:
    return {
        "prompts": [rows / "prompts.jsonl"],
        "policies": [policy, other],
        "annotator_llm": "judge",
        "endpoints": {"judge": server.endpoint(**endpoint)},
        "max_new_tokens": 6,
        "keep_unfinished": True,
    }


def start(stage: str, folder: Path, **keys: Any) -> subprocess.Popen[bytes]:
    """The stage as a program, in a session of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    values = stage_keys(stage, **keys) | {"output_dir": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    step = Step(name=stage, stage=stage, round=None, section="", keys={}, inputs={}, launch=Launch(device="cpu"))
    command = command_line.launch_command(step, folder)
    env = command_line.environment(step, folder, folder)
    return subprocess.Popen(
        command, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def num_paid(folder: Path) -> int:
    file = folder / PAID_ANSWERS
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def test_a_killed_step_asks_for_no_answer_twice(tiny_model, tied_model, rows, tmp_path):
    """Seven of twenty verdicts are answered; the server counts who asks for what, before and after SIGKILL."""
    allowed = 7

    def script(request: Request) -> Action:
        return judge(by_text)(request) if len(server.requests) <= allowed else Hang()

    with ScriptedServer(script) as server:
        keys = annotating(server, tiny_model, tied_model, rows, concurrency=1)
        killed = start("annotate", tmp_path / "killed", **keys)
        assert within(PATIENCE, lambda: num_paid(tmp_path / "killed") == allowed)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait(PATIENCE)
        assert num_paid(tmp_path / "killed") == allowed and set(server.answered.values()) == {1}
        allowed = 10**6
        resumed = run_here("annotate", tmp_path / "killed", **keys)
        assert sum(server.answered.values()) == 20 and set(server.answered.values()) == {1}
    with ScriptedServer(judge(by_text)) as server:
        keys["endpoints"] = {"judge": server.endpoint()}
        once = run_here("annotate", tmp_path / "elsewhere" / "once", **keys)
    assert (tmp_path / "killed" / "pairs.train.jsonl").read_text() == (
        tmp_path / "elsewhere" / "once" / "pairs.train.jsonl"
    ).read_text()
    assert resumed.metrics == once.metrics


def test_sigterm_keeps_what_was_paid_for(tiny_model, tied_model, rows, tmp_path):
    def script(request: Request) -> Action:
        return Say("[[tie]]", after=0.1)

    with ScriptedServer(script) as server:
        keys = annotating(server, tiny_model, tied_model, rows, concurrency=2)
        stage = start("annotate", tmp_path / "run" / "step", **keys)
        assert within(PATIENCE, lambda: num_paid(tmp_path / "run" / "step") >= 2)
        os.kill(stage.pid, signal.SIGTERM)
        assert stage.wait(PATIENCE) == 143
        assert num_paid(tmp_path / "run" / "step") == sum(server.answered.values()) < 20  # open ones were waited for
        outcome = read_json(tmp_path / "run" / "step" / "outcome.json") or {}
        assert outcome["hint"].endswith("the answers that were paid for are kept")


def test_a_budget_that_ends_in_the_middle_is_raised_and_the_step_goes_on(tiny_model, tied_model, rows, tmp_path):
    folder, price = tmp_path / "run" / "step", {"input": 1000.0, "output": 1000.0}  # 0.22 for a verdict
    with ScriptedServer(judge(by_text)) as server:
        keys = annotating(server, tiny_model, tied_model, rows, price=price, budget={"money": 4.0})
        assert call_stage("annotate", folder, **keys) == 1
        cause = (read_json(folder / "outcome.json") or {})["cause"]
        assert "the budget of 4 is reached" in cause and "--set endpoints.judge.budget.money=8" in cause
        assert 0 < num_paid(folder) < 20 and num_paid(folder) * 0.22 <= 4.0
        keys["endpoints"]["judge"]["budget"] = {"money": 400.0}
        record = run_here("annotate", folder, **keys)
        assert len(server.requests) == 20 and set(server.answered.values()) == {1}
    assert record.metrics["endpoint_judge_money"] == 20 * 0.22


def test_pairs_have_the_judges_strength_and_its_reasons_are_kept(tiny_model, tied_model, rows, tmp_path):
    with ScriptedServer(judge(by_length)) as server:
        keys = annotating(server, tiny_model, tied_model, rows, model="judge-1")
        record = run_here("annotate", tmp_path / "run" / "step", **keys)
    pairs = read_pairs([tmp_path / "run" / "step" / "pairs.train.jsonl"]).rows
    assert {pair.strength for pair in pairs} == {"slightly_better"}
    shown = [(pair.chosen[0].content.strip(), pair.rejected[0].content.strip()) for pair in pairs]
    assert shown and all(len(chosen) > len(rejected) for chosen, rejected in shown)
    said = (tmp_path / "run" / "step" / "comparisons.jsonl").read_text()
    assert said.count("Both were read.") == 2 * record.metrics["annotator_comparisons"]  # pyright: ignore
    assert str(record.metrics["annotator"]).startswith("judge-1, rubric ")
    assert record.metrics["annotator_prefers_longer"] == 1.0


def test_a_model_folder_judges_by_the_same_interface(tiny_model, tied_model, rows, tmp_path):
    """A tiny random model gives no verdict; every one is counted, and the prompts are dropped for that reason."""
    keys = {
        "prompts": [rows / "prompts.jsonl"],
        "policies": [tiny_model, tied_model],
        "annotator_llm": tied_model,
        "judge_max_tokens": 4,
        "max_new_tokens": 6,
        "num_prompts": 2,
    }
    assert call_stage("annotate", tmp_path / "step", **keys) == 2
    cause = (read_json(tmp_path / "step" / "outcome.json") or {})["cause"]
    assert cause.startswith("no pair is left of 2 prompts: unparsable_verdict 2")


def test_a_teacher_behind_an_endpoint_answers_beside_the_policy(tiny_model, tiny_reward_model, rows, tmp_path):
    def script(request: Request) -> Action:
        is_second = "Japan" in request["messages"][-1]["content"]
        return Fail(400) if is_second else Say("It is a city that everybody knows.")

    with ScriptedServer(script) as server:
        record = run_here(
            "rejection_sampling",
            tmp_path / "run" / "step",
            prompts=[rows / "prompts.jsonl"],
            policies=[tiny_model],
            other_policies=["teacher"],
            endpoints={"teacher": server.endpoint(model="teacher-1")},
            reward_model=tiny_reward_model,
            num_answers=4,
            max_new_tokens=8,
            min_answer_tokens=2,
            keep_unfinished=True,
        )
        assert {request["model"] for request in server.requests} == {"teacher-1"}
    groups = read_rows(tmp_path / "run" / "step" / "candidates.jsonl", Candidates)
    by_policy = Counter(candidate.policy for group in groups for candidate in group.candidates)
    assert by_policy == {str(tiny_model): 20, "teacher": 20}
    taught = [one for group in groups for one in group.candidates if one.policy == "teacher" and one.text]
    assert taught and all(one.num_tokens > 5 and one.ended for one in taught)  # in tokens of the policy's template
    winners = read_rows(tmp_path / "run" / "step" / "winners.train.jsonl", Conversation)
    assert "It is a city that everybody knows." in {row.messages[-1].content for row in winners}
    assert record.metrics["endpoint_teacher_model"] == "teacher-1"


def test_policies_are_compared_directly_with_earlier_ones_and_a_baseline(tiny_model, tied_model, rows, tmp_path):
    def script(request: Request) -> Action:
        is_judged = "<answer A" in request["messages"][-1]["content"]
        return judge(by_text)(request) if is_judged else Say("M")

    folders = [tmp_path / "run" / name for name in ("a", "b")]
    with ScriptedServer(script) as server:
        common = {
            "prompts": [rows / "prompts.jsonl"],
            "judge_llm": "judge",
            "baseline": "rival",
            "endpoints": {"judge": server.endpoint(), "rival": server.endpoint(model="rival-1")},
            "num_answers": 2,
            "max_new_tokens": 6,
        }
        first = run_here("evaluate_policy", folders[0], model_name_or_path=tiny_model, policy_step="a", **common)
        num_first = len(server.requests)
        later = {"first_policy": tiny_model, "previous": folders[:1], **common}
        second = run_here("evaluate_policy", folders[1], model_name_or_path=tied_model, policy_step="b", **later)
        # The rival's 20 answers are paid for once; the one earlier policy is first, previous and best: judged once.
        assert (num_first, len(server.requests) - num_first) == (20 + 2 * 20, 2 * 20 + 2 * 20)
    one, two = ([group.candidates for group in read_rows(folder / "answers.jsonl", Candidates)] for folder in folders)
    points = [
        (b.text.strip() > a.text.strip()) + 0.5 * (b.text.strip() == a.text.strip())
        for group_a, group_b in zip(one, two, strict=True)
        for a, b in zip(group_a, group_b, strict=True)
    ]
    expected = sum(points) / len(points)
    assert first.metrics["judge_mean"] == 0.5 and first.metrics["win_rate_vs_first"] is None
    assert second.metrics["judge_mean"] == second.metrics["win_rate_vs_first"] == expected
    assert second.metrics["win_rate_vs_best"] == expected and second.metrics["score_gain_vs_best"] == expected - 0.5
    assert [score for group in two for score in (one.score for one in group)] == points
    rival = [(b.text.strip() > "M") + 0.5 * (b.text.strip() == "M") for group in two for b in group]
    assert second.metrics["win_rate_vs_baseline"] == sum(rival) / len(rival)
    low, rate, high = (second.metrics[f"lc_win_rate_vs_baseline{end}"] for end in ("_low", "", "_high"))
    assert isinstance(low, float) and isinstance(rate, float) and isinstance(high, float) and low <= rate <= high
    assert second.metrics["gate"] == ("accept" if expected > 0.5 else "keep")
    assert second.metrics["judge_position_consistency"] == 1.0 and second.metrics["judge_unparsable"] == 0
