"""The error messages about steps that do not fit into memory, and which steps share one."""

from typing import Any

import pytest

from pipeline.planner.devices import GIB, gpu_named
from pipeline.planner.estimate import RunEstimate, StepEstimate
from pipeline.planner.memory import Memory, needed
from pipeline.planner.models import SizedModel
from pipeline.planner.remedies import Remedy, refusals
from pipeline.planner.shapes import Shape
from pipeline.planner.work import Work
from pipeline.recipe.sections import Launch
from pipeline.steps import Step

SHAPE = Shape(hidden=8, layers=2, heads=2, key_heads=2, head_size=4, feed_forward=16, vocabulary=100)


def estimate(name: str, gib: float, *, is_probed: bool = True) -> StepEstimate:
    step = Step(name, name.partition(".")[2], 1, name.partition(".")[2], {}, {}, Launch())
    memory, t4 = Memory(weights=gib * GIB, is_probed=is_probed), gpu_named("t4", where="here")
    return StepEstimate(step, "run", t4, Work(), 0, 0, 0, memory, None, 0, 0, None)


def test_a_vllm_beside_training_reserves_its_share_of_the_gpu():
    t4 = gpu_named("t4", where="here")

    def in_gib(**keys: Any) -> float:
        return needed(Memory(weights=2 * GIB), Step("rl", "rl", 1, "rl", keys, {}, Launch()), t4) / GIB

    assert in_gib() == 2
    assert in_gib(engine="vllm", vllm={"python": "x"}) == pytest.approx(2 + 0.3 * 14.7)
    assert in_gib(engine="vllm", vllm={"python": "x", "gpu_memory_utilization": 0.5}) == pytest.approx(2 + 0.5 * 14.7)


def test_steps_with_the_same_need_and_remedy_share_a_sentence():
    steps = [
        *(estimate(f"round-{number}.annotate", 20) for number in (1, 2, 3)),
        estimate("round-1.dpo", 5),
        *(estimate(f"round-{number}.sft", 30, is_probed=False) for number in (1, 2)),
        estimate("round-3.sft", 31),
    ]
    on_all = Remedy("annotate: {launch: {profile: zero3}}", 2 * GIB)
    remedies = {step.step.name: on_all if step.step.stage == "annotate" else None for step in steps}
    run = RunEstimate(steps, SizedModel(SHAPE, {}, 0, 2, "base"), 10**12)
    none = "no change of batch, checkpointing, ZeRO, offload or LoRA makes it fit"
    room = "and t4 has room for 13.0 GiB"
    assert refusals(run, remedies) == [
        f"round-1.annotate and 2 more steps need 20.0 GiB, {room}; the nearest change that fits is "
        "annotate: {launch: {profile: zero3}}, with 2.0 GiB",
        f"round-1.sft and 1 more step need at least 30.0 GiB, {room}; {none}",
        f"round-3.sft needs 31.0 GiB, {room}; {none}",
    ]
