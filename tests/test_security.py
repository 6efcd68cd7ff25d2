"""Input from others is never executed, shown unescaped or used as a path, and secrets are not leaked."""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError, DataError
from data_schemas.files import read_json
from data_schemas.stage_keys import check_keys
from data_schemas.yaml_files import read_yaml
from engine.models.loading import load_causal, load_tokenizer
from engine.runtime import process
from pipeline import cli
from pipeline.launch.checks import check_model_folder
from tests.stage_runs import call_stage, launch, run_here
from tests.toy_rows import conversation, pair, write_jsonl

ESCAPE = "\x1b[2J\x9b31m"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> Any:
        return Path.touch, (self.crater,)


def conversations(rows: Path, **keys: Any) -> dict[str, Any]:
    data = {"train_data": [rows / "conversations.jsonl"], "eval_data": [rows / "conversations_eval.jsonl"]}
    return data | keys


# -- nothing is unpickled -------------------------------------------------------------------------------------------


def test_pickled_weights_are_refused_before_a_launch_and_by_the_stage(tiny_model, tmp_path):
    folder, crater = tmp_path / "model", tmp_path / "crater"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(crater)))
    with pytest.raises(
        DataError, match=r"base_model=.* has no weights in safetensors; loading pytorch_model.bin could run"
    ):
        check_model_folder(folder, where="base_model", needs_template=False)
    assert call_stage("prepare_base", tmp_path / "prepared", model_name_or_path=folder) == 2
    assert not crater.exists()
    assert "no file named model.safetensors" in read_json(tmp_path / "prepared" / "outcome.json")["cause"]


