"""Scaling laws fitted to synthetic losses of known constants, those of 2404.10102."""

import json
import math
import os
import subprocess

import numpy as np
import pytest
import torch

from commands.scale import Laws, advise, notes
from commands.scaling_laws import HUBER, Form, fit_form, isoflop_law, minima
from commands.scaling_runs import Runs, read_table, runs_of
from data_schemas.errors import DataError
from tests.loop_recipes import COMMAND
from tests.patience import PATIENCE

TRUE = Form(e=1.8172, a=482.01, b=2085.43, alpha=0.3478, beta=0.3658, flops_each=6.0)


def grid(form: Form = TRUE, *, noise: float = 0.0, shift: float = 0.0, seed: int = 0) -> Runs:
    """Seven sizes around the best one in each of six budgets; `shift` moves them all, in log N. `noise` is of log L."""
    pairs = []
    for flops in np.geomspace(6e18, 1e21, 6):
        best = form.law.at(float(flops)).parameters
        pairs += [(best * math.exp(step + shift), float(flops)) for step in np.linspace(-1.5, 1.5, 7)]
    parameters_R, flops_R = np.array(pairs).T
    tokens_R = flops_R / form.flops_each / parameters_R
    errors_R = noise * np.random.default_rng(seed).normal(size=len(pairs))
    return Runs(parameters_R, tokens_R, form.loss(parameters_R, tokens_R) * np.exp(errors_R), flops_R)


def test_the_optimum_of_the_form_is_the_lowest_loss_of_a_budget():
    best = TRUE.law.at(1e22)
    sizes = best.parameters * np.exp(np.linspace(-3, 3, 6001))
    losses = TRUE.loss(sizes, 1e22 / 6 / sizes)
    assert sizes[int(np.argmin(losses))] == pytest.approx(best.parameters, rel=1e-3)
    assert 6 * best.parameters * best.tokens == pytest.approx(1e22)


def test_the_known_constants_are_found():
    found = fit_form(grid())
    for name in ("e", "a", "b", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)


def test_noise_and_an_outlier_move_the_optimum_little():
    runs = grid(noise=0.002)
    loss_R = runs.loss_R.copy()
    loss_R[10] *= 1.2  # a run that diverged
    found = fit_form(runs.with_losses(loss_R))
    assert found.law.at(1e22).parameters == pytest.approx(TRUE.law.at(1e22).parameters, rel=0.1)


