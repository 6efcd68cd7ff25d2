"""Whether a model is called on packed rows depends on its attention, never on the precision that it computes in."""

import dataclasses
import logging
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoModelForSequenceClassification
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from engine.judging.shared_scoring import SharedScorer
from engine.packing import row_attention, support
from engine.packing.shared_rows import config_of
from engine.packing.small_copy import WINDOW, small_config, small_copy
from engine.packing.support import supports_shared_rows
from engine.runtime import notices
from tests.engine.packing.test_shared_rows import KINDS, make
from tests.stage_runs import run_here

CPU = torch.device("cpu")
PRECISIONS = ["float32", "bfloat16", "float16", "autocast", "accelerate"]
MORE_KINDS = ("phi3", "olmo2", "cohere", "granite", "starcoder2", "gpt_neox", "smollm3", "glm", "opt")


def is_supported(model: Any, precision: str, **keys: Any) -> bool:
    if precision == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            return supports_shared_rows(model, CPU, **keys)
    if precision == "accelerate":
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)  # turns autocast on in calls
            return supports_shared_rows(prepared, CPU, **keys)
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
    return supports_shared_rows(model.to(getattr(torch, precision)), CPU, **keys)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_architecture_falls_back_in_any_precision(kind, precision):
    """Llama is the model type of every shipped recipe."""
    attention = {"attn_implementation": "eager"} if kind == "gemma2" else {}
    assert is_supported(make(kind, **attention), precision)
    assert is_supported(make(kind, AutoModelForSequenceClassification, **attention), precision, is_reward_model=True)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_a_model_whose_outputs_are_mostly_rounding_is_supported(precision, monkeypatch):
    """Rounding of 30 % at each attention, as in a deep model in bf16; in SmolLM2 packed and padded rows differ more
    than the outputs with a right and with a wrong mask."""
    own = row_attention.attend

    def attend(query: Any, *args: Any, **options: Any) -> Any:
        attended, _ = own(query, *args, **options)
        return attended if query.dtype == torch.float32 else attended * (1 + 0.3 * torch.rand(())), None

    monkeypatch.setattr(row_attention, "attend", attend)
    assert is_supported(make("llama"), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", ["branches see each other", "no window", "wrong scale"])
def test_wrong_attention_is_refused_in_every_precision(fault, precision, monkeypatch):
    own = row_attention.attend

    def attend(query: Any, key: Any, value: Any, segments: Any, **options: Any) -> Any:
        if fault == "branches see each other":
            calls = [dataclasses.replace(call, branches_NL=0 * call.branches_NL, masks={}) for call in segments.calls]
            segments.calls[:] = calls
        elif fault == "no window":
            options["sliding_window"] = None
        else:
            options["scaling"] = 1.1 * query.size(-1) ** -0.5
        return own(query, key, value, segments, **options)

    # The windows of real models are longer than any trial row: their own 4096 tokens hide nothing of 9 tokens.
    model = make("mistral", sliding_window=4096)
    assert is_supported(model, precision)
    monkeypatch.setattr(row_attention, "attend", attend)
    assert not is_supported(model, precision)
    assert config_of(model)._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", MORE_KINDS)
def test_the_small_copy_of_other_architectures_decides_as_the_model_itself(kind):
    try:
        model = make(kind)
    except TypeError:  # other names of sizes
        pytest.skip(f"{kind} has no such sizes")
    assert small_copy(model, CPU) is not None
    assert is_supported(model, "bfloat16") == is_supported(make(kind), "float32")


def test_a_copy_keeps_what_decides_attention_and_nothing_large():
    model = make("gemma2", num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4, sliding_window=64)
    small = small_config(model.config, narrow=True)
    assert small.layer_types == ["sliding_attention", "full_attention"]
    assert (small.num_hidden_layers, small.sliding_window) == (2, WINDOW)
    assert (small.num_attention_heads, small.num_key_value_heads, small.head_dim) == (4, 2, 16)
    assert small.attn_logit_softcapping == model.config.attn_logit_softcapping
    assert model.config.num_hidden_layers == 6 and model.config.sliding_window == 64


def test_the_trial_changes_neither_the_model_nor_any_random_number():
    model = make("qwen2").train()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    assert supports_shared_rows(model, CPU)
    assert torch.equal(torch.rand(3), wanted)
    assert model.training and all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_a_fallback_is_a_warning_of_the_record_with_its_price(tiny_model, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(support, "SAME_OUTPUT", -1.0)  # nothing is the same
    data = {"train_data": [rows / "pairs.jsonl"], "eval_data": [rows / "pairs_eval.jsonl"]}
    record = run_here("dpo", tmp_path / "padded", model_name_or_path=tiny_model, max_steps=1, **data)
    (warning,) = [text for text in record.warnings if "packed rows" in text]
    assert "its rows are padded, which is about " in warning
    times = float(warning.split("about ")[1].split(" times")[0])
    assert 1.2 < times < 4
    monkeypatch.undo()
    record = run_here("dpo", tmp_path / "packed", model_name_or_path=tiny_model, max_steps=1, **data)
    assert not [text for text in record.warnings if "packed rows" in text]
    assert "its rows are padded" in (tmp_path / "padded" / "log.txt").read_text()
    assert record.warnings or '"warnings"' not in (tmp_path / "packed" / "artifact.json").read_text()


def test_scoring_warns_once_with_the_price(monkeypatch, caplog):
    monkeypatch.setattr(support, "SAME_OUTPUT", -1.0)
    notices.start(None)
    scorer = SharedScorer(make("llama", AutoModelForSequenceClassification), is_reward_model=True)
    groups = [[([5, 6, 7, 8], [20, 1]), ([5, 6, 7, 8], [21, 1])]]
    with caplog.at_level(logging.WARNING):
        first, second = scorer.rewards(groups), scorer.rewards(groups)
    assert first == second
    # Two padded rows of 6 tokens; the packed row has 3 shared tokens and two branches of 3.
    assert [text for text in notices.kept() if "about 1.3 times slower" in text] == notices.kept()
    assert sum("packed rows" in record.getMessage() for record in caplog.records) == 1


def test_the_small_copy_is_tried_outside_zero3_which_divides_only_the_model():
    """Under ZeRO-3 TRL's head reads `ds_status` of its weights, which only those of the model have."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    model = make("llama")
    for weight in model.parameters():
        weight.ds_status = ZeroParamStatus.AVAILABLE  # pyright: ignore[reportAttributeAccessIssue]
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    try:
        assert supports_shared_rows(model, CPU)
        assert is_deepspeed_zero3_enabled() and config.is_zero3()
    finally:
        unset_hf_deepspeed_config()
