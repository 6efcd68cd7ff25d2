"""The best mix of data sources by small runs: a regression of the loss on the log-ratios of the shares.

Small models are trained on random mixes, the loss of a mix is predicted by a regression, and the mix with the lowest
prediction is the best (RegMix, arXiv 2407.01492). RegMix fits trees to 512 runs; with tens of runs a polynomial in the
log-ratios is used here. Log-ratios are the coordinates of shares in which sums make sense (Aitchison 1982): a share
that doubles moves them as far at 2 % as at 20 %. The polynomial is linear or quadratic, whichever predicts runs better
that it has not seen. Only mixes between those of the runs are candidates, since a polynomial says nothing beyond them.
"""

from dataclasses import dataclass

import numpy as np

# Shapes: R = runs, K = sources, Z = K - 1 log-ratios, F = features of the polynomial, C = candidates.

SMALLEST_SHARE = 1e-3  # a smaller share counts as this one, since a logarithm needs one above zero
NUM_CANDIDATES = 100_000
RUNS_BETWEEN = 3.0  # so many runs have most of the weight in a candidate
NUM_BEST = 20  # candidates whose mean is the best mix: the lowest one only would follow the noise


@dataclass(frozen=True)
class Mixes:
    """Finished runs on mixes of the same sources."""

    names: list[str]
    shares_RK: np.ndarray
    loss_R: np.ndarray  # nats a token, held out, of the same rows in every run

    def __len__(self) -> int:
        return len(self.loss_R)


@dataclass(frozen=True)
class MixLaw:
    """A polynomial of the log-ratios."""

    degree: int
    weights_F: np.ndarray
    error: float  # root mean square, nats a token, on runs that were left out one at a time
    explained: float  # share of the variance of the losses that the same predictions explain; below 0 worse than a mean
    left_out_R: np.ndarray  # by how much each run's loss is above the prediction without it

    def loss(self, shares_CK: np.ndarray) -> np.ndarray:
        """Predicted losses, [C]."""
        return features(log_ratios(shares_CK), self.degree) @ self.weights_F


def log_ratios(shares_CK: np.ndarray) -> np.ndarray:
    """Isometric log-ratios, [C, Z]: logarithms of the shares in an orthonormal basis without their sum."""
    logs_CK = np.log(np.maximum(shares_CK, SMALLEST_SHARE))
    num_sources = shares_CK.shape[1]
    basis_ZK = np.zeros((num_sources - 1, num_sources))
    for place in range(1, num_sources):
        basis_ZK[place - 1, :place] = 1 / place
        basis_ZK[place - 1, place] = -1
        basis_ZK[place - 1] *= np.sqrt(place / (place + 1))
    return logs_CK @ basis_ZK.T


def features(ratios_CZ: np.ndarray, degree: int) -> np.ndarray:
    """1, the log-ratios and, for degree 2, their products, [C, F]."""
    columns = [np.ones((len(ratios_CZ), 1)), ratios_CZ]
    if degree == 2:
        first, second = np.triu_indices(ratios_CZ.shape[1])
        columns.append(ratios_CZ[:, first] * ratios_CZ[:, second])
    return np.concatenate(columns, axis=1)


def num_features(num_sources: int, degree: int) -> int:
    ratios = num_sources - 1
    return 1 + ratios + (ratios * (ratios + 1) // 2 if degree == 2 else 0)


def fit_mix_law(mixes: Mixes) -> MixLaw:
    """The polynomial with the lower error on runs that are left out; linear where the runs are too few for another."""
    fits = [_fit(mixes, degree) for degree in (1, 2) if len(mixes) > num_features(len(mixes.names), degree) + 1]
    return min(fits, key=lambda fit: fit.error)


def fit_resamples(mixes: Mixes, law: MixLaw, num_resamples: int, draws: np.random.Generator) -> np.ndarray:
    """The weights of the law for losses with other errors, [S, F]: a bootstrap of the errors on runs left out.

    The mixes are those that were chosen, so only the errors are drawn; those of the fit itself would be too small.
    """
    features_RF = features(log_ratios(mixes.shares_RK), law.degree)
    errors_SR = draws.choice(law.left_out_R - law.left_out_R.mean(), size=(num_resamples, len(mixes)))
    return (features_RF @ law.weights_F + errors_SR) @ np.linalg.pinv(features_RF).T


def _fit(mixes: Mixes, degree: int) -> MixLaw:
    features_RF = features(log_ratios(mixes.shares_RK), degree)
    inverse_FR = np.linalg.pinv(features_RF)  # also where shares of the runs depend on each other
    weights_F = inverse_FR @ mixes.loss_R
    # The prediction without a run, in closed form: the residual over 1 - leverage (Allen 1974, PRESS).
    leverage_R = np.minimum(np.einsum("rf,fr->r", features_RF, inverse_FR), 1 - 1e-9)
    left_out_R = (mixes.loss_R - features_RF @ weights_F) / (1 - leverage_R)
    error = float(np.sqrt(np.mean(left_out_R**2)))
    variance = float(np.var(mixes.loss_R))
    return MixLaw(degree, weights_F, error, 1 - error**2 / variance if variance else 0.0, left_out_R)


def candidates(mixes: Mixes, draws: np.random.Generator) -> np.ndarray:
    """Random mixes between those of the runs, [C, K]."""
    concentration = np.full(len(mixes), min(1.0, RUNS_BETWEEN / len(mixes)))
    return draws.dirichlet(concentration, NUM_CANDIDATES) @ mixes.shares_RK


def best_mix(candidates_CK: np.ndarray, loss_C: np.ndarray) -> np.ndarray:
    """Shares of the sources, [K]: the mean of the candidates with the lowest predicted losses."""
    lowest = np.argpartition(loss_C, NUM_BEST)[:NUM_BEST]
    return candidates_CK[lowest].mean(axis=0)
