"""Products with packed weights: the same numbers, and the model as it was afterwards."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine import generation, packed_weights
from engine.arguments import GenerationArguments
from engine.models import load_causal, load_tokenizer
from engine.packed_weights import packed_weights as packed

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no products in bfloat16"
)


class Layers(torch.nn.Module):
    """A layer of its own class, as PEFT's are, beside plain ones with and without a bias."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = torch.nn.Linear(96, 160), torch.nn.Linear(160, 33, bias=False)
        self.other = torch.nn.modules.linear.NonDynamicallyQuantizableLinear(33, 96)
        self.to(dtype)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.other(self.second(self.first(rows)))


def taken(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


@pytest.mark.parametrize("rows", [(1, 1), (3, 1), (32, 1), (1, 100), (128, 1)])
def test_the_numbers_are_the_same_bit_by_bit(rows):
    model, given = Layers(), torch.randn(*rows, 96).bfloat16()
    with torch.no_grad():
        plain = model(given)
        with packed(model):
            assert taken(model) == ["first", "second"]
            assert torch.equal(model(given), plain)
        assert taken(model) == [] and torch.equal(model(given), plain)


def test_the_model_is_as_it_was_after_an_error():
    model = Layers()
    with pytest.raises(KeyboardInterrupt), packed(model):
        raise KeyboardInterrupt
    assert taken(model) == []


def test_full_precision_and_hooked_layers_are_left_alone():
    with packed(whole := Layers(torch.float32)):
        assert taken(whole) == []
    model = Layers()
    hooked: Any = model.first.forward
    model.first.forward = hooked
    with packed(model):
        assert model.first.forward is hooked and taken(model) == ["first", "second"]
    assert taken(model) == ["first"]


def test_no_copy_is_made_where_memory_is_short(monkeypatch):
    model = Layers()
    free = SimpleNamespace(available=2 * sum(layer.weight.nbytes for layer in (model.first, model.second)) - 2)
    monkeypatch.setattr(packed_weights.psutil, "virtual_memory", lambda: free)
    with packed(model):
        assert taken(model) == []
    free.available += 2
    with packed(model):
        assert taken(model) == ["first", "second"]


def test_a_stage_that_generates_packs(tiny_model, monkeypatch):
    found = []

    def look(stage: Any, name: str, *_: Any, **__: Any) -> list[Any]:
        found.extend(taken(model))
        return []

    monkeypatch.setattr(generation, "in_batches", look)
    model = load_causal(str(tiny_model), dtype="bfloat16")
    generation.sample(None, "answers", model, load_tokenizer(str(tiny_model)), [], GenerationArguments(), purpose="p")  # pyright: ignore[reportArgumentType]
    assert "lm_head" in found and taken(model) == []
