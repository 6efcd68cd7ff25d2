"""Length-controlled win rates: what the win rate would be if both answers were equally long.

A logistic model of a win (Dubois et al., AlpacaEval 2, arXiv 2404.04475, eq. 1), for one pair of policies:

    P(win) = sigmoid(theta + phi * tanh(length difference / its standard deviation) + psi * difficulty of the prompt)

The length-controlled rate is the mean over prompts of P with the length term at 0. It differs from the published method
in what one run can know: the difficulty is a number per prompt that the caller has (as a reward model's mean score of
the other policy's answers), not a coefficient fitted over many models; a weak Gaussian prior takes the place of L1 with
cross-validation; ties enter the likelihood as half a win. The interval is a bootstrap over prompts.
"""

from dataclasses import dataclass

import numpy as np

# Shapes: P = prompts, K = answers to each prompt, R = rows with a verdict, F = terms of the model, B = resamples.
NUM_RESAMPLES = 1_000
RESAMPLES_AT_ONCE = 100
NUM_STEPS = 25  # of Newton's method; a handful suffices
PRIOR_SD = 5.0  # of each coefficient: without it, a policy that wins always would have none
WARN_DIFFERENCE = 0.10  # between the raw and the controlled rate, as in the reference implementation


@dataclass(frozen=True)
class WinRate:
    """A share of wins, ties counting half, with its 95 % interval."""

    mean: float
    low: float
    high: float


def length_controlled(
    points_PK: np.ndarray,
    lengths_PK: np.ndarray,
    other_lengths_PK: np.ndarray,
    *,
    seed: int,
    difficulty_P: np.ndarray | None = None,
) -> WinRate | None:
    """The length-controlled win rate of answers with `points_PK` (1, 0.5, 0; nan: no verdict) against others.

    Lengths are in characters. None where no verdict is left.
    """
    num_prompts, num_answers = points_PK.shape
    has_verdict_R = ~np.isnan(points_PK).ravel()
    if not has_verdict_R.any():
        return None
    prompt_R = np.repeat(np.arange(num_prompts), num_answers)[has_verdict_R]
    difference_R = (lengths_PK - other_lengths_PK).astype(float).ravel()[has_verdict_R]
    terms = [np.ones(len(prompt_R)), np.tanh(difference_R / (difference_R.std() or 1.0))]
    if difficulty_P is not None and difficulty_P.std() > 0:
        terms.append(((difficulty_P - difficulty_P.mean()) / difficulty_P.std())[prompt_R])
    terms_RF, points_R = np.stack(terms, axis=1), points_PK.ravel()[has_verdict_R]
    all_1R, start_1F = np.ones((1, len(points_R))), np.zeros((1, terms_RF.shape[1]))
    start_1F = _fit(terms_RF, points_R, all_1R, start_1F)
    mean = float(_rates(terms_RF, all_1R, start_1F)[0])
    random = np.random.default_rng(seed)
    rates: list[np.ndarray] = []
    for _ in range(NUM_RESAMPLES // RESAMPLES_AT_ONCE):
        drawn = random.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), RESAMPLES_AT_ONCE)
        weights_BR = drawn[:, prompt_R].astype(float)
        rates.append(_rates(terms_RF, weights_BR, _fit(terms_RF, points_R, weights_BR, start_1F)))
    low, high = np.nanpercentile(np.concatenate(rates), [2.5, 97.5])
    return WinRate(mean, float(low), float(high))


def _rates(terms_RF: np.ndarray, weights_BR: np.ndarray, coefficients_BF: np.ndarray) -> np.ndarray:
    """The controlled rate for each set of row weights, [B]; nan where all weights are 0."""
    without_length_RF = terms_RF.copy()
    without_length_RF[:, 1] = 0.0
    won_BR = _sigmoid(coefficients_BF @ without_length_RF.T)
    with np.errstate(invalid="ignore"):
        return (won_BR * weights_BR).sum(axis=1) / weights_BR.sum(axis=1)


def _fit(terms_RF: np.ndarray, points_R: np.ndarray, weights_BR: np.ndarray, start_1F: np.ndarray) -> np.ndarray:
    """The coefficients with the highest posterior, [B, F], by Newton's method."""
    products_RFF = (terms_RF[:, :, None] * terms_RF[:, None, :]).reshape(len(terms_RF), -1)  # flat: one product
    prior_FF = np.eye(terms_RF.shape[1]) / PRIOR_SD**2
    coefficients_BF = np.repeat(start_1F, len(weights_BR), axis=0)
    for _ in range(NUM_STEPS):
        won_BR = _sigmoid(coefficients_BF @ terms_RF.T)
        gradient_BF = (weights_BR * (points_R - won_BR)) @ terms_RF - coefficients_BF @ prior_FF
        curvature_BR = weights_BR * won_BR * (1 - won_BR)
        hessian_BFF = (curvature_BR @ products_RFF).reshape(-1, *prior_FF.shape) + prior_FF
        step_BF = np.linalg.solve(hessian_BFF, gradient_BF[..., None])[..., 0]
        # Far from the optimum Newton's step may overshoot; a bounded one cannot diverge.
        coefficients_BF += np.clip(step_BF, -2.0, 2.0)
        if np.abs(step_BF).max() < 1e-6:
            break
    return coefficients_BF


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(values / 2))
