"""evaluate_policy with people: it waits, and then shows the corrected win rate beside the judge's."""

import json

from data_schemas.files import read_json
from data_schemas.people import FOLDER, Batch
from tests.data_schemas.test_people import lines_of
from tests.stage_runs import call_stage, run_here

JUDGE = "def score(prompt, answer, ended):\n    return float(len(answer))\n"


def test_an_evaluation_waits_for_people_who_then_correct_its_win_rate(
    tiny_model, tied_model, rows, tmp_path, monkeypatch
):
    (tmp_path / "judge.py").write_text(JUDGE)
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    keys = {
        "prompts": [rows / "prompts.jsonl"],
        "judge_function": "judge:score",
        "num_answers": 2,
        "max_new_tokens": 8,
        "people": ["ana", "ben"],
        "people_budget": 8,
        "people_overlap": 0.5,
    }
    first = run_here("evaluate_policy", tmp_path / "first", model_name_or_path=tiny_model, **keys)
    assert (
        first.metrics["corrected_win_rate"] is None
        and first.reasons["corrected_win_rate"] == "this is the first policy"
    )
    keys |= {"model_name_or_path": tied_model, "previous": [tmp_path / "first"]}
    folder = tmp_path / "second"
    assert call_stage("evaluate_policy", folder, **keys) == 3
    outcome = read_json(folder / "outcome.json") or {}
    assert outcome["kind"] == outcome["state"] == "waiting" and "(ana 0 of 6, ben 0 of 6 done)" in outcome["cause"]
    batch = Batch.read(folder / FOLDER)
    assert batch is not None
    for name, shown in batch.people.items():  # everybody prefers the first policy's answer
        labels = [
            {"row": one.row, "first": one.first, "verdict": "other", "strength": "better", "seconds": 2.0}
            for one in shown
        ]
        head = {"run": batch.run, "step": batch.step, "batch": batch.batch, "person": name}
        (folder / FOLDER / f"{name}.jsonl").write_text("".join(lines_of(labels, **head)))
    second = run_here("evaluate_policy", folder, **keys)
    assert second.metrics["corrected_win_rate"] == 0.0 and second.metrics["judged_win_rate"] != 0.0
    assert second.metrics["judged_win_rate"] == second.metrics["win_rate_vs_best"]
    assert (second.metrics["people_labels"], second.metrics["people_rows"]) == (12, 8)
    lines = (folder / "labels.jsonl").read_text().splitlines()
    assert len(lines) == 12 and {json.loads(line)["person"] for line in lines} == {"ana", "ben"}
