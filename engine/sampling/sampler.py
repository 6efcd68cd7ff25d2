"""Sampling answers. One seam: prompts in, answers out, whatever generates them.

The noise of an answer comes from (seed, prompt id, k, position) alone, and batches are formed before they are divided
among processes: any number of processes gives the same answers, another batch size changes rounding at most.
"""

import logging
from collections.abc import Sequence

from data_schemas.rows import Prompt
from engine.models.loading import load_causal, load_tokenizer
from engine.runtime.arguments import GenerationArguments
from engine.runtime.stage import Stage
from engine.runtime.world import device_of
from engine.sampling.answers import Answer, SampleRequest
from engine.sampling.transformers_engine import sample

# Shapes: B = answers in a batch, T = prompt tokens (left-padded), V = vocabulary, N = new tokens at most.
log = logging.getLogger(__name__)


def sample_in_turn(
    stage: Stage,
    policies: Sequence[str],
    prompts: Sequence[tuple[Prompt, float | None]],
    arguments: GenerationArguments,
    *,
    num_answers: int,
    purpose: str,
) -> list[list[Answer]]:
    """`num_answers` answers of each (prompt, temperature): answer k from policy k, from the first after the last."""
    answers: dict[tuple[int, int], Answer] = {}  # (number of the prompt, k)
    for side, path in enumerate(policies):
        mine = [(place, k) for place in range(len(prompts)) for k in range(side, num_answers, len(policies))]
        asks = [SampleRequest(prompts[place][0], k, prompts[place][1]) for place, k in mine]
        tokenizer = load_tokenizer(path)
        if arguments.engine == "vllm":
            from engine.sampling.vllm_engine import sample_by_vllm

            found = sample_by_vllm(stage, f"answers-{side}", path, tokenizer, asks, arguments, purpose=purpose)
        else:
            device = device_of(arguments.use_cpu)
            policy = load_causal(path, dtype=arguments.dtype).to(device).eval()  # pyright: ignore[reportArgumentType]
            found = sample(stage, f"answers-{side}", policy, tokenizer, asks, arguments, purpose=purpose)
            del policy
        answers |= dict(zip(mine, found, strict=True))
    return [[answers[place, k] for k in range(num_answers)] for place in range(len(prompts))]
