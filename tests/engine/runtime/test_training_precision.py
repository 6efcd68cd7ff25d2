"""In which precision a stage trains where bf16 is left open, and what it says of that."""

import json

import pytest

from data_schemas import bfloat16
from data_schemas.artifact import Artifact
from engine.runtime import training_precision
from tests.stage_runs import call_stage, run_here, weights_of


@pytest.fixture
def keys(tiny_model, rows):
    return {
        "model_name_or_path": tiny_model,
        "train_data": [rows / "conversations.jsonl"],
        "eval_data": [rows / "conversations_eval.jsonl"],
        "max_steps": 2,
    }


def test_an_open_precision_is_fp32_on_a_cpu_without_bfloat16(keys, tmp_path, monkeypatch):
    monkeypatch.setattr(bfloat16, "cpu_has_bfloat16", lambda: False)
    run_here("sft", tmp_path / "open", **keys, bf16=None)
    run_here("sft", tmp_path / "fp32", **keys, bf16=False)
    assert (tmp_path / "open" / "model" / "model.safetensors").read_bytes() == (
        tmp_path / "fp32" / "model" / "model.safetensors"
    ).read_bytes()
    record = Artifact.read(tmp_path / "open")
    assert record is not None and record.keys["bf16"] is None and record.warnings == []
    assert "trains in fp32, since this CPU does not have bfloat16" in (tmp_path / "open" / "log.txt").read_text()


def test_an_open_precision_is_bf16_where_the_cpu_has_it_and_the_identity_says_so(keys, tmp_path, monkeypatch):
    monkeypatch.setattr(bfloat16, "cpu_has_bfloat16", lambda: True)
    record = run_here("sft", tmp_path / "open", **keys, bf16=None)
    same = run_here("sft", tmp_path / "bf16", **keys, bf16=True)
    assert record.keys == same.keys and record.keys["bf16"] is True and record.warnings == []
    one, other = (weights_of(tmp_path / name / "model") for name in ("open", "bf16"))
    assert all(bool((one[name] == other[name]).all()) for name in one)
    assert "trains in bf16, since this CPU has bfloat16" in (tmp_path / "open" / "log.txt").read_text()


def test_an_unfinished_stage_in_another_precision_is_not_resumed(keys, tmp_path, monkeypatch):
    folder = tmp_path / "sft"
    folder.mkdir()
    monkeypatch.setattr(bfloat16, "cpu_has_bfloat16", lambda: False)
    run_here("sft", tmp_path / "elsewhere", **keys, bf16=None)
    (folder / "identity.json").write_bytes((tmp_path / "elsewhere" / "identity.json").read_bytes())
    monkeypatch.setattr(bfloat16, "cpu_has_bfloat16", lambda: True)
    from data_schemas.errors import ConfigError

    with pytest.raises(ConfigError, match=r"unfinished sft with other keys \(bf16\)"):
        call_stage("sft", folder, **keys, bf16=None)
    assert json.loads((folder / "identity.json").read_text())["keys"]["bf16"] is None


def test_a_precision_that_the_cpu_emulates_is_a_warning_of_the_record(keys, tmp_path, monkeypatch):
    monkeypatch.setattr(bfloat16, "cpu_has_bfloat16", lambda: False)
    (warning,) = run_here("sft", tmp_path / "sft", **keys, bf16=True).warnings
    assert "bf16: true is only emulated by this CPU" in warning and "set bf16: false" in warning


def test_the_evaluation_of_an_average_follows_the_stage_that_trained_its_parts(monkeypatch):
    monkeypatch.setattr(bfloat16, "cpu_has_bfloat16", lambda: True)
    values = {"averaged_stage": "dpo", "stage_keys": {"beta": 0.3}, "use_cpu": True}
    assert training_precision.resolve("average_models", values)["stage_keys"] == {"beta": 0.3, "bf16": True}
    values["stage_keys"]["bf16"] = False
    assert training_precision.resolve("average_models", values) == values
    assert training_precision.resolve("prepare_base", {"use_cpu": True}) == {"use_cpu": True}
