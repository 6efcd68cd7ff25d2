"""Advice about precision, worked out by hand, and a measurement that ends in time."""

from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from engine.models import precision
from engine.models.precision import Layer, advice, measure

SLOW = {"float32": 165e9, "bfloat16": 398e9}  # bf16 is 2.41 times as fast
FAST = {"float32": 165e9, "bfloat16": 98.6e9}  # fp32 is 1.67 times as fast


@pytest.mark.parametrize(
    ("speed", "how", "said"),
    [
        (
            SLOW,
            {"chosen": "float32", "key": "bf16"},
            "bf16: true would make matrix products 2.4 times as fast here (fp32 165, bf16 398 GFLOP/s); it is part of "
            "the step's identity",
        ),
        (SLOW, {"chosen": "bfloat16", "key": "bf16"}, ""),
        (
            FAST,
            {"chosen": "bfloat16", "key": "bf16", "by_default": True},
            "bf16: true (the default) is 1.7 times as slow as fp32 here (fp32 165, bf16 99 GFLOP/s): set bf16: false",
        ),
        (FAST, {"chosen": "float32", "key": "bf16"}, ""),
        (
            SLOW,
            {"chosen": "float32", "key": "dtype"},
            "dtype: bfloat16 would make matrix products 2.4 times as fast here (fp32 165, bf16 398 GFLOP/s); it is "
            "part of the step's identity",
        ),
        (
            {"float32": 9.5e9, "bfloat16": 2e9},
            {"chosen": "bfloat16", "key": "dtype"},
            "dtype: bfloat16 is 4.8 times as slow as fp32 here (fp32 9.5, bf16 2.0 GFLOP/s): set dtype: float32",
        ),
        ({"float32": 100e9, "bfloat16": 109e9}, {"chosen": "float32", "key": "bf16"}, ""),  # under 1.1
        ({"float32": 109e9, "bfloat16": 100e9}, {"chosen": "bfloat16", "key": "bf16"}, ""),
    ],
)
def test_advice_is_given_only_for_a_faster_precision(speed, how, said):
    assert advice(speed, **how) == said


@pytest.mark.parametrize(
    ("config", "layer"),
    [
        (LlamaConfig(hidden_size=576, intermediate_size=1536), Layer(576, 1536)),
        (GPT2Config(n_embd=48, n_head=4), Layer(48, 192)),  # without intermediate_size: four times the hidden size
        (GPT2Config(n_embd=48, n_head=4, n_inner=100), Layer(48, 100)),
    ],
)
def test_the_sizes_are_the_models_own(config, layer):
    assert Layer.of(config) == layer


@pytest.mark.parametrize("use", ["training", "generation"])
def test_a_measurement_keeps_its_time_limit_and_counts_what_is_computed(use, monkeypatch):
    """With a clock that goes on by 0.01 s a call: 2 x passes x rows x hidden x intermediate / 0.01 s."""
    clock = [0.0]

    def tick() -> float:
        clock[0] += 0.01
        return clock[0]

    monkeypatch.setattr(precision.time, "perf_counter", tick)
    passes = 3 if use == "training" else 1
    found = measure(Layer(16, 32), torch.device("cpu"), use, tokens=64)
    assert found == pytest.approx(dict.fromkeys(("float32", "bfloat16"), 2 * passes * 64 * 16 * 32 / 0.01))
    assert clock[0] < precision.SECONDS + 0.1


def test_a_device_that_emulates_bf16_is_measured_with_few_rows_only(monkeypatch):
    asked, clock = [], [0.0]

    def slow(device: torch.device, name: str, **size: int) -> Callable[[int], None]:
        def work(rows: int) -> None:
            asked.append(rows)
            clock[0] += 0.5 if name == "bfloat16" else 0.001

        return work

    monkeypatch.setattr(precision, "_training", slow)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    assert measure(Layer(64, 64), torch.device("cpu"), "training", tokens=512)["float32"] > 0
    assert asked == [8, 8, 32, 32]
