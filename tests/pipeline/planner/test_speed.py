"""How long a step takes: learnt from finished steps, or by stated shares of the peak."""

import math
from dataclasses import replace

import pytest

from pipeline.planner.devices import Device
from pipeline.planner.shapes import KNOWN, Shape
from pipeline.planner.speed import FinishedStep, seconds_of, share_of_peak
from pipeline.planner.work import Work
from pipeline.recipe.sections import Launch
from pipeline.steps import Step

SHAPE = Shape.of(KNOWN["meta-llama/Llama-3.1-8B"])
H100 = Device("h100", 80 * 2**30, 989e12, 3.35e12, key="h100")
STEP = Step("round-1.dpo", "dpo", 1, "dpo", {}, {}, Launch(num_processes=8, profile="zero3"))
FINISHED = FinishedStep("dpo", "h100", 8, 8_000_000_000, flops=1e15, working_seconds=100.0, other_seconds=20.0)


def seconds(work: Work, *finished: FinishedStep):
    return seconds_of(STEP, work, SHAPE, H100, parameters=8_030_000_000, finished=finished)


def test_stated_shares_are_those_of_published_runs():
    assert share_of_peak(8_000_000_000) == 0.35
    assert share_of_peak(1_000_000_000) == pytest.approx(0.225)
    assert share_of_peak(100_000_000) == 0.10


def test_without_finished_steps_the_range_is_that_of_the_stated_shares():
    found = seconds(Work(flops=1e19, hardware_flops=1e19, updates=0))
    # 1e19 operations on 8 GPUs of 989e12 a second at 35 % within 40 %, and the start: 15 to 90 s and loading 32 GB
    start = (15 + 4 * 8.03e9 / 2e9, 90 + 4 * 8.03e9 / 0.2e9)
    assert found.basis == "utilisation"
    assert found.low == pytest.approx(start[0] + 1e19 / (8 * 989e12 * 0.49))
    assert found.high == pytest.approx(start[1] + 1e19 / (8 * 989e12 * 0.21))


def test_a_finished_step_gives_the_seconds_an_operation_and_the_time_of_everything_else():
    found = seconds(Work(flops=3e15), FINISHED)
    assert found.basis == "measured"
    assert math.sqrt(found.low * found.high) == pytest.approx(320.0, rel=0.02)  # 20 + 3 * 100
    assert found.low < 320 < found.high


@pytest.mark.parametrize(
    "other", [{"stage": "sft"}, {"hardware": "a100-80gb"}, {"processes": 4}, {"parameters": 1_000_000_000}]
)
def test_nothing_is_learnt_from_another_stage_device_or_model(other):
    assert seconds(Work(flops=3e15), replace(FINISHED, **other)).basis == "utilisation"


def test_the_range_covers_what_several_finished_steps_took():
    slow = replace(FINISHED, working_seconds=200.0)
    found = seconds(Work(flops=1e15), FINISHED, slow)
    assert found.low <= 120 and found.high >= 220
