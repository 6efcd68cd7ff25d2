"""The preflight: what a library would refuse hours later is one line before the first step."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from commands import preflight as trials
from data_schemas.errors import ConfigError
from data_schemas.files import read_json
from pipeline.launch import preflight as launch
from pipeline.launch.preflight import RESULT, make_request, preflight
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.state.run import Run
from tests.patience import PATIENCE
from tests.stage_runs import run_here
from tests.toy_rows import pair, write_jsonl

SCORES = "def score(prompt, answer, ended):\n    return float(len(answer))\n"


@pytest.fixture
def plan_run(tmp_path, tiny_base, monkeypatch):
    """-> a Run of a recipe of one round on a tiny base model, with these sections."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pairs.jsonl", [pair(number) for number in range(20)])
    (tmp_path / "scores.py").write_text(SCORES)

    def plan(**sections: Any) -> Run:
        recipe: dict[str, Any] = {
            "name": "mine",
            "rounds": 1,
            "launch": {"device": "cpu"},
            "base_model": str(tiny_base),
            "prepare_base": {"chat_template": "chatml"},
            "data": {"preferences": ["pairs.jsonl"], "chosen_as_instructions": 0.5},
            "evaluate_policy": {"judge_function": "scores:score"},
            "defaults": {"report_to": "none", "bf16": False, "max_length": 128},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe | sections))
        loaded = load_recipe(path)
        return Run.of(loaded, make_plan(loaded))

    return plan


def test_a_section_is_tried_once_however_many_rounds_and_numbers_it_has(plan_run):
    run = plan_run(
        rounds=3, by_round={2: {"dpo": {"beta": 0.3}}, 3: {"dpo": {"loss_type": ["ipo"], "loss_weights": [1.0]}}}
    )
    tried = [(trial["stage"], trial["step"]) for trial in make_request(run)["trials"]]
    assert [step for stage, step in tried if stage == "dpo"] == ["round-1.dpo", "round-3.dpo"]
    assert [step for stage, step in tried if stage == "sft"] == ["round-0.sft"]


def test_only_what_is_selected_is_tried(plan_run):
    run = replace(plan_run(), selected=frozenset({"prepare_data", "round-0.sft"}))
    assert [trial["step"] for trial in make_request(run)["trials"]] == ["round-0.sft"]


def test_what_a_library_refuses_is_one_line_with_section_and_key(plan_run):
    run = plan_run(
        sft={"use_peft": True, "lora_target_modules": ["no_such_module"]},
        dpo={"lr_scheduler_type": "cosine_with_min_lr"},  # needs lr_scheduler_kwargs
        rl={"optim": "adamw_torch", "optim_args": "betas"},  # a name without a value
        round_stages=["annotate", "reward_model", "sft", "dpo", "rl"],
    )
    with pytest.raises(ConfigError) as raised:
        preflight(run)
    message = str(raised.value)
    assert "\n" not in message and "Traceback" not in message
    assert "sft.lora_target_modules=['no_such_module']" in message
    assert "dpo.lr_scheduler_type=" in message, message
    assert "rl.optim_args=" in message, message
    assert "reward_model" not in message and "--no-preflight" in message
    assert not (run.recipe.folder / RESULT).exists()


def test_a_trial_on_a_file_that_is_not_hashed_yet_is_not_kept(plan_run, monkeypatch):
    """As a large base model in `check`: another one in its place would have the same digest."""
    run, started = plan_run(), []
    monkeypatch.setattr(launch, "_call", lambda *_: started.append(1) or (0, "", ""))
    name = next(step.name for step in run.steps if step.stage == "prepare_base")
    run.identities[name] = replace(run.identities[name], fingerprint=None)
    preflight(run)
    preflight(run)
    assert len(started) == 2 and (read_json(run.recipe.folder / RESULT) or {}) == {"passed": []}


def test_a_folder_that_cannot_be_written_is_no_error(plan_run, monkeypatch, capsys):
    monkeypatch.setattr(launch, "_call", lambda *_: (0, "", ""))
    run = plan_run()
    run.recipe.folder.parent.mkdir(exist_ok=True)
    run.recipe.folder.symlink_to("/proc/no/such/folder")
    preflight(run)
    assert capsys.readouterr().err.count("\n") == 1 and not (run.recipe.folder / RESULT).exists()
    run.recipe.folder.unlink()


