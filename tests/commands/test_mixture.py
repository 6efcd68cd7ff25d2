"""The best data mix found in synthetic losses whose best mix is known."""

import json
import os
import subprocess

import numpy as np
import pytest

from commands.mixture import BestMix, mixes_of, notes
from commands.mixture_laws import Mixes, candidates, fit_mix_law, log_ratios, num_features
from commands.scaling_runs import read_table
from data_schemas.errors import DataError
from tests.loop_recipes import COMMAND
from tests.patience import PATIENCE

BEST_K = np.array([0.55, 0.3, 0.15])


def losses(shares_RK: np.ndarray) -> np.ndarray:
    """A bowl in the log-ratios, 3 nats at its bottom, which is at BEST_K."""
    away_RZ = log_ratios(shares_RK) - log_ratios(BEST_K[None])
    return 3 + 0.05 * (away_RZ**2).sum(axis=1) + 0.02 * away_RZ[:, 0] * away_RZ[:, 1]


def runs(num_runs: int, *, noise: float = 0.0, seed: int = 0) -> Mixes:
    draws = np.random.default_rng(seed)
    shares_RK = draws.dirichlet([1.5, 1.5, 1.5], num_runs)
    return Mixes(["web", "code", "books"], shares_RK, losses(shares_RK) + noise * draws.normal(size=num_runs))


def test_log_ratios_are_a_distance_between_mixes():
    first, second = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    # Aitchison's distance: the root of the sum of squares of centred logarithms, here log 2, -log 2, 0.
    assert np.linalg.norm(log_ratios(first) - log_ratios(second)) == pytest.approx(np.sqrt(2) * np.log(2))
    assert log_ratios(np.full((1, 4), 0.25)) == pytest.approx(np.zeros((1, 3)), abs=1e-12)
    assert np.isfinite(log_ratios(np.array([[1.0, 0.0, 0.0]]))).all()


def test_a_quadratic_law_is_found_exactly_and_its_best_mix_is_the_true_one():
    mixes = runs(40)
    law = fit_mix_law(mixes)
    assert (law.degree, law.error) == (2, pytest.approx(0, abs=1e-9))
    others = np.random.default_rng(1).dirichlet([2, 2, 2], 50)
    assert law.loss(others) == pytest.approx(losses(others), abs=1e-9)
    best = BestMix.fit(mixes)
    assert best.shares_K == pytest.approx(BEST_K, abs=0.02)
    assert best.loss == pytest.approx(3, abs=1e-3)


def test_noise_gives_intervals_that_hold_the_true_mix_and_grow_with_it():
    widths = []
    for noise in (0.003, 0.02):
        best = BestMix.fit(runs(40, noise=noise))
        low_K, high_K = best.intervals()
        assert (low_K <= BEST_K).all() and (high_K >= BEST_K).all()
        widths.append(float((high_K - low_K).max()))
    assert 0.005 < widths[0] < 0.2
    assert widths[0] < widths[1]


def test_losses_without_a_pattern_are_reported():
    draws = np.random.default_rng(3)
    shares_RK = draws.dirichlet([1, 1, 1], 30)
    *_, last = notes(BestMix.fit(Mixes(["a", "b", "c"], shares_RK, 3 + 0.1 * draws.normal(size=30))))
    assert last == "that is too little to order the mixes: train on more mixes, or for longer"
    assert len(list(notes(BestMix.fit(runs(40))))) == 2


def test_few_runs_are_fitted_linearly_and_the_best_mix_stays_between_those_of_the_runs():
    assert (num_features(3, 1), num_features(3, 2), num_features(5, 2)) == (3, 6, 15)
    shares_RK = np.array([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.3, 0.3, 0.4], [0.35, 0.35, 0.3], [0.35, 0.3, 0.35]])
    mixes = Mixes(["a", "b", "c"], shares_RK, 3 - log_ratios(shares_RK)[:, 0])  # more a, less b, without end
    best = BestMix.fit(mixes)
    assert best.law.degree == 1
    assert best.shares_K == pytest.approx([0.4, 0.3, 0.3], abs=0.02)
    drawn_CK = candidates(mixes, np.random.default_rng(0))
    assert drawn_CK.sum(axis=1) == pytest.approx(np.ones(len(drawn_CK)))
    assert (drawn_CK.max(axis=0) <= 0.4 + 1e-9).all() and (drawn_CK.min(axis=0) >= 0.3 - 1e-9).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("share.a,share.b\n0.5,0.5\n", "has no column loss: expected loss and a column share.NAME for each source"),
        ("share.a,loss\n1,3\n", "has one column share.a, expected one for each of two sources or more"),
        ("share.a,share.b,loss\n0.5,0.6,3\n", "line 2: the shares have the sum 1.1, expected 1"),
        ("share.a,share.b,loss\n-0.5,1.5,3\n", "line 2: share.a='-0.5', expected a number, 0 or more"),
        ("share.a,share.b,loss\n0.5,0.5,0\n", "line 2: loss='0', expected a number, above 0"),
        ("share.a,share.b,loss\n" + "0.5,0.5,3\n" * 3, "has 3 runs, expected at least 4 for 2 sources"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(text, message, tmp_path):
    (tmp_path / "mixes.csv").write_text(text)
    with pytest.raises(DataError) as error:
        mixes_of(tmp_path / "mixes.csv", read_table(tmp_path / "mixes.csv"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_command_prints_the_best_mix_and_writes_it(tmp_path):
    mixes = runs(30, noise=0.002)
    rows = np.column_stack([mixes.shares_RK, mixes.loss_R]).tolist()
    lines = [",".join(map(repr, row)) for row in rows]
    (tmp_path / "mixes.csv").write_text("\n".join(["share.web,share.code,share.books,loss", *lines]))

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [COMMAND, "scale", "mixes.csv", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    done = call("-o", "mix.json")
    assert done.returncode == 0, done.stderr
    assert "mixes.csv: 30 runs on mixes of 3 sources" in done.stdout and "| books " in done.stdout
    written = json.loads((tmp_path / "mix.json").read_text())
    assert [written["sources"][name]["share"] for name in mixes.names] == pytest.approx(BEST_K, abs=0.06)
    refused = call("--budget", "1e20")
    assert refused.returncode == 2
    assert refused.stderr == "error: --budget is for a table of sizes, and this one has data mixes; leave it out\n"
