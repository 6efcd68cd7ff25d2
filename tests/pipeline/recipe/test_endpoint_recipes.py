"""Endpoints in a recipe: who uses them, what of them is a step's identity, and what is written of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_schemas.errors import ConfigError
from pipeline.launch.checks import check_recipe
from pipeline.launch.machine import check_machine
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe, shown_setting
from pipeline.report.rounds import rows
from pipeline.report.terminal import sources
from pipeline.state.fingerprint import FileHashes, differences, identities
from pipeline.steps import Model, Served
from tests.toy_rows import write_jsonl

RECIPE = """
name: mine
rounds: 1
base_model: acme/base
launch: {device: cpu}
endpoints:
  big: {base_url: 'http://127.0.0.1:9/v1', model: big-1, api_key_env: SOME_KEY}
  other: {base_url: 'http://127.0.0.1:9/v1', model: other-1}
data: {instructions: chats.jsonl}
annotate: {annotator_llm: big, other_policies: [other], num_answers: 3}
evaluate_policy: {judge_llm: big, baseline: acme/rival}
round_stages: [annotate, dpo]
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "chats.jsonl", [{"prompt": f"question {number}", "completion": "a"} for number in range(20)])
    (tmp_path / "mine.yaml").write_text(RECIPE)

    def load(*settings: str) -> Any:
        loaded = load_recipe(tmp_path / "mine.yaml", settings)
        return loaded, {step.name: step for step in make_plan(loaded)}

    return load


def test_sections_name_endpoints_and_their_steps_get_only_those(recipe):
    loaded, steps = recipe()
    check_recipe(loaded, list(steps.values()))
    annotate, evaluation = steps["round-1.annotate"], steps["round-0.evaluate_policy"]
    (annotator,) = annotate.inputs["annotator_llm"]
    assert isinstance(annotator, Served) and annotator.endpoint.model == "big-1"
    assert set(annotate.keys["endpoints"]) == {"big", "other"} and set(evaluation.keys["endpoints"]) == {"big"}
    assert evaluation.inputs["baseline"] == [Model("acme/rival")]
    assert "endpoints" not in steps["round-1.dpo"].keys
    assert "judge" not in steps  # a judge is named: none is trained
    assert {"big-1", "other-1"} <= set(sources(annotate))
    written = annotate.keys["endpoints"]["big"]  # the name of the variable, never the key
    assert written == {"base_url": "http://127.0.0.1:9/v1", "model": "big-1", "api_key_env": "SOME_KEY"}


def identity(recipe: Any, folder: Path, *settings: str) -> Any:
    _, steps = recipe(*settings)
    return steps, identities(list(steps.values()), hashes=FileHashes(folder / "hashes"), function_folder=folder)


def changed(recipe: Any, folder: Path, *settings: str) -> set[str]:
    (_, before), (_, after) = identity(recipe, folder), identity(recipe, folder, *settings)
    return {name for name in before if before[name].fingerprint != after[name].fingerprint}


@pytest.mark.parametrize(
    "setting",
    [
        "endpoints.big.base_url=https://elsewhere.example/v1",
        "endpoints.big.api_key_env=OTHER_KEY",
        "endpoints.big.concurrency=32",
        "endpoints.big.price={input: 1, output: 2}",
        "endpoints.big.budget={tokens: 100}",
        "endpoints.big.timeout_seconds=5",
    ],
)
def test_the_address_the_key_and_the_budget_are_no_identity(recipe, tmp_path, setting):
    assert changed(recipe, tmp_path, setting) == set()


@pytest.mark.parametrize(
    ("setting", "steps"),
    [
        ("endpoints.big.model=big-2", {"round-1.annotate", "round-0.evaluate_policy"}),
        ("endpoints.big.request={reasoning_effort: low}", {"round-1.annotate", "round-0.evaluate_policy"}),
        ("annotate.rubric=Only spelling counts.", {"round-1.annotate"}),
        ("evaluate_policy.judge_temperature=0.5", {"round-0.evaluate_policy"}),
        ("evaluate_policy.judge_max_tokens=99", {"round-0.evaluate_policy"}),
    ],
)
def test_the_model_the_rubric_and_the_sampling_settings_are(recipe, tmp_path, setting, steps):
    assert steps <= changed(recipe, tmp_path, setting)


def test_another_name_of_the_endpoint_is_the_same_step(recipe, tmp_path):
    _, before = identity(recipe, tmp_path)
    text = RECIPE.replace("big:", "huge:").replace("_llm: big", "_llm: huge")
    (tmp_path / "mine.yaml").write_text(text)
    _, after = identity(recipe, tmp_path)
    assert {name: one.fingerprint for name, one in before.items()} == {n: one.fingerprint for n, one in after.items()}


def test_a_changed_model_is_reported_by_its_names(recipe, tmp_path):
    _, before = identity(recipe, tmp_path)
    steps, after = identity(recipe, tmp_path, "endpoints.big.model=big-2")
    name = "round-1.annotate"
    (line, *_) = differences(steps[name], before[name].content, after[name].content)
    assert line == "input big big-1 -> big-2"


def test_a_key_that_is_not_set_stops_the_run_before_anything_is_launched(recipe, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    loaded, steps = recipe()
    with pytest.raises(ConfigError, match=r"endpoints\.big\.api_key_env: the environment variable SOME_KEY is not set"):
        check_machine(loaded, list(steps.values()))
    monkeypatch.setenv("SOME_KEY", "sk-1")
    check_machine(loaded, list(steps.values()))


def test_a_setting_of_an_endpoint_is_shown_without_its_value():
    assert shown_setting("endpoints.big.api_key=sk-1") == "endpoints.big.api_key=…"
    assert shown_setting("dpo.beta=0.2") == "dpo.beta=0.2"


def test_the_table_by_round_has_raw_and_controlled_win_rates_side_by_side():
    row: dict[str, Any] = {"round": 1, "policy": "p", "win_rate_vs_first": 0.6, "lc_win_rate_vs_first": 0.52}
    row |= {"lc_win_rate_vs_first_low": 0.45, "lc_win_rate_vs_first_high": 0.6}
    summary: Any = {"rounds": [json.loads(json.dumps(row)) | dict.fromkeys(MISSING)]}
    names = [name for name, _ in rows(summary)]
    place = names.index("wins vs first")
    assert names[place + 1] == "at equal length" and "wins vs baseline" not in names
    assert dict(rows(summary))["at equal length"] == ["0.520 [0.45, 0.60]"]


MISSING = (
    "judge_mean score_gain_vs_first win_rate_vs_previous proxy_mean proxy_accuracy best_by_proxy best_by_judge "
    "kl_to_first mean_answer_tokens ended_share distinct_2 reward_accuracy sft_eval_loss dpo_reward_accuracy"
).split()
