"""Intervals of 95 %: that of a mean of paired differences by a bootstrap, and what all of them share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

NUM_RESAMPLES = 2_000
Z = 1.959964  # of the normal distribution, for a two-sided 95 % interval


def paired_interval(differences_P: "np.ndarray | Sequence[float]", *, seed: int) -> tuple[float, float, float]:
    """The mean of paired differences and its 95 % interval, by a bootstrap over prompts with 2,000 resamples.

    Shapes: P = prompts.
    """
    import numpy as np  # only here: most of what imports this package has no need of it

    values_P = np.asarray(differences_P)
    draws = np.random.default_rng(seed).integers(0, len(values_P), (NUM_RESAMPLES, len(values_P)))
    low, high = np.percentile(values_P[draws].mean(axis=1), [2.5, 97.5])
    return float(values_P.mean()), float(low), float(high)