def test_a_recipe_that_passed_is_not_tried_again_until_it_changes(plan_run, monkeypatch):
    preflight(plan_run())
    run = plan_run(dpo={"beta": 0.2})
    assert list(read_json(run.recipe.folder / RESULT) or {}) == ["passed"]
    started: list[list[str]] = []

    def call(command: Sequence[str], *words: object) -> tuple[int, str, str]:
        started.append([trial["section"] for trial in json.loads(Path(command[-1]).read_text())["trials"]])
        return 0, "", ""

    monkeypatch.setattr(launch, "_call", call)
    preflight(plan_run())
    assert not started
    preflight(run)  # only what has changed
    assert started == [["dpo"]]
    preflight(run)
    preflight(plan_run())
    assert len(started) == 1  # both are known
    preflight(plan_run(prepare_base={"pad_to_multiple_of": 64}))
    assert len(started) == 2 and len(started[1]) > 1  # another model is another trial of every section
    preflight(plan_run())
    request = launch.make_request(run)
    moved = request | {"tokenizer": {"path": "prepared", "is_prepared": True}}
    for trial in request["trials"]:  # the tokenizer that prepare_base has written is that which was tried
        assert launch.digest_of(run, moved, trial) == launch.digest_of(run, request, trial)


def test_a_trial_that_takes_too_long_is_reported_and_tried_again(plan_run, tmp_path, monkeypatch, capfd):
    """On a busy machine: it has neither passed nor been refused."""
    monkeypatch.setattr(trials, "SECONDS_A_TRIAL", 0.1)
    monkeypatch.setattr(trials, "run_trial", lambda *words, **keys: time.sleep(PATIENCE))
    run = replace(plan_run(), selected=frozenset({"round-1.dpo"}))
    assert not list(trials.try_all(make_request(run), tmp_path))
    printed = capfd.readouterr().out.splitlines()
    assert printed[0] == "not tried: dpo: it took more than 0.1 seconds; is the machine busy?"
    monkeypatch.setattr(launch, "_call", lambda *words: (0, "\n".join(printed[:1]), ""))
    preflight(run)
    assert "the recipe was not tried on a small model: dpo: it took more than 0.1 seconds" in capfd.readouterr().err
    assert not (run.recipe.folder / RESULT).exists()


def test_rows_beyond_the_positions_of_the_model_are_refused(plan_run, tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "short")
    config = tmp_path / "short" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 20}))
    with pytest.raises(
        ConfigError, match=r"sft .*rows are longer than the model's 20 positions, the longest has \d+ tok"
    ):
        run = plan_run(base_model=str(tmp_path / "short"), rounds=0)
        step = run.steps[0]
        run_here("prepare_data", run.folder(step.name), **run.stage_config(step))
        preflight(run)


def test_reward_models_are_tried_on_the_model_that_they_start_from(plan_run, tiny_base, tmp_path, capfd):
    """A GPT-2, whose matrices have other names than those of the Llama that the policy is."""
    shutil.copytree(tiny_base, tmp_path / "other")
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 100}
    config = GPT2Config(vocab_size=len(AutoTokenizer.from_pretrained(tiny_base)), **sizes)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "other")
    adapters = {"use_peft": True, "lora_target_modules": ["c_attn"]}
    run = plan_run(reward_model_from=str(tmp_path / "other"), reward_model=adapters)
    preflight(run)
    assert "  tried reward_model" in capfd.readouterr().err.splitlines()
    with pytest.raises(ConfigError, match=r"reward_model\.lora_target_modules=\['c_attn'\]"):
        preflight(plan_run(reward_model=adapters))
    config.n_positions = 60
    config.save_pretrained(tmp_path / "other")
    step = run.steps[0]
    run_here("prepare_data", run.folder(step.name), **run.stage_config(step))
    with pytest.raises(ConfigError, match=r"reward_model .*longer than the model's 60 positions") as raised:
        preflight(plan_run(reward_model_from=str(tmp_path / "other"), reward_model=adapters))
    assert "dpo" not in str(raised.value)


def test_the_model_that_paraphrases_is_tried_and_an_endpoint_is_not(plan_run, tiny_base, capfd):
    run = plan_run(paraphrase={"paraphrase_llm": str(tiny_base), "back_translations": ["German"]})
    preflight(replace(run, selected=frozenset({"paraphrase"})))
    assert capfd.readouterr().err.splitlines()[1:] == ["  tried paraphrase"]
    endpoints = {"teacher": {"base_url": "http://127.0.0.1:1/v1", "model": "t"}}
    run = plan_run(paraphrase={"paraphrase_llm": "teacher"}, endpoints=endpoints)
    assert not make_request(replace(run, selected=frozenset({"paraphrase"})))["trials"]


def test_functions_of_the_user_are_not_called(plan_run, tmp_path: Path, capfd):
    (tmp_path / "scores.py").write_text("def score(prompt, answer, ended):\n    open('called', 'w')\n    return 1.0\n")
    stages = ["reward_model", "rejection_sampling", "sft", "rl"]
    vllm = {"engine": "vllm", "vllm": {"python": "/gone/python"}}  # this is not started, either
    preflight(plan_run(round_stages=stages, rl={"reward_functions": ["scores:score"], "num_generations": 4, **vllm}))
    assert "not tried" not in capfd.readouterr().err
    assert not (tmp_path / "called").exists()
