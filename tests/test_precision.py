"""What `alignloop check` says of precision: advice worked out by hand, and a measurement that ends in time."""

import time
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import GPT2Config, LlamaConfig

from commands import check
from engine.models import precision
from engine.models.precision import Layer, advice, measure
from pipeline.launch import preview
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.state.run import Run

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
def test_only_a_precision_that_would_be_faster_is_worth_a_word(speed, how, said):
    assert advice(speed, **how) == said


@pytest.mark.parametrize(
    ("config", "layer"),
    [
        (LlamaConfig(hidden_size=576, intermediate_size=1536), Layer(576, 1536)),
        (GPT2Config(n_embd=48, n_head=4), Layer(48, 192)),  # says no size of its own: four times the hidden one
        (GPT2Config(n_embd=48, n_head=4, n_inner=100), Layer(48, 100)),
    ],
)
def test_the_sizes_are_the_models_own(config, layer):
    assert Layer.of(config) == layer


@pytest.mark.parametrize("use", ["training", "generation"])
def test_a_measurement_takes_no_longer_than_it_may_and_counts_what_is_computed(use, monkeypatch):
    """With a clock that adds 0.01 s a look: 2 x passes x rows x hidden x intermediate / 0.01 s."""
    clock = [0.0]

    def tick() -> float:
        clock[0] += 0.01
        return clock[0]

    monkeypatch.setattr(precision.time, "perf_counter", tick)
    passes = 3 if use == "training" else 1
    found = measure(Layer(16, 32), torch.device("cpu"), use, tokens=64)
    assert found == pytest.approx(dict.fromkeys(("float32", "bfloat16"), 2 * passes * 64 * 16 * 32 / 0.01))
    assert clock[0] < precision.SECONDS + 0.1


def test_a_device_that_emulates_bf16_is_asked_with_few_rows_alone(monkeypatch):
    asked: list[int] = []

    def slow(device: torch.device, name: str, **size: int) -> Any:
        return lambda rows: (asked.append(rows), time.sleep(0.5 if name == "bfloat16" else 0.0))

    monkeypatch.setattr(precision, "_training", slow)
    assert measure(Layer(64, 64), torch.device("cpu"), "training", tokens=512)["float32"] > 0
    assert asked == [8, 8, 32, 32]


# -- what of a recipe is asked ------------------------------------------------------------------------------------

RECIPE = """
name: mine
rounds: 1
base_model: {model}
launch: {{device: cpu}}
prepare_base: {{chat_template: chatml}}
data: {{preferences: [pairs.jsonl], judge_share: 0.4, chosen_as_instructions: 0.4, validation_share: 0.3}}
"""


def precisions(folder: Any, model: Any, *overrides: str) -> list[tuple[Any, ...]]:
    (folder / "pairs.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    (folder / "recipe.yaml").write_text(RECIPE.format(model=model))
    recipe = load_recipe(folder / "recipe.yaml", list(overrides))
    found = preview._precisions(Run.of(recipe, make_plan(recipe)))
    return [(one["key"], one["chosen"], one["by_default"], one["tokens"], sorted(one["stages"])) for one in found]


def test_each_choice_of_a_recipe_is_asked_once(tiny_base, tmp_path):
    training, generating = ["dpo", "reward_model", "sft"], ["evaluate_policy", "rejection_sampling"]
    assert sorted(precisions(tmp_path, tiny_base)) == [
        ("bf16", "bfloat16", True, 512, training),
        ("dtype", "float32", False, 32, generating),
    ]
    assert sorted(
        precisions(
            tmp_path,
            tiny_base,
            "defaults.bf16=false",
            "dpo.bf16=true",
            "sft.dtype=bfloat16",
            "defaults.generation_batch_size=8",
            "evaluate_policy.dtype=bfloat16",
        )
    ) == [
        ("bf16", "bfloat16", False, 512, ["dpo"]),
        ("bf16", "float32", False, 512, ["reward_model"]),
        ("dtype", "bfloat16", False, 8, ["evaluate_policy"]),
    ]


def test_what_is_said_stands_on_one_line_with_its_stages(monkeypatch):
    monkeypatch.setattr(precision, "measure", lambda *_, **__: SLOW)
    monkeypatch.setattr(precision.os, "getloadavg", lambda: (0.3, 0.0, 0.0))
    console = Console(width=300, record=True, quiet=False, force_terminal=False)
    how = {"use": "training", "key": "bf16", "chosen": "float32", "by_default": False, "tokens": 512, "device": "cpu"}
    with console.capture() as shown:
        check.advise(Layer(8, 8), [how | {"stages": ["sft", "dpo"]}, how | {"chosen": "bfloat16"}], console)
    assert shown.get().startswith("sft, dpo: bf16: true would make matrix products 2.4 times as fast here (fp32 165")
    assert shown.get().count("\n") == 1


def test_nothing_is_measured_where_others_use_the_cores(monkeypatch):
    monkeypatch.setattr(precision, "measure", lambda *_, **__: pytest.fail("it was measured"))
    monkeypatch.setattr(precision.os, "getloadavg", lambda: (17.2, 0.0, 0.0))
    monkeypatch.setattr(precision.os, "cpu_count", lambda: 2)
    console = Console(width=300)
    with console.capture() as shown:
        check.advise(Layer(8, 8), [{"device": "cpu"}], console)
    assert shown.get() == "precision is not measured: this machine is busy (load 17 on 2 cores)\n"


def test_a_model_whose_sizes_are_not_to_be_had_is_no_error(tmp_path, tiny_base):
    assert check.read_layer({"path": str(tmp_path / "gone")}) is None
    assert check.read_layer({"path": str(tiny_base)}) == Layer(32, 64)
    assert check.read_layer({"architecture": {"hidden_size": 128, "intermediate_size": 384}}) == Layer(128, 384)
