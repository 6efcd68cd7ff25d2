"""evaluate_tasks: a policy's scores on benchmarks, and the gate of evaluate_policy that reads them."""

import json

import pytest

from data_schemas.artifact import Artifact, files_below
from data_schemas.errors import ConfigError, DataError
from engine.tasks.changes import changes_to_best
from engine.tasks.grades import Grade, Points, read_grades, write_grades
from tests.stage_runs import run_here

FUNCTION = {"name": "add", "parameters": {"type": "dict", "properties": {"a": {"type": "integer"}}}}
ROWS = {
    "ifeval": {"prompt": "Say hi.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    "gsm8k": {"question": "1 + 1?", "answer": "#### 2"},
    "function_calls": {"id": "a", "question": "Add 1.", "function": [FUNCTION], "ground_truth": [{"add": {"a": [1]}}]},
    "multiple_choice": {"question": "Is it?", "choices": ["yes", "no"], "answer": 0},
}


@pytest.fixture
def files(tmp_path):
    for name, row in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return {name: [tmp_path / f"{name}.jsonl"] for name in ROWS}


def test_a_policy_is_scored_on_every_task_and_compared_with_the_first(tiny_model, files, tmp_path):
    common = {"model_name_or_path": tiny_model, "max_new_tokens": 6, **files}
    first = run_here("evaluate_tasks", tmp_path / "first", policy_step="a", **common)
    again = run_here("evaluate_tasks", tmp_path / "again", policy_step="b", first=tmp_path / "first", **common)
    grades = read_grades(tmp_path / "first")
    assert [grade.task for grade in grades] == list(ROWS)
    assert grades[-1].answer in ("yes", "no")
    for grade in grades:
        for measure, (won, of) in grade.points.items():
            assert first.metrics[measure] == won / of
            low, high = first.metrics[f"{measure}_low"], first.metrics[f"{measure}_high"]
            assert isinstance(low, float) and isinstance(high, float) and low <= won / of <= high
            assert again.metrics[f"{measure}_vs_first"] == 0.0
    assert first.metrics["gsm8k_questions"] == 1 and "gsm8k_vs_first" not in first.metrics
    assert again.metrics["gsm8k_vs_first_low"] == pytest.approx(-3.8415 / 4.8415, abs=1e-3)  # of one question: little


def evaluation(folder, policy: str, scores: dict[str, list[int]]) -> str:
    """The folder of an evaluation on tasks with these points of every question."""
    folder.mkdir()
    grades = [
        Grade(task, f"{task}-{place}", {task: Points(float(won))})
        for task, all_won in scores.items()
        for place, won in enumerate(all_won)
    ]
    write_grades(folder, grades)
    Artifact(
        stage="evaluate_tasks",
        step="",
        recipe_version=1,
        keys={"policy_step": policy},
        inputs={},
        outputs={"grades": "grades.jsonl"},
        files=files_below(folder, {"grades": "grades.jsonl"}),
        metrics={},
    ).write(folder)
    return str(folder)


def test_the_task_that_fell_most_from_the_best_policy_is_named(tmp_path):
    a = evaluation(tmp_path / "a", "a", {"math": [1] * 60 + [0] * 40, "calls": [1] * 50 + [0] * 50})
    b = evaluation(tmp_path / "b", "b", {"math": [0] * 100, "calls": [0] * 100})
    c = evaluation(tmp_path / "c", "c", {"math": [1] * 50 + [0] * 50, "calls": [1] * 51 + [0] * 49})
    metrics = changes_to_best([a, b, c], "a", seed=0)
    assert metrics["most_fallen_task"] == "math" and metrics["math_vs_best"] == pytest.approx(-0.1)
    assert metrics["most_task_fall"] == -float(metrics["math_vs_best_low"] or 0) > 0.1
    assert metrics["calls_vs_best"] == pytest.approx(0.01)
    assert changes_to_best([a], None, seed=0) == {}
    with pytest.raises(ConfigError, match="no folder is of z"):
        changes_to_best([a, c], "z", seed=0)
    other = evaluation(tmp_path / "d", "d", {"math": [1] * 99, "calls": [1] * 100})
    with pytest.raises(ConfigError, match="math: the best policy answered other questions"):
        changes_to_best([a, other], "a", seed=0)
    with pytest.raises(DataError, match="no finished evaluation on tasks"):
        changes_to_best([str(tmp_path)], "a", seed=0)


@pytest.mark.parametrize(("limit", "gate"), [(0.2, "accept"), (0.05, "keep")])
def test_the_gate_keeps_the_best_policy_where_a_task_falls(
    tied_model, tiny_model, rows, tmp_path, monkeypatch, limit, gate
):
    """The second policy gains by the judge, and one task falls by 4 of 100 points, at most 10 with 95 % confidence."""
    (tmp_path / "judge.py").write_text("def score(prompt, answer, ended):\n    return float(len(answer))\n")
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    common = {
        "prompts": [rows / "prompts.jsonl"],
        "judge_function": "judge:score",
        "num_answers": 1,
        "max_new_tokens": 6,
        "gate_min_gain": None,
        "gate_max_task_fall": limit,
    }
    before = evaluation(tmp_path / "tasks-a", "a", {"math": [1] * 50 + [0] * 50})
    after = evaluation(tmp_path / "tasks-b", "b", {"math": [1] * 46 + [0] * 54})
    first, second = tmp_path / "first", tmp_path / "second"
    run_here("evaluate_policy", first, model_name_or_path=tiny_model, policy_step="a", tasks=[before], **common)
    record = run_here(
        "evaluate_policy",
        second,
        model_name_or_path=tied_model,
        policy_step="b",
        tasks=[before, after],
        previous=[first],
        **common,
    )
    assert record.metrics["gate"] == gate and "math falls by at most 0.09" in str(record.metrics["gate_reason"])
    assert record.choices[0].step == ("b" if gate == "accept" else "a")
