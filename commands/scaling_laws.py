"""Scaling laws: the best number of parameters N and of tokens D for a budget of C FLOPs, by two fits.

IsoFLOP (arXiv 2203.15556, approach 2; Llama 3, 2407.21783, 3.2.1): a parabola of the loss over log N in each budget;
its minimum is N*(C), and a power law goes through the minima. The parametric form (approach 3) is
L = E + A/N^alpha + B/D^beta, fitted to log L under a Huber loss as there; the minimiser is Levenberg-Marquardt from a
grid of exponents at which the other constants are linear (variable projection, as 2603.22339 advises), since L-BFGS
from poor starts was what made the published constants wrong (2404.10102).
"""

import math
from dataclasses import dataclass

import numpy as np

from commands.scaling_runs import Runs

# Shapes: R = runs, S = starts, P = 5 parameters (log A at the mean run, log B likewise, log E, alpha, beta).

HUBER = 1e-3  # of log L, as in 2203.15556
EXPONENTS = np.linspace(0.1, 1.2, 12)  # starts of alpha and beta
ROUGH_STEPS, NUM_REFINED = 40, 5  # of every start; of them, the starts that are minimised to the end
STEPS = 300
END = 1e8  # damping at which a step is too short to matter


@dataclass(frozen=True)
class Optimum:
    parameters: float
    tokens: float


@dataclass(frozen=True)
class PowerLaw:
    """N*(C) = k_n C^a and D*(C) = k_d C^b."""

    a: float
    log_k_n: float
    b: float
    log_k_d: float

    def at(self, flops: float) -> Optimum:
        log = math.log(flops)
        return Optimum(math.exp(self.log_k_n + self.a * log), math.exp(self.log_k_d + self.b * log))


@dataclass(frozen=True)
class Minimum:
    """The bottom of a budget's parabola. `problem` is empty if it can be used."""

    flops: float
    num_runs: int
    parameters: float
    tokens: float
    loss: float
    problem: str


