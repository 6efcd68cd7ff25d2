"""The plan decides on a precision that is left open, since it is part of a step's identity."""

import pytest

from data_schemas import bfloat16
from data_schemas.stage_keys import with_defaults
from pipeline.launch.machine import emulated_precision
from pipeline.steps import with_open_precision

CPU, GPU = "launch.device=cpu", "launch.device=gpu"


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    monkeypatch.setattr(bfloat16, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(bfloat16, "gpus_have_bfloat16", lambda: True)


def precisions(steps, key="bf16"):
    return {name: with_defaults(step.stage, step.keys)[key] for name, step in steps.items() if step.stage == "dpo"}


def test_it_is_taken_from_the_device_that_a_step_is_launched_on(plan, monkeypatch):
    assert set(precisions(plan(CPU)).values()) == {None}  # the identity of fp32, as before
    assert set(precisions(plan(GPU)).values()) == {True}
    assert set(precisions(plan(GPU, "defaults.bf16=false")).values()) == {False}
    monkeypatch.setattr(bfloat16, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(bfloat16, "gpus_have_bfloat16", lambda: False)
    assert set(precisions(plan(CPU)).values()) == {True}
    assert set(precisions(plan(GPU)).values()) == {None}


def test_the_gpus_of_other_machines_are_taken_to_have_it(recipe_launch, monkeypatch):
    monkeypatch.setattr(bfloat16, "gpus_have_bfloat16", lambda: False)
    assert with_open_precision("sft", {}, recipe_launch(wrapper="srun -N 2")) == {"bf16": True}
    assert with_open_precision("sft", {}, recipe_launch()) == {}


@pytest.fixture
def recipe_launch():
    from pipeline.recipe.sections import Launch

    return lambda **values: Launch(device="gpu", **values)


def test_the_average_of_variants_is_evaluated_in_the_precision_of_its_parts(plan):
    rates = "dpo.variants=[{learning_rate: 1e-5}, {learning_rate: 2e-5}]"
    assert plan(CPU, rates)["round-1.dpo"].keys["stage_keys"] == {}
    steps = plan(GPU, rates)
    assert steps["round-1.dpo"].keys["stage_keys"] == {"bf16": True} and steps["round-1.dpo.1"].keys["bf16"] is True


def test_defaults_pad_rows_and_not_the_vocabulary(plan):
    steps = plan(CPU, "defaults.pad_to_multiple_of=auto")
    assert steps["round-1.dpo"].keys["pad_to_multiple_of"] == "auto"
    assert "pad_to_multiple_of" not in steps["prepare_base"].keys
    steps = plan(CPU, "prepare_base.pad_to_multiple_of=64")
    assert steps["prepare_base"].keys["pad_to_multiple_of"] == 64
    assert "pad_to_multiple_of" not in steps["round-1.dpo"].keys


def test_a_precision_that_this_cpu_emulates_is_told_before_the_run(plan, monkeypatch):
    overrides = ["dpo.bf16=true", "annotate.dtype=bfloat16", "prepare_base.dtype=bfloat16"]
    first, second = emulated_precision(list(plan(CPU, *overrides).values()))
    assert first.startswith("bf16: true (in dpo) is only emulated by this CPU") and first.endswith("set bf16: false")
    assert second.startswith("dtype: bfloat16 (in annotate)") and second.endswith("set dtype: float32")
    for device in (["launch.device=gpu"], ["launch.wrapper=srun"]):
        assert emulated_precision(list(plan(CPU, *overrides, *device).values())) == []
    monkeypatch.setattr(bfloat16, "cpu_has_bfloat16", lambda: True)
    assert emulated_precision(list(plan(CPU, *overrides).values())) == []
