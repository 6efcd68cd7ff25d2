"""Stages whose inputs tokenize a text differently stop before training, and show the difference."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from data_schemas.artifact import Artifact
from data_schemas.files import read_json
from engine.tokens.contract import contract_differences, contract_of
from tests.stage_runs import call_stage, run_here

KEYS = {"max_steps": 1, "global_batch_size": 4}


@pytest.fixture(scope="module")
def policy(tiny_model, rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "sft"
    data = {"train_data": [rows / "conversations.jsonl"], "eval_data": [rows / "conversations_eval.jsonl"]}
    run_here("sft", folder, model_name_or_path=tiny_model, **KEYS, **data)
    return folder / "model"


@pytest.fixture(scope="module")
def pairs(policy, rows, tmp_path_factory) -> Path:
    """A batch with the policy's answers, scored by their length."""
    folder = tmp_path_factory.mktemp("annotated")
    (folder / "judge.py").write_text("def score(prompt, answer, ended):\n    return len(answer)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNLOOP_FUNCTION_PATH", str(folder))
        run_here(
            "annotate",
            folder / "out",
            policies=[policy],
            prompts=[rows / "prompts.jsonl"],
            max_new_tokens=6,
            annotator_function="judge:score",
            keep_unfinished=True,
        )
    return folder / "out" / "pairs.train.jsonl"


def with_other_template(policy: Path, folder: Path) -> Path:
    shutil.copytree(policy, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|im_end|>\\n", 1)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_contract_is_in_the_records_of_models_and_of_rows(policy, pairs):
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model, rows = Artifact.read(policy.parent), Artifact.read(pairs.parent)
    assert model is not None
    assert rows is not None
    assert model.contract == rows.contract == contract_of(tokenizer)
    assert rows.contract["eos_token"] == tokenizer.eos_token
    tokenizer.backend_tokenizer.enable_truncation(5)  # the stage's last action is not part of it
    assert contract_of(tokenizer) == model.contract


def test_rows_of_another_contract_stop_a_stage_before_it_trains(policy, pairs, rows, tmp_path):
    other = with_other_template(policy, tmp_path / "other")
    keys: dict[str, Any] = {
        "model_name_or_path": other,
        "train_data": [pairs],
        "strengths": None,
        "max_steps": 1,
        "eval_data": [rows / "pairs_eval.jsonl"],
        "global_batch_size": 2,
    }
    assert call_stage("dpo", tmp_path / "dpo", **keys) == 2
    cause = read_json(tmp_path / "dpo" / "outcome.json")["cause"]
    assert f"train_data {pairs} was made with another contract than {other}: chat_template from character " in cause
    assert cause.endswith("or set other_contract: true to train on them all the same")
    assert not (tmp_path / "dpo" / "checkpoints").exists() or not any((tmp_path / "dpo" / "checkpoints").iterdir())
    run_here("dpo", tmp_path / "forced", other_contract=True, **keys)


def test_a_reference_of_another_contract_stops_dpo(policy, rows, tmp_path):
    other = tmp_path / "run" / "model"
    other.parent.mkdir()
    with_other_template(policy, other)
    data = {"train_data": [rows / "pairs.jsonl"], "eval_data": [rows / "pairs_eval.jsonl"]}
    assert call_stage("dpo", tmp_path / "dpo", model_name_or_path=other, reference_model=policy, **data, **KEYS) == 2
    assert "reference_model " in read_json(tmp_path / "dpo" / "outcome.json")["cause"]


def test_differences_are_shown_in_a_few_words():
    one = {"tokenizer": "a" * 64, "chat_template": "x" * 50 + "<s>" + "y" * 50, "eos_token": "</s>"}
    other = {"tokenizer": "b" * 64, "chat_template": "x" * 50 + "<t>" + "y" * 50, "pad_token": "<pad>"}
    assert list(contract_differences(one, other)) == [
        f"chat_template from character 51: '{'x' * 29}<s>{'y' * 28}' and '{'x' * 29}<t>{'y' * 28}'",
        "eos_token '</s>' and ''",
        "pad_token '' and '<pad>'",
        "tokenizer aaaaaaaa and bbbbbbbb",
    ]
    assert list(contract_differences(one, one)) == []
    assert list(contract_differences({"chat_template": "ab"}, {"chat_template": "abc"})) == [
        "chat_template from character 2: 'ab' and 'abc'"
    ]
