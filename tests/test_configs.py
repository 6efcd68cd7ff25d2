"""The files of configs/: recipes can be planned, stage configs are accepted, profiles set only how a step runs."""

import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from data_schemas.errors import ConfigError
from data_schemas.stage_command_line import parse_command_line
from data_schemas.stage_keys import check_keys, check_required, stages
from data_schemas.yaml_files import read_yaml
from pipeline.launch.checks import check_recipe
from pipeline.launch.command_line import ROOT
from pipeline.plan import BestPolicy, Output, Step, make_plan
from pipeline.recipe.schema import Recipe, load_recipe
from pipeline.recipe.sections import Launch
from pipeline.report.terminal import plan_tree
from pipeline.state.run import Run
from pipeline.unused import check_unused

CONFIGS = ROOT / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
STAGE_CONFIGS = sorted(CONFIGS.glob("stages/*.yaml"))
PROFILES = sorted(CONFIGS.glob("accelerate/*.yaml"))


def name_of(path: Path) -> str:
    return path.stem


def test_something_ships():
    assert {path.stem for path in RECIPES} == STAGES_OF_A_ROUND.keys() | ONE_PASS.keys()
    # Every stage except the one without torch, whose inputs are options of the command line.
    assert {path.stem for path in STAGE_CONFIGS} >= set(stages()) - {"prepare_data"}
    assert len(PROFILES) == 7


ALL_OF_THEM = ("annotate", "reward_model", "rejection_sampling", "sft", "dpo")
STAGES_OF_A_ROUND = {
    "demo": (2, ALL_OF_THEM),
    "smollm2_harmless": (2, ALL_OF_THEM),
    "llama3_8b": (6, ALL_OF_THEM),
    "llama3_70b_multinode": (6, ALL_OF_THEM),
    "tulu3_8b": (1, ("annotate", "dpo")),
    "online_dpo_8b": (3, ("annotate", "dpo")),
    "raft": (4, ("rejection_sampling", "sft")),
}
ONE_PASS = {  # a run without rounds -> its steps
    "sft": ["prepare_data", "prepare_base", "sft", "evaluate_policy"],
    "dpo": ["prepare_data", "prepare_base", "dpo", "evaluate_policy"],
    "reward_model": ["prepare_data", "prepare_base", "reward_model"],
    "pretrain": ["prepare_data", "pretrain"],
}
# What the recipes for GPUs need from their user.
GIVEN = {
    "llama3_8b": ("data.instructions=chats.jsonl", "data.preferences=harmless.jsonl.gz"),
    "llama3_70b_multinode": (
        "data.instructions=chats.jsonl",
        "data.preferences=harmless.jsonl.gz",
        "launch.main_process_ip=machine-0",
    ),
    "tulu3_8b": ("data.instructions=chats.jsonl", "data.preferences=harmless.jsonl.gz"),
    "online_dpo_8b": ("data.prompts=prompts.jsonl", "data.preferences=harmless.jsonl.gz"),
    "raft": ("data.prompts=prompts.jsonl", "evaluate_policy.judge_model=acme/another"),
}


@pytest.fixture
def given(tmp_path, monkeypatch) -> Path:
    """A working directory with what a recipe needs from its user: a base model and rows."""
    monkeypatch.chdir(tmp_path)
    pair = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go"}
    (tmp_path / "harmless.jsonl.gz").write_bytes(gzip.compress(json.dumps(pair).encode()))
    (tmp_path / "chats.jsonl").write_text('{"messages": []}')
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi"}')
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    return tmp_path


def planned(name: str) -> tuple[Recipe, dict[str, Step]]:
    settings = [*GIVEN[name], "base_model=base"] if name in GIVEN else []
    recipe = load_recipe(CONFIGS / f"{name}.yaml", settings)
    steps = make_plan(recipe)
    check_recipe(recipe, steps)
    return recipe, {step.name: step for step in steps}


@pytest.mark.parametrize("name", STAGES_OF_A_ROUND)
def test_a_shipped_recipe_plans_from_any_folder(name, given):
    recipe, steps = planned(name)
    rounds, of_a_round = STAGES_OF_A_ROUND[name]
    assert (recipe.name, recipe.rounds) == (name, rounds)
    last = [f"round-{rounds}.{stage}" for stage in (*of_a_round, "evaluate_policy")]
    assert [name for name in steps if not re.search(r"\.\d$", name)][-len(last) :] == last  # variants aside
    assert recipe.launch.device == ("gpu" if name in GIVEN else "cpu")
    run = Run.of(recipe, list(steps.values()))
    assert {run.decide(step).why for step in run.steps} == {"not run yet"}
    assert not recipe.folder.exists()


@pytest.mark.parametrize("name", ONE_PASS)
def test_a_recipe_of_one_stage_has_only_its_steps(name, given):
    settings = {"sft": "data.instructions=chats.jsonl", "pretrain": "data.documents=texts.txt"}
    (given / "texts.txt").write_text("A text.\n")
    words = [settings.get(name, "data.preferences=harmless.jsonl.gz"), "base_model=base"]
    recipe = load_recipe(CONFIGS / f"{name}.yaml", words)
    steps = make_plan(recipe)
    check_recipe(recipe, steps)
    assert (recipe.name, [step.name for step in steps]) == (name, ONE_PASS[name])
    assert check_unused(recipe, steps) == []


@pytest.mark.parametrize("name", GIVEN)
def test_a_recipe_without_its_data_reports_what_is_missing(name, given):
    with pytest.raises(ConfigError, match=r"(data\.\w+|who \w+).* is missing") as error:
        recipe = load_recipe(CONFIGS / f"{name}.yaml", ["base_model=base"])
        check_recipe(recipe, make_plan(recipe))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", GIVEN)
