"""A fake vLLM in its own environment, and answers drawn by it."""

from collections.abc import Callable
from typing import Any

import pytest

from engine.runtime.arguments import GenerationArguments
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling.answers import Answer, Policy, SamplingSettings
from engine.sampling.sampler import sample_in_turn
from tests.engine.sampling.fake_vllm import FakeVLLM
from tests.engine.sampling.vllm_prompts import PROMPTS


@pytest.fixture
def fake(tmp_path) -> FakeVLLM:
    return FakeVLLM(tmp_path / "env")


@pytest.fixture
def draw(fake, tiny_model, tmp_path, monkeypatch) -> Callable[..., list[list[Answer]]]:
    """draw("folder", key=value): three answers to each prompt from the fake vLLM, in groups of 4."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(name: str, prompts: Any = None, num_answers: int = 3, **keys: Any) -> list[list[Answer]]:
        folder = tmp_path / name / "step"  # in a new folder, without answers to resume from
        folder.mkdir(parents=True, exist_ok=True)
        vllm = {"python": fake.python, **keys.pop("vllm", {})}
        given = {"seed": 5, "max_new_tokens": 12, "generation_batch_size": 4, "engine": "vllm", "vllm": vllm, **keys}
        stage = Stage("test", folder, {}, Tracker(folder, active=False), is_main=True)
        requested = [(prompt, None) for prompt in PROMPTS] if prompts is None else prompts
        settings = SamplingSettings.of(GenerationArguments(**given), purpose="p")
        return sample_in_turn(stage, [Policy(str(tiny_model), "tiny")], requested, settings, num_answers=num_answers)

    return run
