"""Weights leave a training stage in the precision they came in."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.models.loading import load_causal
from engine.models.saved_precision import save_as_it_came
from tests.stage_runs import run_here, weights_of


@pytest.fixture(scope="module")
def in_precision(tiny_model, tmp_path_factory):
    """dtype's name -> the tiny model saved in it."""

    def save(name):
        folder = tmp_path_factory.mktemp("base") / name
        load_causal(str(tiny_model), dtype=name).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
        return folder

    return save


def keys_of(stage, base, rows):
    kind = "conversations" if stage == "sft" else "pairs"
    data = {"train_data": [rows / f"{kind}.jsonl"], "eval_data": [rows / f"{kind}_eval.jsonl"]}
    return {"model_name_or_path": base, "max_steps": 2, "learning_rate": 3e-3, **data}


@pytest.mark.parametrize("stage, name", [("sft", "bfloat16"), ("reward_model", "bfloat16"), ("sft", "float16")])
def test_a_base_of_16_bits_is_trained_in_float32_and_saved_as_it_came(stage, name, in_precision, rows, tmp_path):
    base = in_precision(name)
    keys = keys_of(stage, base, rows)
    record = run_here(stage, tmp_path / stage, **keys, keep_checkpoints=True)
    saved = weights_of(tmp_path / stage / "model")
    assert {tensor.dtype for tensor in saved.values()} == {getattr(torch, name)}
    assert json.loads((tmp_path / stage / "model" / "config.json").read_text())["dtype"] == name
    # The weights that were trained are float32, and those of the checkpoint stay so.
    trained = load_file(tmp_path / stage / "checkpoints" / f"best-{record.metrics['best_step']}" / "model.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert all(torch.equal(saved[key], trained[key].to(saved[key].dtype)) for key in trained)
    assert f"saved in {name}" in (tmp_path / stage / "log.txt").read_text()


def test_adapters_are_merged_in_float32_and_the_model_is_saved_as_it_came(in_precision, rows, tmp_path):
    base = in_precision("bfloat16")
    run_here("sft", tmp_path / "sft", **keys_of("sft", base, rows), use_peft=True)
    assert {tensor.dtype for tensor in weights_of(tmp_path / "sft" / "model").values()} == {torch.bfloat16}


def test_a_base_in_float32_stays_in_float32(tiny_model, rows, tmp_path):
    run_here("sft", tmp_path / "sft", **keys_of("sft", tiny_model, rows))
    assert {tensor.dtype for tensor in weights_of(tmp_path / "sft" / "model").values()} == {torch.float32}


def test_shards_keep_their_tensors_and_their_index_has_the_new_size(in_precision, tiny_model, tmp_path):
    model = load_causal(str(tiny_model), dtype="float32")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    before = json.loads(index.read_text())
    first = sorted((tmp_path / "sharded").glob("*.safetensors"))[0]
    os.link(first, tmp_path / "another name")
    linked = first.read_bytes()
    save_as_it_came(tmp_path / "sharded", str(in_precision("bfloat16")))
    after = json.loads(index.read_text())
    assert len(set(before["weight_map"].values())) > 1 and after["weight_map"] == before["weight_map"]
    assert after["metadata"]["total_size"] * 2 == before["metadata"]["total_size"]
    assert (tmp_path / "another name").read_bytes() == linked, "a link is replaced, not written through"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sharded", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].to(torch.bfloat16))