@dataclass(frozen=True)
class Form:
    """L = E + A / N^alpha + B / D^beta, and the FLOPs of a parameter and token."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float
    flops_each: float

    def loss(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        return np.asarray(self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    @property
    def law(self) -> PowerLaw:
        """The optimum under C = k N D: N* = G (C/k)^(beta/(alpha+beta)), D* = (C/k)^(alpha/(alpha+beta)) / G with
        G = (alpha A / beta B)^(1/(alpha+beta)) (2203.15556, equation 4)."""
        both = self.alpha + self.beta
        log_g = math.log(self.alpha * self.a / (self.beta * self.b)) / both
        a, b, log_k = self.beta / both, self.alpha / both, math.log(self.flops_each)
        return PowerLaw(a, log_g - a * log_k, b, -log_g - b * log_k)

    def wasted(self, flops: float, parameters: float) -> float:
        """Share of the FLOPs that a model of another size than the best wastes: the best needs that much less for the
        same loss."""
        best = self.law.at(flops)
        lowest = float(self.loss(best.parameters, best.tokens)) - self.e
        reached = float(self.loss(parameters, flops / self.flops_each / parameters)) - self.e
        # Above E, the loss of the optimum falls as C^-(alpha beta / (alpha + beta)).
        return 1 - (reached / lowest) ** (-(self.alpha + self.beta) / (self.alpha * self.beta))


def minima(runs: Runs) -> list[Minimum]:
    """The bottom of the parabola of each budget, the smallest budget first."""
    return [_minimum(runs.take(places)) for places in runs.budgets()]


def _minimum(runs: Runs) -> Minimum:
    flops = float(np.exp(np.log(runs.flops_R).mean()))
    if len(set(runs.parameters_R)) < 3:
        return Minimum(flops, len(runs), math.nan, math.nan, math.nan, "fewer than three sizes")
    bottoms = [_bottom(np.log(values_R), runs.loss_R) for values_R in (runs.parameters_R, runs.tokens_R)]
    if any(bottom is None for bottom in bottoms):
        return Minimum(flops, len(runs), math.nan, math.nan, math.nan, "the losses have no minimum")
    (log_n, loss), (log_d, _) = (bottom for bottom in bottoms if bottom is not None)
    inside = np.log(runs.parameters_R).min() <= log_n <= np.log(runs.parameters_R).max()
    problem = "" if inside else "the minimum is outside of the sizes"
    return Minimum(flops, len(runs), math.exp(log_n), math.exp(log_d), loss, problem)


def _bottom(x_R: np.ndarray, loss_R: np.ndarray) -> tuple[float, float] | None:
    """Where a parabola through the losses is lowest, and its value there; None where it opens downwards."""
    middle = x_R.mean()
    square, slope, constant = np.polyfit(x_R - middle, loss_R, 2)
    if square <= 0 or abs(slope / (2 * square)) > 100:  # a line: no number of parameters is e^100 away
        return None
    return float(middle - slope / (2 * square)), float(constant - slope**2 / (4 * square))


def isoflop_law(found: list[Minimum]) -> PowerLaw | None:
    """The power laws through the minima that can be used; None where there are fewer than two."""
    usable = [minimum for minimum in found if not minimum.problem]
    if len(usable) < 2:
        return None
    log_c = np.log([minimum.flops for minimum in usable])
    a, log_k_n = np.polyfit(log_c, np.log([minimum.parameters for minimum in usable]), 1)
    b, log_k_d = np.polyfit(log_c, np.log([minimum.tokens for minimum in usable]), 1)
    return PowerLaw(float(a), float(log_k_n), float(b), float(log_k_d))


def fit_form(runs: Runs) -> Form:
    """The parametric form with the least Huber loss of log L, from a grid of starts."""
    x_R, y_R, middle = _centred(runs)
    ones_R, log_loss_R = np.ones(len(runs)), np.log(runs.loss_R)
    starts_SP = _starts(x_R, y_R, runs.loss_R)
    rough_SP, value_S = _minimise(starts_SP, x_R, y_R, log_loss_R, ones_R[None], steps=ROUGH_STEPS)
    nearest_SP = rough_SP[np.argsort(value_S, kind="stable")[:NUM_REFINED]]
    found_SP, value_S = _minimise(nearest_SP, x_R, y_R, log_loss_R, ones_R[None], steps=STEPS)
    return _form(found_SP[int(np.argmin(value_S))], middle, runs)


def fit_resamples(runs: Runs, fitted: Form, counts_SR: np.ndarray) -> list[Form]:
    """The form fitted to each resample from the fit to all runs; `counts_SR` is how often a resample has each run."""
    x_R, y_R, middle = _centred(runs)
    logs = math.log(fitted.a) - fitted.alpha * middle[0], math.log(fitted.b) - fitted.beta * middle[1]
    starts_SP = np.tile([*logs, math.log(fitted.e), fitted.alpha, fitted.beta], (len(counts_SR), 1))
    found_SP, _ = _minimise(starts_SP, x_R, y_R, np.log(runs.loss_R), counts_SR, steps=STEPS)
    return [_form(found_P, middle, runs) for found_P in found_SP]


def _centred(runs: Runs) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """log N and log D around their means, and these: constants at the mean run are far less correlated."""
    log_n, log_d = np.log(runs.parameters_R), np.log(runs.tokens_R)
    middle = float(log_n.mean()), float(log_d.mean())
    return log_n - middle[0], log_d - middle[1], middle


def _form(at_P: np.ndarray, middle: tuple[float, float], runs: Runs) -> Form:
    log_a, log_b, log_e, alpha, beta = map(float, at_P)
    a, b = math.exp(log_a + alpha * middle[0]), math.exp(log_b + beta * middle[1])
    return Form(math.exp(log_e), a, b, alpha, beta, runs.flops_per_parameter_and_token)


def _starts(x_R: np.ndarray, y_R: np.ndarray, loss_R: np.ndarray) -> np.ndarray:
    """For each pair of exponents the other constants by least squares, kept above zero."""
    starts = []
    for alpha in EXPONENTS:
        for beta in EXPONENTS:
            columns = np.stack([np.exp(-alpha * x_R), np.exp(-beta * y_R), np.ones_like(x_R)], axis=1)
            solved = np.linalg.lstsq(columns, loss_R, rcond=None)[0]
            starts.append([*np.log(np.maximum(solved, 1e-3 * loss_R.mean())), alpha, beta])
    return np.array(starts)


def _minimise(
    starts_SP: np.ndarray,
    x_R: np.ndarray,
    y_R: np.ndarray,
    log_loss_R: np.ndarray,
    counts_SR: np.ndarray,
    *,
    steps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt on the Huber loss, for all starts at once: the parameters, [S, P], and their losses, [S]."""
    now_SP = starts_SP.copy()
    damping_S = np.full(len(now_SP), 1e-2)
    residual_SR, jacobian_SRP = _residuals(now_SP, x_R, y_R, log_loss_R)
    value_S = (counts_SR * _huber(residual_SR)).sum(axis=1)
    for _ in range(steps):
        weight_SR = counts_SR * np.minimum(1, HUBER / np.maximum(np.abs(residual_SR), 1e-300))
        weighted_SPR = (jacobian_SRP * weight_SR[:, :, None]).transpose(0, 2, 1)
        gradient_SP = (weighted_SPR @ residual_SR[:, :, None])[:, :, 0]
        hessian_SPP = weighted_SPR @ jacobian_SRP
        diagonal_SP = np.einsum("spp->sp", hessian_SPP) + 1e-12
        damped_SPP = hessian_SPP + (damping_S[:, None] * diagonal_SP)[:, :, None] * np.eye(5)
        trial_SP = now_SP - np.linalg.solve(damped_SPP, gradient_SP[:, :, None])[:, :, 0]
        trial_SP = np.clip(trial_SP, [-30, -30, -30, 1e-3, 1e-3], [30, 30, 30, 5, 5])
        of_trial_SR, of_trial_SRP = _residuals(trial_SP, x_R, y_R, log_loss_R)
        trial_value_S = (counts_SR * _huber(of_trial_SR)).sum(axis=1)
        better_S = trial_value_S < value_S
        now_SP[better_S], residual_SR[better_S] = trial_SP[better_S], of_trial_SR[better_S]
        jacobian_SRP[better_S], value_S[better_S] = of_trial_SRP[better_S], trial_value_S[better_S]
        damping_S = np.clip(np.where(better_S, damping_S / 3, damping_S * 4), 1e-12, END)
        if damping_S.min() >= END:  # no step of any start is better
            break
    return now_SP, value_S


def _residuals(
    at_SP: np.ndarray, x_R: np.ndarray, y_R: np.ndarray, log_loss_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """log of the form minus log L, [S, R], and its derivatives by the parameters, [S, R, P]."""
    log_a, log_b, log_e, alpha, beta = (at_SP[:, place, None] for place in range(5))
    terms = np.stack([log_a - alpha * x_R, log_b - beta * y_R, np.broadcast_to(log_e, (len(at_SP), len(x_R)))], axis=2)
    highest = terms.max(axis=2)
    total_SR = highest + np.log(np.exp(terms - highest[:, :, None]).sum(axis=2))
    shares = np.exp(terms - total_SR[:, :, None])
    exponents = [-shares[:, :, 0] * x_R, -shares[:, :, 1] * y_R]
    jacobian = np.concatenate([shares, np.stack(exponents, axis=2)], axis=2)
    return total_SR - log_loss_R, jacobian


def _huber(residual_SR: np.ndarray) -> np.ndarray:
    size = np.abs(residual_SR)
    return np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2))