@pytest.mark.parametrize("planted", ["optimizer.pt", "rng_state.pth", "scaler.pt"])
def test_a_checkpoint_with_a_planted_file_is_not_opened(planted, tiny_model, rows, tmp_path, monkeypatch):
    folder, crater = tmp_path / "sft", tmp_path / "crater"
    keys = conversations(rows, model_name_or_path=tiny_model, max_steps=3, save_strategy="steps", save_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr("engine.training.run.check_weights", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call_stage("sft", folder, **keys) == 130
    newest = folder / "checkpoints" / "checkpoint-3"
    (newest / planted).write_bytes(pickle.dumps(Bomb(crater)))
    run_here("sft", folder, **keys)
    assert not crater.exists()
    logged = (folder / "log.txt").read_text()
    assert f"checkpoint-3 is not resumed from: {planted} " in logged and "resuming from step 2" in logged


def test_yaml_creates_no_objects(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: !!python/object/apply:os.mkdir [{tmp_path / 'crater'}]\n")
    with pytest.raises(ConfigError, match=r"recipe.yaml:1:7 is not YAML"):
        read_yaml(path)
    assert not (tmp_path / "crater").exists()


# -- code that comes with a model -----------------------------------------------------------------------------------


@pytest.fixture
def with_code(tiny_model, tmp_path, monkeypatch) -> Path:
    """A Llama whose class is in its own folder; importing it writes the file `crater`."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(process.TRUSTS_CODE, "")
    folder = tmp_path / "with_code"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": classes}))
    (folder / "mine.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(tmp_path / 'crater')!r}).touch()\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MineForCausalLM(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    return folder


def test_a_models_own_code_runs_only_where_it_is_trusted(with_code, rows, tmp_path):
    crater = tmp_path / "crater"
    assert call_stage("prepare_base", tmp_path / "refused", model_name_or_path=with_code) == 2
    assert not crater.exists()
    cause = read_json(tmp_path / "refused" / "outcome.json")["cause"]
    assert cause == f"{with_code} contains its own code, which is run only with trust_remote_code: true"

    run_here("prepare_base", tmp_path / "base", model_name_or_path=with_code, trust_remote_code=True)
    assert crater.exists()
    assert "code from the model's files may run in this process" in (tmp_path / "base" / "log.txt").read_text()
    keys = conversations(rows, model_name_or_path=tmp_path / "base" / "model")
    assert call_stage("sft", tmp_path / "untrusted", **keys) == 2
    record = run_here("sft", tmp_path / "sft", trust_remote_code=True, **keys)
    assert record.metrics["steps"] == 3


def test_the_environment_cannot_grant_trust(with_code, tmp_path, monkeypatch):
    monkeypatch.setenv(process.TRUSTS_CODE, "1")
    assert call_stage("prepare_base", tmp_path / "refused", model_name_or_path=with_code) == 2
    assert not (tmp_path / "crater").exists()


def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **recipe: Any) -> int:
    """`alignloop plan` in this process; its exit code."""
    monkeypatch.chdir(tmp_path)
    whole = {"name": "mine", "launch": {"device": "cpu"}, "evaluate_policy": {"judge_model": "owner/judge"}} | recipe
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole))
    monkeypatch.setattr(sys, "argv", ["alignloop", "plan", "recipe.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_plan_names_the_steps_that_run_a_models_code(tiny_model, rows, tmp_path, monkeypatch, capsys):
    recipe = {
        "base_model": str(tiny_model),
        "data": {"preferences": str(rows / "pairs.jsonl"), "instructions": str(rows / "conversations.jsonl")},
    }
    assert plan(tmp_path, monkeypatch, **recipe) == 0
    assert "trust_remote_code" not in capsys.readouterr().out
    assert plan(tmp_path, monkeypatch, **recipe, sft={"trust_remote_code": True}) == 0
    out = capsys.readouterr().out
    named = [line for line in out.splitlines() if "runs code from its model's files (trust_remote_code)" in line]
    assert len(named) == 3 and all(".sft: " in line for line in named)


# -- nothing leaks --------------------------------------------------------------------------------------------------


def test_no_secret_of_the_environment_is_in_any_file_or_line(tiny_model, rows, tmp_path):
    secrets = {
        "HF_TOKEN": "hf_abcdefSECRET1",
        "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
        "AWS_SECRET_ACCESS_KEY": "wJalrSECRET2",
    }
    keys = conversations(rows, model_name_or_path=tiny_model, report_to="wandb", max_steps=1)
    done = launch("sft", tmp_path / "sft", env={**secrets, "WANDB_MODE": "offline"}, **keys)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "sft" / "wandb").rglob("*.wandb"))
    files = [path for path in (tmp_path / "sft").rglob("*") if path.is_file()]
    for value in secrets.values():
        assert value not in done.stdout + done.stderr
        assert not [path for path in files if value.encode() in path.read_bytes()]


def test_a_token_in_a_config_is_refused():
    with pytest.raises(ConfigError, match="hub_token is not a key here: a token in a file is read by others"):
        check_keys("sft", {"hub_token": "hf_abc"}, where="sft.yaml")


# -- texts and ids from data ----------------------------------------------------------------------------------------


def test_a_bad_rows_text_reaches_no_terminal_raw(tiny_model, rows, tmp_path, monkeypatch, capfd):
    write_jsonl(tmp_path / "bad.jsonl", [{"messages": [{"role": ESCAPE, "content": ESCAPE}]}])
    data = {"instructions": f"no{ESCAPE}.jsonl", "preferences": str(rows / "pairs.jsonl")}
    assert plan(tmp_path, monkeypatch, base_model=str(tiny_model), data=data) == 2
    keys = conversations(rows, model_name_or_path=tiny_model) | {"train_data": [tmp_path / "bad.jsonl"]}
    assert call_stage("sft", tmp_path / "sft", **keys) == 2
    printed = "".join(capfd.readouterr()) + (tmp_path / "sft" / "log.txt").read_text()
    assert "\\x1b[2J" in printed
    assert not {"\x1b", "\x9b"} & set(printed)


def test_an_answers_text_reaches_no_terminal_raw(tiny_model, capsys):
    from commands.speakers import _Streamer

    tokenizer: Any = load_tokenizer(str(tiny_model))
    streamer: Any = _Streamer(tokenizer)
    streamer.on_finalized_text(f"Hi{ESCAPE}", stream_end=True)
    assert capsys.readouterr().out == "Hi\\x1b[2J\\x9b31m\n"


def test_ids_and_names_from_data_never_become_paths(tiny_model, rows, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    hostile = {"group_id": "../../outside", "source": "../../outside"}
    prompts = [
        {"prompt": conversation(n)["messages"][:1], "prompt_id": f"../../outside-{n}", "group_id": "../../x"}
        for n in (1, 2, 3, 5)
    ]
    write_jsonl(inside / "prompts.jsonl", prompts)
    write_jsonl(inside / "sft.jsonl", [conversation(n) | hostile | {"group_id": f"../../{n}"} for n in range(24)])
    write_jsonl(
        inside / "pairs.jsonl", [pair(n) | {"chosen_from": "../../outside", "group_id": f"/{n}"} for n in range(24)]
    )
    run_here(
        "sft", inside / "sft", model_name_or_path=tiny_model, train_data=[inside / "sft.jsonl"], validation_share=0.4
    )
    run_here(
        "reward_model",
        inside / "rm",
        model_name_or_path=tiny_model,
        train_data=[inside / "pairs.jsonl"],
        validation_share=0.4,
    )
    run_here(
        "rejection_sampling",
        inside / "rs",
        prompts=[inside / "prompts.jsonl"],
        policies=[tiny_model],
        policy_names=["../../outside"],
        reward_model=inside / "rm" / "model",
        max_new_tokens=6,
        keep_unfinished=True,
    )
    record = Artifact.read(inside / "rs")
    assert record is not None and set(record.outputs) >= {"candidates", "winners.train"}
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert not list(inside.rglob("*outside*"))
    assert not os.path.lexists("/outside")


def test_loading_asks_for_safetensors_and_no_code(tiny_model, monkeypatch):
    """Checks the arguments that are passed: a later version must not allow more by default."""
    seen: dict[str, Any] = {}

    class Loaded(Exception):
        pass

    def from_pretrained(path: str, **options: Any) -> Any:
        seen.update(options)
        raise Loaded

    monkeypatch.setattr("engine.models.loading.AutoModelForCausalLM.from_pretrained", from_pretrained)
    monkeypatch.setenv(process.TRUSTS_CODE, "")
    with pytest.raises(Loaded):
        load_causal(str(tiny_model))
    assert seen["use_safetensors"] is True and seen["trust_remote_code"] is False
