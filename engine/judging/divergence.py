"""The KL divergence of a policy from the first policy, on its own answers."""

from collections.abc import Sequence

import numpy as np

from engine.judging.shared_scoring import SharedScorer, in_groups
from engine.models.loading import identity_of, load_causal, load_tokenizer
from engine.runtime.arguments import GenerationArguments
from engine.runtime.stage import Stage
from engine.runtime.world import device_of
from engine.sampling.answers import Answer, SampleRequest
from engine.tokens.template import encode_prompt


def kl_to_first(
    stage: Stage,
    arguments: GenerationArguments,
    asks: Sequence[SampleRequest],
    answers: Sequence[Answer],
    *,
    policy: str,
    first_policy: str,
) -> float:
    """Mean over answers of log p(answer) - log p_first(answer), in nats an answer: estimates KL(policy || first)."""
    device = device_of(arguments.use_cpu)
    tokenizer = load_tokenizer(policy)
    rows = [
        (encode_prompt(tokenizer, ask.prompt.prompt, tools=ask.prompt.tools), answer.ids)
        for ask, answer in zip(asks, answers, strict=True)
    ]
    sums: list[list[float]] = []
    for name, path in (("policy", policy), ("first", first_policy)):
        model = load_causal(path, dtype=arguments.dtype).to(device).eval()  # pyright: ignore[reportArgumentType]
        scorer = SharedScorer(model, is_reward_model=False)
        sums.append(
            in_groups(
                stage,
                f"log-probs-{name}",
                rows,
                scorer.log_prob_sums,
                batch_size=arguments.generation_batch_size,
                content=(identity_of(path), arguments.dtype),
            )
        )
        del model, scorer
    return float(np.mean(np.array(sums[0]) - np.array(sums[1])))
