"""Products with packed weights: the same numbers, and an unchanged model afterwards."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.models import precision
from engine.runtime.arguments import GenerationArguments
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling import packed_weights, transformers_engine
from engine.sampling.answers import Policy, SamplingSettings
from engine.sampling.packed_weights import packed_weights as packed

HAS_HALF = torch.ops.mkldnn._is_mkldnn_bf16_supported()
IS_X86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
HALF = pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not HAS_HALF, reason="no products in bfloat16 here"))
FULL = pytest.param(torch.float32, marks=pytest.mark.skipif(not IS_X86, reason="float32 is only packed on x86"))
both = pytest.mark.parametrize("dtype", [HALF, FULL])


class Layers(torch.nn.Module):
    """A layer of a separate class, as in PEFT, beside plain layers with and without a bias, and a tied layer."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = torch.nn.Linear(96, 160), torch.nn.Linear(160, 33, bias=False)
        self.other = torch.nn.modules.linear.NonDynamicallyQuantizableLinear(33, 96)
        self.tied, self.embedding = torch.nn.Linear(96, 50, bias=False), torch.nn.Embedding(50, 96)
        self.tied.weight = self.embedding.weight
        self.to(dtype)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.tied(self.other(self.second(self.first(rows))))


@pytest.fixture(autouse=True)
def _small_layers_too(monkeypatch):
    monkeypatch.setattr(packed_weights, "SMALLEST", dict.fromkeys(packed_weights.SMALLEST, 1))


def taken(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


def engine(folder: Path, model: Path, dtype: str) -> transformers_engine.TransformersEngine:
    arguments = GenerationArguments(use_cpu=True, dtype=dtype)  # pyright: ignore[reportArgumentType]
    stage = Stage("test", folder, {}, Tracker(folder, active=False), is_main=True)
    settings = SamplingSettings.of(arguments, purpose="p")
    return transformers_engine.TransformersEngine.load(stage, "answers", Policy(str(model), "tiny"), settings)


@both
@pytest.mark.parametrize("rows", [(1, 1), (3, 1), (32, 1), (1, 100), (128, 1)])
def test_the_numbers_are_the_same(rows, dtype):
    model, given = Layers(dtype), torch.randn(*rows, 96).to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        plain = model(given)
        with packed(model):
            assert taken(model) == ["first", "second", "tied"]
            found = model(given)
        again = model(given)
    # bfloat16 uses the same library in both cases; float32 is summed in another order.
    torch.testing.assert_close(found, plain, **({"rtol": 0, "atol": 0} if dtype == torch.bfloat16 else {}))
    assert taken(model) == [] and torch.equal(again, plain)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert model.tied.weight is model.embedding.weight


@both
def test_a_weight_is_in_memory_once_unless_it_is_tied(dtype):
    with packed(model := Layers(dtype)):
        kept = {name: weight.numel() for name, weight in model.named_parameters() if "bias" not in name}
    assert kept == {"first.weight": 0, "second.weight": 0, "other.weight": 33 * 96, "tied.weight": 50 * 96}


@both
def test_the_model_is_unchanged_after_an_error(dtype):
    model = Layers(dtype)
    before = model.first.weight.clone()
    with pytest.raises(KeyboardInterrupt), packed(model):
        raise KeyboardInterrupt
    assert taken(model) == [] and torch.equal(model.first.weight, before)


@both
def test_layers_with_hooks_are_not_packed(dtype):
    model = Layers(dtype)
    hooked: Any = model.first.forward
    model.first.forward = hooked
    with packed(model):
        assert model.first.forward is hooked and taken(model) == ["first", "second", "tied"]
    assert taken(model) == ["first"]


@pytest.mark.parametrize(
    ("dtype", "emulates", "is_logged"), [("bfloat16", True, True), ("bfloat16", False, False), ("float32", True, False)]
)
def test_a_stage_logs_that_this_cpu_only_emulates_a_precision(
    dtype, emulates, is_logged, tiny_model, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: not emulates)
    monkeypatch.setattr(transformers_engine, "packed_weights", contextlib.nullcontext)  # it would pack bfloat16
    monkeypatch.setattr(transformers_engine, "in_batches", lambda *_, **__: [])
    assert engine(tmp_path, tiny_model, dtype).sample([]) == []
    assert ("set dtype: float32" in caplog.text) is is_logged


def test_without_onednn_it_is_not_called(monkeypatch):
    def missing() -> bool:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_is_mkldnn_bf16_supported'")

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", missing)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with packed(model := Layers(torch.bfloat16)):
        assert taken(model) == [] and precision.has_fast_matmul(torch.device("cpu"), torch.bfloat16)


def test_weights_that_would_gain_nothing_are_not_packed(monkeypatch):
    monkeypatch.setattr(packed_weights, "SMALLEST", {torch.float32: 160 * 33})
    with packed(model := Layers(torch.float32)):
        assert taken(model) == (["first", "second"] if IS_X86 else [])
    with packed(model := Layers(torch.float64)):
        assert taken(model) == []


@both
def test_a_stage_that_generates_packs(tiny_model, tmp_path, monkeypatch, dtype):
    packed_layers = []

    def record(stage: Any, name: str, *_: Any, **__: Any) -> list[Any]:
        packed_layers.extend(taken(generating.model))
        return []

    monkeypatch.setattr(transformers_engine, "in_batches", record)
    generating = engine(tmp_path, tiny_model, str(dtype).removeprefix("torch."))
    generating.sample([])
    assert "lm_head" in packed_layers and taken(generating.model) == []
