"""summary.json: its schema, and a reason for every null."""

from pipeline.state.summary import metrics_by_tag


def test_the_summary_has_its_schema_and_a_reason_for_every_null(world):
    world.run()
    summary = world.summary()
    assert list(summary) == ["name", "state", "steps", "rounds", "best_policy", "recipe"]
    assert summary["state"] == "done"
    assert list(summary["steps"][0]) == [
        "name",
        "stage",
        "round",
        "folder",
        "fingerprint",
        "state",
        "seconds",
        "metrics",
        "warnings",
        "inputs",
        "cost",
    ]
    rows = summary["rounds"]
    assert [(row["round"], row["policy"], row["gold_mean"]) for row in rows] == [
        (0, "round-0.sft", 0.0),
        (1, "round-1.dpo", 1.0),
    ]
    for row in rows:
        assert {name for name, value in row.items() if value is None} == set(row["reasons"])
    assert rows[0]["reasons"]["reward_accuracy"] == "round 0 has no reward_model"
    assert rows[0]["reasons"]["win_rate_vs_first"] == "there is no earlier policy"
    assert rows[1]["sft_eval_loss"] == 1.5


def test_numbers_by_tag_are_read_from_the_names_of_an_evaluations_metrics():
    metrics = {"judge_mean": 1.0, "tag/math/judge_mean": 0.5, "tag/a/b/prompts": 3}
    assert metrics_by_tag(metrics) == {"math": {"judge_mean": 0.5}, "a/b": {"prompts": 3}}
