"""What `alignloop scale` prints of a table of runs on data mixes: the best mix and how certain it is.

share.web,share.code,share.books,loss
0.61,0.28,0.11,3.412
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from commands.mixture_laws import (
    Mixes,
    MixLaw,
    best_mix,
    candidates,
    features,
    fit_mix_law,
    fit_resamples,
    log_ratios,
    num_features,
)
from commands.scaling_runs import number
from data_schemas.errors import DataError

SHARE, LOSS = "share.", "loss"
NUM_RESAMPLES = 200
SEED = 42
WEAK = 0.5  # of the variance: a regression that explains less does not order the mixes


@dataclass(frozen=True)
class BestMix:
    """The best mix, and those of resamples of the runs."""

    mixes: Mixes
    law: MixLaw
    shares_K: np.ndarray
    loss: float
    resampled_SK: np.ndarray  # S = resamples
    resampled_loss_S: np.ndarray

    @classmethod
    def fit(cls, mixes: Mixes) -> "BestMix":
        draws = np.random.default_rng(SEED)
        law, drawn_CK = fit_mix_law(mixes), candidates(mixes, draws)
        features_CF = features(log_ratios(drawn_CK), law.degree)
        best_K = best_mix(drawn_CK, features_CF @ law.weights_F)
        weights_SF = fit_resamples(mixes, law, NUM_RESAMPLES, draws)
        found_SK = np.array([best_mix(drawn_CK, features_CF @ weights_F) for weights_F in weights_SF])
        of_best_F = features(log_ratios(best_K[None]), law.degree)[0]
        return cls(mixes, law, best_K, float(law.loss(best_K[None])[0]), found_SK, weights_SF @ of_best_F)

    def intervals(self) -> np.ndarray:
        """The middle 95 % of each share, [2, K]."""
        return np.percentile(self.resampled_SK, [2.5, 97.5], axis=0)


def is_of_mixes(rows: Sequence[dict[str, str]]) -> bool:
    """Whether a table has columns of shares."""
    return any(str(name).startswith(SHARE) for name in (rows[0] if rows else {}))


def mixes_of(path: Path, rows: Sequence[dict[str, str]]) -> Mixes:
    """The runs of the lines of a table. Raises DataError for a number or a sum that can't be used, and for too few."""
    columns = [str(name) for name in rows[0] if str(name).startswith(SHARE)]
    names = [column.removeprefix(SHARE) for column in columns]
    if LOSS not in rows[0]:
        raise DataError(f"{path} has no column {LOSS}: expected {LOSS} and a column {SHARE}NAME for each source")
    if len(names) < 2:
        raise DataError(f"{path} has one column {columns[0]}, expected one for each of two sources or more")
    shares_RK = np.array(
        [
            [number(path, place, column, row, least="0 or more") for column in columns]
            for place, row in enumerate(rows, 2)
        ]
    )
    loss_R = np.array([number(path, place, LOSS, row) for place, row in enumerate(rows, 2)])
    wrong = np.flatnonzero(np.abs(shares_RK.sum(axis=1) - 1) > 0.01)
    if len(wrong):
        total = shares_RK[wrong[0]].sum()
        raise DataError(f"{path} line {wrong[0] + 2}: the shares have the sum {total:.4g}, expected 1")
    least = num_features(len(names), 1) + 2
    if len(rows) < least:
        raise DataError(f"{path} has {len(rows)} runs, expected at least {least} for {len(names)} sources")
    return Mixes(names, shares_RK / shares_RK.sum(axis=1, keepdims=True), loss_R)


def shares_table(best: BestMix) -> Table:
    table = Table("source", "best share", "95 %", "shares of the runs", box=box.MARKDOWN)
    low_K, high_K = best.intervals()
    for place, name in enumerate(best.mixes.names):
        tried_R = best.mixes.shares_RK[:, place]
        table.add_row(
            name,
            f"{best.shares_K[place]:.3f}",
            f"{low_K[place]:.3f}-{high_K[place]:.3f}",
            f"{tried_R.min():.3f}-{tried_R.max():.3f}",
        )
    return table


def notes(best: BestMix) -> Iterator[str]:
    """What the best mix rests on."""
    law, losses_R = best.law, best.mixes.loss_R
    kind = "quadratic" if law.degree == 2 else "linear"
    low, high = np.percentile(best.resampled_loss_S, [2.5, 97.5])
    yield (
        f"predicted loss of the best mix {best.loss:.4f} ({low:.4f}-{high:.4f}); the runs have {losses_R.min():.4f} to "
        f"{losses_R.max():.4f}, and their mean mix is predicted at "
        f"{float(law.loss(best.mixes.shares_RK.mean(axis=0)[None])[0]):.4f}"
    )
    yield (
        f"the {kind} regression predicts a run that it has not seen with an error of {law.error:.4f}, which explains "
        f"{100 * law.explained:.0f} % of the variance of the losses"
    )
    if law.explained < WEAK:
        yield "that is too little to order the mixes: train on more mixes, or for longer"


def as_json(best: BestMix) -> str:
    low_K, high_K = best.intervals()
    content = {
        "sources": {
            name: {"share": float(best.shares_K[k]), "interval": [float(low_K[k]), float(high_K[k])]}
            for k, name in enumerate(best.mixes.names)
        },
        "loss": best.loss,
        "degree": best.law.degree,
        "error": best.law.error,
        "explained": best.law.explained,
    }
    return json.dumps(content, indent=2) + "\n"