def test_every_key_of_a_published_recipe_has_its_source(name):
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    values = [line for line in lines if re.match(r" *[a-z_]+: +[^# ]", line) and not line.startswith("name:")]
    assert len(values) > 15
    assert [line for line in values if " # " not in line] == []


def test_six_rounds_of_llama_3_follow_the_paper(given):
    _, steps = planned("llama3_8b")
    base, human = Output("prepare_base", "model"), Output("prepare_data", "preferences.train")
    assert [name for name in steps if name.endswith(".evaluate_policy")] == [
        f"round-{number}.evaluate_policy" for number in range(7)
    ]
    for number in range(1, 7):
        stage = {name: steps[f"round-{number}.{name}"] for name in ALL_OF_THEM if f"round-{number}.{name}" in steps}

        def variants(section: str, number: int = number) -> list[Step]:
            """The variants of a section. Their average has the section's name, and is the next stage's input."""
            found = [steps[f"round-{number}.{section}.{place}"] for place in (1, 2)]
            assert steps[f"round-{number}.{section}"].inputs["models"] == [Output(one.name, "model") for one in found]
            return found

        best, second = (BestPolicy(f"round-{number - 1}.evaluate_policy", rank=rank) for rank in (0, 1))
        batches = [Output(f"round-{earlier}.annotate", "pairs.train") for earlier in range(2, number + 1)]
        # Human pairs are the first batch. Afterwards two answers from the best two policies are compared.
        assert ("annotate" in stage) == (number > 1)
        if number > 1:
            assert stage["annotate"].inputs["policies"] == [best, second]
        # The reward model is trained from the pretrained base, on all batches so far.
        for variant in variants("reward_model"):
            assert variant.inputs["model_name_or_path"] == [base]
            assert variant.inputs["train_data"] == [human, *batches]
        # Rejection sampling takes answers of the best policy so far, ranked by that reward model.
        assert stage["rejection_sampling"].inputs["policies"] == [best]
        assert stage["rejection_sampling"].inputs["reward_model"] == [Output(f"round-{number}.reward_model", "model")]
        assert bool(stage["rejection_sampling"].keys.get("system_prompts")) == (number >= 3)
        # SFT trains the pretrained base on the winners and the human data.
        winners = Output(f"round-{number}.rejection_sampling", "winners.train")
        for variant in variants("sft"):
            assert variant.inputs["model_name_or_path"] == [base]
            assert variant.inputs["train_data"] == [winners, Output("prepare_data", "instructions.train")]
        # DPO trains that SFT model on the most recent batch.
        for variant in variants("dpo"):
            assert variant.inputs["model_name_or_path"] == [Output(f"round-{number}.sft", "model")]
            assert "reference_model" not in variant.inputs
            assert variant.inputs["train_data"] == [[human, *batches][-1]]
        wanted = {"learning_rate": 1e-5, "beta": 0.1, "mask_formatting": True, "loss_weights": [1.0, 0.2]}
        first = variants("dpo")[0].keys
        assert {key: first[key] for key in wanted} == wanted


def test_the_printed_plan_shows_where_each_step_takes_its_inputs_from(given):
    recipe, steps = planned("llama3_8b")
    run = Run.of(recipe, list(steps.values()))
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(plan_tree(run, {step.name: run.decide(step) for step in run.steps}))
    text = console.export_text()
    assert "round-2.sft.1: not run yet  <- prepare_base, round-2.rejection_sampling, prepare_data\n" in text
    assert (
        "round-6.annotate: not run yet  <- prepare_data, best by round-5.evaluate_policy, second best by "
        "round-5.evaluate_policy, round-5.reward_model\n"
    ) in text
    assert "round-6.dpo.1: not run yet  <- round-6.sft, round-6.annotate\n" in text


def test_the_recipe_for_several_machines_starts_training_on_all_and_data_on_one(given):
    recipe, steps = planned("llama3_70b_multinode")
    assert (steps["round-1.dpo"].launch.num_machines, steps["round-1.dpo"].launch.num_processes) == (8, 64)
    assert steps["round-1.rejection_sampling"].launch.profile == "ddp"
    assert (steps["prepare_data"].launch.num_machines, steps["prepare_base"].launch.wrapper) == (1, None)
    assert "--nodes=8" in str(recipe.launch.wrapper)


@pytest.mark.parametrize("path", STAGE_CONFIGS, ids=name_of)
def test_a_shipped_stage_config_is_accepted_by_its_stage(path):
    values = check_keys(path.stem, read_yaml(path), where=str(path))
    check_required(path.stem, values, where=str(path))
    assert values["output_dir"] == f"runs/by-hand/{path.stem}"
    assert parse_command_line(path.stem, ["--config", str(path), "--seed", "3"]) == values | {"seed": 3}


@pytest.mark.parametrize("path", STAGE_CONFIGS, ids=name_of)
def test_a_shipped_stage_config_names_outputs_of_the_demo(path):
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
def test_a_profile_sets_only_how_to_run(path):
    profile = yaml.safe_load(path.read_text())
    assert Launch(profile=path.stem, num_processes=2).profile == path.stem  # pyright: ignore[reportArgumentType]
    keys = set(profile) | set(profile.get("deepspeed_config", {}))
    part_of_the_result = ("precision", "accumulation", "clipping", "dynamo", "fp8", "seed")
    assert not [key for key in keys for word in part_of_the_result if word in key]
    assert profile["num_machines"] == 1
    assert profile["use_cpu"] is False
