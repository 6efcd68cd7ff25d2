"""A judge's win rate, corrected by the labels of people: prediction-powered inference, stratified.

    estimate = sum over strata s of W_s * (mean of lambda * f over all of s + mean of h - lambda * f over the labelled)

f are the judge's points and h those of people (Angelopoulos et al., arXiv 2301.09633; lambda as in PPI++, 2311.01453;
strata as in Fisch et al., 2406.04291). The estimate is right whatever the judge is; a good judge makes the interval
narrower than people alone would. It differs from the published form in that the labelled prompts are a random part of
all prompts, not a second sample, so the variance is that of two-phase sampling:

    var = sigma^2(h) / N + sum over s of W_s^2 * (1 / n_s - 1 / N_s) * sigma^2_s(h - lambda * f)
"""

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np

from data_schemas.intervals import Z
from engine.judging.length_control import WinRate

# Shapes: P = prompts, L = labelled prompts, S = strata. N_s, n_s = prompts and labelled prompts of a stratum.
MIN_LABELLED = 10  # of a stratum; smaller ones are taken together


def draw_labelled(strata_P: Sequence[str], count: int, *, seed: int) -> list[int]:
    """The prompts that people label, in order: of each stratum a random part in proportion to its size."""
    mixed = list(range(len(strata_P)))
    random.Random(f"{seed}/labelled").shuffle(mixed)
    sizes, seen = Counter(strata_P), Counter[str]()
    places: list[tuple[float, int]] = []  # how far into its stratum a prompt is, from 0 to 1
    for prompt in mixed:
        stratum = strata_P[prompt]
        places.append(((seen[stratum] + 0.5) / sizes[stratum], prompt))
        seen[stratum] += 1
    return sorted(prompt for _, prompt in sorted(places)[:count])


def corrected_rate(
    judge_P: np.ndarray, labelled_L: Sequence[int], human_L: np.ndarray, strata_P: Sequence[str]
) -> WinRate | None:
    """The corrected win rate; points are 1 for a win, 0.5 for a tie, 0 for a loss.

    A prompt without a verdict of the judge has nan, which counts as a tie: the correction is for that too. None with
    fewer than two labels.
    """
    if len(labelled_L) < 2:
        return None
    judge_P = np.where(np.isnan(judge_P), 0.5, judge_P)
    labelled = np.asarray(labelled_L)
    stratum_P = _numbered(strata_P, labelled)
    num_prompts, num_strata = len(judge_P), int(stratum_P.max()) + 1
    judge_L, stratum_L = judge_P[labelled], stratum_P[labelled]
    weight = _weight(judge_L, human_L, stratum_L)
    rest_L = human_L - weight * judge_L
    mean, variance, spread = 0.0, 0.0, 0.0
    means: list[tuple[float, float]] = []
    for stratum in range(num_strata):
        in_all, in_labelled = stratum_P == stratum, stratum_L == stratum
        size, labels = int(in_all.sum()), int(in_labelled.sum())
        share = size / num_prompts
        of_stratum = weight * judge_P[in_all].mean() + rest_L[in_labelled].mean()
        mean += share * of_stratum
        variance += share**2 * (1 / labels - 1 / size) * float(rest_L[in_labelled].var(ddof=1))
        spread += share * float(human_L[in_labelled].var(ddof=1))
        means.append((share, of_stratum))
    spread += sum(share * (of_stratum - mean) ** 2 for share, of_stratum in means)
    half = _quantile(len(labelled) - num_strata) * float(np.sqrt(variance + spread / num_prompts))
    return WinRate(float(np.clip(mean, 0, 1)), max(0.0, mean - half), min(1.0, mean + half))


def _numbered(strata_P: Sequence[str], labelled_L: np.ndarray) -> np.ndarray:
    """The number of each prompt's stratum, from 0 on; those with few labels are one stratum together, [P]."""
    labels = Counter(strata_P[place] for place in labelled_L)
    large = [name for name, count in labels.items() if count >= MIN_LABELLED]
    if sum(labels[name] for name in large) + MIN_LABELLED > len(labelled_L) and len(large) < len(set(strata_P)):
        large = large[:-1]  # too few labels are left for the others: one stratum more joins them
    numbers = {name: place for place, name in enumerate(large)}
    return np.array([numbers.get(name, len(large)) for name in strata_P])


def _weight(judge_L: np.ndarray, human_L: np.ndarray, stratum_L: np.ndarray) -> float:
    """lambda, from 0 to 1, that makes the variance smallest: 0 for a judge that knows nothing."""
    centred = [
        (judge_L[inside] - judge_L[inside].mean(), human_L[inside] - human_L[inside].mean())
        for inside in (stratum_L == stratum for stratum in np.unique(stratum_L))
    ]
    variance = sum(float(judge @ judge) for judge, _ in centred)
    covariance = sum(float(judge @ human) for judge, human in centred)
    return float(np.clip(covariance / variance, 0, 1)) if variance > 0 else 1.0


def _quantile(degrees: int) -> float:
    """That of Student's t for 95 %, by the first term of its expansion: within 1 % from 8 degrees of freedom on."""
    return Z + (Z**3 + Z) / (4 * max(1, degrees))
