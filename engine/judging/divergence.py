"""The KL divergence of a policy from the first policy, on the policy's own answers."""

from collections.abc import Sequence

import numpy as np

from engine.judging.shared_scoring import ScoringSettings, SharedScorer, in_groups
from engine.models.loading import identity_of, load_causal
from engine.models.policy_tokenizer import load_policy_tokenizer
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer
from engine.tokens.template import encode_prompt


def kl_to_first(
    stage: Stage,
    answers: Sequence[Answer],
    settings: ScoringSettings,
    *,
    policy: str,
    first_policy: str,
) -> float:
    """Mean over answers of log p(answer) - log p_first(answer), in nats per answer.

    With answers sampled from the policy at temperature 1 this is an unbiased estimate of KL(policy || first).
    """
    tokenizer = load_policy_tokenizer(policy)
    rows = [
        (encode_prompt(tokenizer, answer.prompt.prompt, tools=answer.prompt.tools), answer.ids) for answer in answers
    ]

    def log_prob_sums(name: str, path: str) -> np.ndarray:
        model = load_causal(path, dtype=settings.dtype)
        model.to(settings.device)  # pyright: ignore[reportArgumentType]
        scorer = SharedScorer(model.eval(), is_reward_model=False)
        content = (identity_of(path), settings.dtype)
        size = settings.batch_size
        return np.array(in_groups(stage, name, rows, scorer.log_prob_sums, batch_size=size, content=content))

    return float(np.mean(log_prob_sums("log-probs-policy", policy) - log_prob_sums("log-probs-first", first_policy)))