def test_the_fit_is_at_least_as_good_as_that_of_lbfgs():
    """The published minimiser on the same objective, from the true constants."""
    runs = grid(noise=0.005)

    def objective(values: torch.Tensor) -> torch.Tensor:
        log_n, log_d, log_l = (torch.tensor(np.log(v)) for v in (runs.parameters_R, runs.tokens_R, runs.loss_R))
        a, b, e, alpha, beta = values
        terms = torch.stack([a - alpha * log_n, b - beta * log_d, e.expand(len(runs))])
        return torch.nn.functional.huber_loss(torch.logsumexp(terms, 0), log_l, reduction="sum", delta=HUBER)

    def logs(form: Form) -> torch.Tensor:
        values = [math.log(form.a), math.log(form.b), math.log(form.e), form.alpha, form.beta]
        return torch.tensor(values, dtype=torch.float64)

    values = logs(TRUE).requires_grad_()
    optimizer = torch.optim.LBFGS([values], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = objective(values)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(objective(logs(fit_form(runs)))) <= float(objective(values.detach())) * (1 + 1e-6)


def test_parabolas_through_exact_losses_are_near_the_optimum_and_their_bias_is_known():
    laws = Laws.fit(grid(shift=0.7))
    assert laws.isoflop is not None
    off = laws.isoflop.at(3.8e25).parameters / TRUE.law.at(3.8e25).parameters - 1
    assert 0.001 < off < 0.02  # 0.55 %: the grid is not centred
    assert laws.grid_bias(3.8e25) == pytest.approx(off, rel=1e-3)


def test_a_minimum_outside_of_the_sizes_is_not_used():
    found = minima(grid(shift=2.5))
    assert {minimum.problem for minimum in found} == {"the minimum is outside of the sizes"}
    assert isoflop_law(found) is None


def test_intervals_hold_the_truth_and_have_no_width_without_noise():
    for noise, width in ((0.002, 0.05), (0.0, 0.0)):
        parametric, isoflop = advise(Laws.fit(grid(noise=noise)), 1e22)
        low, high = parametric.parameters_interval
        truth = TRUE.law.at(1e22).parameters
        assert low <= truth * (1 + 1e-6) and truth * (1 - 1e-6) <= high
        assert (high - low) / truth > width or noise == 0
        if noise == 0:
            assert high / low == pytest.approx(1, abs=1e-4)
        assert isoflop.parameters == pytest.approx(truth, rel=0.1)


def test_the_wasted_share_is_that_of_a_smaller_budget_with_the_same_loss():
    flops, parameters = 1e22, 2 * TRUE.law.at(1e22).parameters
    wasted = TRUE.wasted(flops, parameters)
    smaller = TRUE.law.at((1 - wasted) * flops)
    same = float(TRUE.loss(smaller.parameters, smaller.tokens))
    assert same == pytest.approx(float(TRUE.loss(parameters, flops / 6 / parameters)))
    assert 0.01 < wasted < 0.2


def test_fits_that_disagree_are_reported():
    runs = grid()
    tilted = runs.with_losses(runs.loss_R * (runs.parameters_R / runs.parameters_R.mean()) ** 0.02)
    laws = Laws.fit(tilted)
    assert next(notes(laws, 1e22)).endswith("the intervals do not overlap: the fits disagree")
    *_, last = notes(laws, 1e26)
    assert last == "1e+26 FLOPs are 1e+05 times the largest run: too far for the intervals to be true"
    (first, *_) = notes(Laws.fit(grid(noise=0.01)), 1e22)
    assert first.endswith("the intervals overlap")


def test_a_table_may_come_through_a_pipe():
    """It can be read once only, as in `alignloop scale <(grep web runs.csv)`."""
    runs = grid()
    rows = zip(runs.parameters_R, runs.tokens_R, runs.loss_R, strict=True)
    text = "\n".join(["parameters,tokens,loss", *(",".join(map(repr, map(float, row))) for row in rows)])
    command = [COMMAND, "scale", "/dev/stdin", "--budget", "1e22"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"{len(runs)} runs of" in done.stdout, done.stderr


def test_other_flops_than_six_are_read(tmp_path):
    runs = grid(Form(1.8172, 482.01, 2085.43, 0.3478, 0.3658, flops_each=8.0))
    rows = zip(runs.parameters_R, runs.tokens_R, runs.loss_R, runs.flops_R, strict=True)
    lines = [",".join(map(repr, map(float, row))) for row in rows]
    (tmp_path / "runs.csv").write_text("\n".join(["parameters,tokens,loss,flops", *lines]))
    read = runs_of(tmp_path / "runs.csv", read_table(tmp_path / "runs.csv"))
    assert read.flops_per_parameter_and_token == pytest.approx(8) and len(read.budgets()) == 6
    best = fit_form(read).law.at(1e22)
    assert 8 * best.parameters * best.tokens == pytest.approx(1e22)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column parameters: expected parameters, tokens, loss and, where it is not 6"),
        ("parameters,token,loss\n1,2,3\n", "has no column tokens"),
        ("parameters,tokens,loss\n1e6,1e8,x\n", "line 2: loss='x', expected a number, above 0"),
        ("parameters,tokens,loss\n1e6,1e8\n", "line 2: loss=None, expected a number, above 0"),
        ("parameters,tokens,loss\n1e6,1e8,-1\n", "line 2: loss='-1', expected a number, above 0"),
        ("parameters,tokens,loss\n1e6,1e8,3\n", "has 1 runs, expected at least 8: the form has five constants"),
        ("parameters,tokens,loss\n" + "1e6,1e8,3\n" * 9, "has 1 different values of parameters, expected at least 3"),
        ("\xff", "can't be read (not a CSV file in UTF-8): expected a CSV file of runs"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(text, message, tmp_path):
    (tmp_path / "runs.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as error:
        runs_of(tmp_path / "runs.csv", read_table(tmp_path / "runs.csv"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_command_prints_both_fits_and_writes_all_digits(tmp_path):
    runs = grid(noise=0.001)
    rows = zip(runs.parameters_R, runs.tokens_R, runs.loss_R, strict=True)
    lines = [",".join(map(repr, map(float, row))) for row in rows]
    (tmp_path / "runs.csv").write_text("\n".join(["parameters,tokens,loss", *lines]))

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [COMMAND, "scale", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    done = call("runs.csv", "--budget", "1e22", "-o", "laws.json")
    assert done.returncode == 0, done.stderr
    assert "runs.csv: 42 runs of 6 budgets" in done.stdout and "| IsoFLOP " in done.stdout
    written = json.loads((tmp_path / "laws.json").read_text())
    assert written["parametric"]["a"] == pytest.approx(TRUE.law.a, abs=0.02)
    assert written["budgets"]["1e+22"][0]["parameters"] == pytest.approx(TRUE.law.at(1e22).parameters, rel=0.1)
    for words, message in (
        (("runs.csv", "--budget", "-1"), "error: --budget -1.0: expected FLOPs, a number above 0, as in 1e21"),
        (("gone.csv",), "error: gone.csv can't be read (No such file or directory): expected a CSV file of runs"),
    ):
        failed = call(*words)
        assert failed.returncode == 2 and failed.stderr == message + "\n"
