"""Samples answers to prompts from one or more policies, by the engine that the settings name, or by an endpoint.

The noise of an answer depends only on (seed, prompt id, k, position), and batches are formed before they are divided
among processes. So any number of processes gives the same answers, and another batch size changes rounding at most.
"""

from collections.abc import Callable, Mapping, Sequence

from data_schemas.rows import Prompt
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer, Engine, Policy, SampleRequest, SamplingSettings
from engine.sampling.endpoint_engine import EndpointEngine
from engine.sampling.transformers_engine import TransformersEngine
from engine.sampling.vllm_engine import VLLMEngine

# (stage, name of the journal, policy, settings) -> an engine that is ready to sample.
ENGINES: Mapping[str, Callable[[Stage, str, Policy, SamplingSettings], Engine]] = {
    "transformers": TransformersEngine.load,
    "vllm": VLLMEngine,
}


def sample_in_turn(
    stage: Stage,
    policies: Sequence[Policy],
    prompts: Sequence[tuple[Prompt, float | None]],
    settings: SamplingSettings,
    *,
    num_answers: int,
) -> list[list[Answer]]:
    """`num_answers` answers to each (prompt, temperature), by prompt. The policies take turns: answer k is sampled from
    policy k modulo the number of policies. A temperature of None is that of the settings."""
    answers: dict[tuple[int, int], Answer] = {}  # (number of the prompt, k)
    for turn, policy in enumerate(policies):
        places = [(place, k) for place in range(len(prompts)) for k in range(turn, num_answers, len(policies))]
        requests = [SampleRequest(prompts[place][0], k, prompts[place][1]) for place, k in places]
        answers |= dict(zip(places, _sample(stage, f"answers-{turn}", policy, requests, settings), strict=True))
    return [[answers[place, k] for k in range(num_answers)] for place in range(len(prompts))]


def _sample(
    stage: Stage, name: str, policy: Policy, requests: Sequence[SampleRequest], settings: SamplingSettings
) -> list[Answer]:
    """The engine is freed on return: one policy is in memory at a time."""
    return engine_of(stage, name, policy, settings).sample(requests)


def engine_of(stage: Stage, name: str, policy: Policy, settings: SamplingSettings) -> Engine:
    """The engine that samples from a policy, ready to do so. `name` is that of its journal."""
    engine = EndpointEngine if policy.endpoint else ENGINES[settings.engine]
    return engine(stage, name, policy, settings)
