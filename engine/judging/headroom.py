"""What a round could still gain, and how much of it its reward model finds: why a round helps or does not.

The judge's scores of K answers to a prompt tell how much there is to choose from. The reward model's scores of the same
answers tell whether it chooses as the judge does. Both are of the policy under test on prompts that nothing was trained
on, so the accuracy is on fresh pairs, which the reward model's own held-out split can't show: those pairs are of
earlier policies. (Gao et al., arXiv 2210.10760, compare the same two scores over the course of an optimisation.)
"""

import itertools
from collections.abc import Mapping

import numpy as np

from data_schemas.intervals import NUM_RESAMPLES
from engine.judging.comparison import Metric

# Shapes: P = prompts, K = answers to each prompt, Q = pairs of answers to one prompt, K (K - 1) / 2.
ACCURACY = ("proxy_accuracy", "proxy_accuracy_low", "proxy_accuracy_high")
PROXY_METRICS = ("best_by_proxy", *ACCURACY)
HEADROOM_METRICS = ("best_by_judge", "differing_pairs", "compared_pairs", *PROXY_METRICS)
MIN_DIFFERING = 0.25  # share of pairs with different scores, below which a round has little to learn from
MIN_REACHED = 0.25  # share of the headroom that a useful reward model reaches
MAX_WIDTH = 0.3  # of the interval of an accuracy, above which no sentence about it is supported
HELPS = "more pairs (annotate.num_prompts), a larger base (reward_model_from) or rounds without it (round_stages_from)"


def headroom(judge_PK: np.ndarray, proxy_PK: np.ndarray | None, *, seed: int) -> dict[str, Metric]:
    """The metrics of `diagnosis`, on scores [P, K] of the judge and, if there is one, of the round's reward model.

    `best_by_judge` and `best_by_proxy` are the judge's mean score of each prompt's best answer, chosen by the one or
    the other. `differing_pairs` is the share of the pairs of answers to one prompt that the judge scores differently.
    `proxy_accuracy` is the share of those that the reward model orders as the judge does (a tie counts half), with a
    95 % interval by a bootstrap over prompts. A metric is None where it has no answers to compare.
    """
    _, num_answers = judge_PK.shape
    metrics: dict[str, Metric] = dict.fromkeys(HEADROOM_METRICS)
    if num_answers < 2:
        return metrics
    first, second = np.array([*itertools.combinations(range(num_answers), 2)]).T
    judged_PQ = np.sign(judge_PK[:, first] - judge_PK[:, second])
    differs_PQ = judged_PQ != 0
    metrics |= {
        "best_by_judge": float(judge_PK.max(axis=1).mean()),
        "differing_pairs": float(differs_PQ.mean()),
        "compared_pairs": int(differs_PQ.sum()),
    }
    if proxy_PK is None:
        return metrics
    chosen_P = proxy_PK.argmax(axis=1)
    metrics["best_by_proxy"] = float(judge_PK[np.arange(len(judge_PK)), chosen_P].mean())
    if differs_PQ.any():
        agreement_PQ = (1 + judged_PQ * np.sign(proxy_PK[:, first] - proxy_PK[:, second])) / 2
        agreed_P, count_P = (agreement_PQ * differs_PQ).sum(axis=1), differs_PQ.sum(axis=1)
        draws = np.random.default_rng(seed).integers(0, len(count_P), (NUM_RESAMPLES, len(count_P)))
        shares = agreed_P[draws].sum(axis=1) / np.maximum(count_P[draws].sum(axis=1), 1)
        low, high = np.percentile(shares, [2.5, 97.5])
        accuracy = float(agreed_P.sum() / count_P.sum())
        metrics |= dict(zip(ACCURACY, (accuracy, float(low), float(high)), strict=True))
    return metrics


def diagnosis(metrics: Mapping[str, Metric]) -> str | None:
    """One sentence on what limits the next round, by the metrics of `headroom` and `judge_mean`; None where there was
    one answer to a prompt, which shows nothing."""
    best, differing, mean = (_number(metrics, name) for name in ("best_by_judge", "differing_pairs", "judge_mean"))
    if best is None or differing is None or mean is None:
        return None
    accuracy, low, high, chosen = (_number(metrics, name) for name in (*ACCURACY, "best_by_proxy"))
    room = f"choosing the best of its answers would raise the judge's mean from {mean:.3f} to {best:.3f}"
    if differing < MIN_DIFFERING:
        return (
            f"the answers to one prompt hardly differ: the judge tells {differing:.0%} of their pairs apart; a higher "
            "temperature, more answers to a prompt or harder prompts may help"
        )
    if accuracy is None or low is None or high is None or chosen is None:
        return room
    if low <= 0.5:
        pairs = f"it orders {accuracy:.0%} of {metrics['compared_pairs']} pairs as the judge does"
        if high - low > MAX_WIDTH:
            return (
                f"too few answers to say what the reward model knows of this policy's: {pairs}, [{low:.0%}, {high:.0%}]"
            )
        return f"the reward model is no better than chance on this policy's answers: {pairs}; {HELPS} may help"
    reached = (chosen - mean) / (best - mean)
    if reached <= 0:
        return (
            f"the reward model's choice among this policy's answers is no better than any of them, so its winners "
            f"teach nothing: {room}, its choice gives {chosen:.3f}; {HELPS} may help"
        )
    if reached < MIN_REACHED:
        return (
            f"the reward model's choice is little better than a random one: {room}, its choice gives {chosen:.3f}; "
            f"{HELPS} may help"
        )
    return f"the reward model finds {reached:.0%} of what is there: {room}, its choice gives {chosen:.3f}"


def _number(metrics: Mapping[str, Metric], name: str) -> float | None:
    value = metrics.get(name)
    return float(value) if value is not None else None
