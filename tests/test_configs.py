"""What ships in configs/: recipes that plan, stage configs that a stage takes, profiles that say only how to run."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_schemas.stage_keys import check_keys, check_required, parse_command_line, read_yaml, stages
from pipeline.checks import check_recipe
from pipeline.launching import ROOT
from pipeline.plan import make_plan
from pipeline.recipe import Launch, load_recipe
from pipeline.runner import Run

CONFIGS = ROOT / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
STAGE_CONFIGS = sorted(CONFIGS.glob("stages/*.yaml"))
PROFILES = sorted(CONFIGS.glob("accelerate/*.yaml"))


def name_of(path: Path) -> str:
    return path.stem


def test_something_ships():
    assert {"demo", "smollm2_harmless"} <= {path.stem for path in RECIPES}
    # Every stage but the one whose inputs are options of the command line, and has no torch.
    assert {path.stem for path in STAGE_CONFIGS} >= set(stages()) - {"prepare_data"}
    assert len(PROFILES) == 6


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_shipped_recipe_plans_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # What a recipe asks its user to give.
    pair = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go"}
    (tmp_path / "harmless.jsonl.gz").write_bytes(gzip.compress(json.dumps(pair).encode()))
    recipe = load_recipe(path)
    steps = make_plan(recipe)
    check_recipe(recipe, steps)
    assert (recipe.name, recipe.rounds) == (path.stem, 2)
    assert [step.name for step in steps][-6:] == [
        "round-2.annotate", "round-2.reward_model", "round-2.rejection_sampling", "round-2.sft", "round-2.dpo",
        "round-2.evaluate_policy",
    ]  # fmt: skip
    assert recipe.launch.device == "cpu"
    planned = Run.of(recipe, steps)
    assert {planned.decide(step).why for step in steps} == {"never ran"}
    assert not recipe.folder.exists()


@pytest.mark.parametrize("path", STAGE_CONFIGS, ids=name_of)
def test_a_shipped_stage_config_is_taken_by_its_stage(path):
    values = check_keys(path.stem, read_yaml(path), where=str(path))
    check_required(path.stem, values, where=str(path))
    assert values["output_dir"] == f"runs/by-hand/{path.stem}"
    assert parse_command_line(path.stem, ["--config", str(path), "--seed", "3"]) == values | {"seed": 3}


@pytest.mark.parametrize("path", STAGE_CONFIGS, ids=name_of)
def test_a_shipped_stage_config_names_what_the_demo_makes(path):
    steps = {step.name: step.stage for step in make_plan(load_recipe(CONFIGS / "demo.yaml"))}
    named = [value for value in _leaves(read_yaml(path)) if str(value).startswith("runs/demo/")]
    assert named
    for value in named:
        _, _, links, step, *inside = value.split("/")
        assert links == "steps"
        assert step in steps, value
        assert inside in ([], ["model"]) or inside[0].endswith(".jsonl"), value


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict | list):
        return [leaf for item in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(item)]
    return [value]


@pytest.mark.parametrize("path", PROFILES, ids=name_of)
def test_a_profile_says_only_how_to_run(path):
    profile = yaml.safe_load(path.read_text())
    assert Launch(profile=path.stem, num_processes=2).profile == path.stem  # pyright: ignore[reportArgumentType]
    keys = set(profile) | set(profile.get("deepspeed_config", {}))
    part_of_the_result = ("precision", "accumulation", "clipping", "dynamo", "fp8", "seed")
    assert not [key for key in keys for word in part_of_the_result if word in key]
    assert profile["num_machines"] == 1
    assert profile["use_cpu"] is False
