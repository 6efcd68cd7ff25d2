"""Merged weights of adapters: equal to what PEFT's model computes with them, tensor by tensor and shard by shard."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from data_schemas import packages
from data_schemas.errors import DataError
from data_schemas.model_sizes import MAX_PARAMETERS_A_BYTE, least_parameters
from engine.models import merging
from engine.models.adapters import BASE, AdapterBase, Quantization
from engine.models.loading import load_causal, load_reward
from engine.models.merging import plain_folder, write_plain
from tests.engine.packing.test_shared_rows import make
from tests.stage_runs import weights_of
from tests.toy_adapters import adapted, logits

FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "all linear layers": {"target_modules": "all-linear"},
    "rsLoRA": {"use_rslora": True, "lora_alpha": 3},
    "DoRA": {"use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "embeddings": {"target_modules": ["embed_tokens", "v_proj"]},
    "rows of new tokens": {"trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [3, 7]}},
    "a matrix in full": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    "a bias": {"bias": "lora_only", "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("name", [name for name in FORMS if name != "a bias"])
def test_a_merged_model_has_the_logits_of_the_one_with_the_adapter(name, tiny_model, tmp_path):
    model = adapted(tiny_model, tmp_path / "adapter", **FORMS[name])
    start, expected = logits(load_causal(str(tiny_model))), logits(model)
    assert float((expected - start).abs().max()) > 1e-2
    write_plain(tmp_path / "adapter", tmp_path / "plain")
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-5)
    # The loader of every stage merges in memory, to the same bits.
    assert logits(load_causal(str(tmp_path / "adapter"))).equal(logits(load_causal(str(tmp_path / "plain"))))


def test_transposed_matrices_and_tied_embeddings_of_gpt2_are_merged(tmp_path):
    make("gpt2").save_pretrained(tmp_path / "base")
    form = {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True}
    expected = logits(adapted(tmp_path / "base", tmp_path / "adapter", **form))
    write_plain(tmp_path / "adapter", tmp_path / "plain")
    torch.testing.assert_close(logits(load_causal(str(tmp_path / "plain"))), expected, atol=2e-5, rtol=1e-5)


def test_what_only_peft_can_merge_is_merged_by_peft(tiny_model, tmp_path):
    expected = logits(adapted(tiny_model, tmp_path / "adapter", **FORMS["a bias"]))
    write_plain(tmp_path / "adapter", tmp_path / "plain")
    torch.testing.assert_close(logits(load_causal(str(tmp_path / "plain"))), expected, atol=2e-5, rtol=1e-5)
    with pytest.raises(DataError, match="cannot be merged in memory, because of its bias"):
        load_causal(str(tmp_path / "adapter"))


def test_shards_are_merged_one_at_a_time_and_keep_their_files_and_precisions(tiny_model, tmp_path, monkeypatch):
    load_causal(str(tiny_model), dtype="bfloat16").save_pretrained(tmp_path / "base", max_shard_size="30KB")
    adapted(tmp_path / "base", tmp_path / "adapter", target_modules="all-linear")
    opened: list[Path] = []
    written: list[int] = []

    def opening(path: Path, **options: Any) -> Any:
        opened.append(Path(path))
        return safe_open(path, **options)

    def saving(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        written.append(len(opened))  # a shard is written before the next one is opened
        save_file(tensors, path, **options)

    monkeypatch.setattr(merging, "safe_open", opening)
    monkeypatch.setattr(merging, "save_file", saving)
    write_plain(tmp_path / "adapter", tmp_path / "plain")
    names = sorted(path.name for path in (tmp_path / "base").glob("*.safetensors"))
    assert len(names) > 2 and written == list(range(1, len(names) + 1))
    assert sorted(path.name for path in (tmp_path / "plain").glob("*.safetensors")) == names
    index, before = (
        json.loads((tmp_path / folder / merging.INDEX).read_text())["weight_map"] for folder in ("plain", "base")
    )
    assert index == before
    assert {tensor.dtype for tensor in weights_of(tmp_path / "plain").values()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["nf4", "nf4 nested", "fp4"])
def test_an_adapter_on_a_quantised_base_is_merged_into_the_restored_base(kind, tiny_model, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype="float32",
        bnb_4bit_quant_type=kind.partition(" ")[0],
        bnb_4bit_use_double_quant=kind.endswith("nested"),
    )
    expected = logits(adapted(tiny_model, tmp_path / "adapter", quantization=quantization, target_modules=["q_proj"]))
    write_plain(tmp_path / "adapter", tmp_path / "plain")
    torch.testing.assert_close(logits(load_causal(str(tmp_path / "plain"))), expected, atol=2e-5, rtol=1e-5)
    assert logits(load_causal(str(tmp_path / "adapter"))).equal(logits(load_causal(str(tmp_path / "plain"))))
    # Merged into the base before it was quantised, it is another model.
    base = AdapterBase.read(tmp_path / "adapter")
    assert base.quantization is not None and len(base.quantization.modules) > 2
    (tmp_path / "adapter" / BASE).write_text(json.dumps({**vars(base), "quantization": None}))
    difference = (logits(load_causal(str(tmp_path / "adapter"))) - expected).abs().max()
    assert float(difference) > 1e-2


def test_adapters_on_adapters_are_merged_from_the_complete_model_upwards(tiny_model, tmp_path):
    adapted(tiny_model, tmp_path / "one", target_modules=["q_proj"])
    expected = logits(adapted(tmp_path / "one", tmp_path / "two", target_modules=["v_proj"]))
    torch.testing.assert_close(logits(load_causal(str(tmp_path / "two"))), expected, atol=2e-5, rtol=1e-5)
    plain = plain_folder(str(tmp_path / "two"), tmp_path)
    torch.testing.assert_close(logits(load_causal(plain)), expected, atol=2e-5, rtol=1e-5)
    assert plain_folder(str(tiny_model), tmp_path) == str(tiny_model)
    assert load_reward(str(tmp_path / "two")).config.num_labels == 1  # its body is that of the policy


def test_an_adapter_moves_with_its_base_and_refuses_another_one(tiny_model, tied_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "a" / "base")
    expected = logits(adapted(tmp_path / "a" / "base", tmp_path / "a" / "adapter"))
    (tmp_path / "a").rename(tmp_path / "b")
    torch.testing.assert_close(logits(load_causal(str(tmp_path / "b" / "adapter"))), expected, atol=2e-5, rtol=1e-5)
    shutil.rmtree(tmp_path / "b" / "base")
    with pytest.raises(DataError, match="the model that it was trained on is missing"):
        load_causal(str(tmp_path / "b" / "adapter"))
    shutil.copytree(tied_model, tmp_path / "b" / "base")
    with pytest.raises(DataError, match="is not the model that the adapter in"):
        load_causal(str(tmp_path / "b" / "adapter"))
    (tmp_path / "b" / "adapter" / BASE).unlink()
    with pytest.raises(DataError, match=f"without a valid {BASE}"):
        load_causal(str(tmp_path / "b" / "adapter"))


def test_an_adapter_may_be_much_smaller_than_the_model_that_its_config_describes(tiny_model, tmp_path):
    """As one of rank 8 on 135M parameters: its folder has the model's config.json, and no weights of the model."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(200_000)
    model.save_pretrained(tmp_path / "base")
    expected = logits(adapted(tmp_path / "base", tmp_path / "adapter", r=1, target_modules=["q_proj"]))
    folder = tmp_path / "adapter"
    num_bytes = (folder / "adapter_model.safetensors").stat().st_size
    assert least_parameters(json.loads((folder / "config.json").read_text())) > MAX_PARAMETERS_A_BYTE * num_bytes
    torch.testing.assert_close(logits(load_causal(str(folder))), expected, atol=2e-5, rtol=1e-5)


def test_a_quantised_base_cannot_be_restored_without_bitsandbytes(monkeypatch):
    monkeypatch.setattr("engine.models.adapters.is_installed", lambda package: False)
    with pytest.raises(DataError, match="the package bitsandbytes is not installed, which quantizes its weights"):
        Quantization("nf4", False, ["layer"]).restored(torch.ones(2, 2))
    assert packages.is_installed("torch")
