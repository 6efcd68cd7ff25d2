"""Fits scaling laws to a table of small runs and names the model and the tokens for a budget. Needs no torch. A table
with columns of shares is one of data mixes, of which it names the best (commands/mixture.py).

alignloop scale runs.csv --budget 1e21 [--budget 1e22] [--output laws.json]
alignloop scale mixes.csv [--output mix.json]
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from commands import mixture
from commands.scaling_laws import Form, Minimum, PowerLaw, fit_form, fit_resamples, isoflop_law, minima
from commands.scaling_runs import Runs, read_table, runs_of
from data_schemas.errors import ConfigError, UserError
from data_schemas.files import write_atomically
from data_schemas.outputs import check_new_file
from data_schemas.text import printable
from data_schemas.unexpected import guarded

NUM_RESAMPLES = 200
FAR = 100.0  # times the largest budget of the table
SEED = 42
Interval = tuple[float, float]


@dataclass(frozen=True)
class Laws:
    """Both fits to the runs, and to each resample of them, in which every budget keeps its number of runs."""

    runs: Runs
    minima: list[Minimum]
    isoflop: PowerLaw | None
    form: Form
    isoflop_resampled: list[PowerLaw]
    form_resampled: list[Form]

    @classmethod
    def fit(cls, runs: Runs) -> "Laws":
        form, found = fit_form(runs), minima(runs)
        draws = np.random.default_rng(SEED)
        chosen = [
            np.concatenate([draws.choice(places, len(places)) for places in runs.budgets()])
            for _ in range(NUM_RESAMPLES)
        ]
        counts_SR = np.array([np.bincount(places, minlength=len(runs)) for places in chosen])
        laws = [isoflop_law(minima(runs.take(places))) for places in chosen]
        return cls(
            runs,
            found,
            isoflop_law(found),
            form,
            [law for law in laws if law is not None],
            fit_resamples(runs, form, counts_SR),
        )

    def grid_bias(self, flops: float) -> float | None:
        """By what share the parabolas of this grid miss the best size if the form were the truth, without noise
        (2603.22339): from grids that are wide or not centred, and from alpha other than beta."""
        exact = self.runs.with_losses(self.form.loss(self.runs.parameters_R, self.runs.tokens_R))
        law = isoflop_law(minima(exact))
        return law and law.at(flops).parameters / self.form.law.at(flops).parameters - 1


def interval(values: list[float]) -> Interval:
    """The middle 95 % of a bootstrap."""
    low, high = np.percentile(values, [2.5, 97.5]) if values else (math.nan, math.nan)
    return float(low), float(high)


@dataclass(frozen=True)
class Advice:
    """What one fit says of a budget."""

    fit: str
    parameters: float
    parameters_interval: Interval
    tokens: float
    tokens_interval: Interval
    loss: float


def advise(laws: Laws, flops: float) -> list[Advice]:
    """The parametric form's advice, and that of the IsoFLOP parabolas where they have one. Losses are of the form."""
    fits = [("parametric", laws.form.law, [form.law for form in laws.form_resampled])]
    if laws.isoflop is not None:
        fits.append(("IsoFLOP", laws.isoflop, laws.isoflop_resampled))
    made = []
    for name, law, resampled in fits:
        best, others = law.at(flops), [other.at(flops) for other in resampled]
        loss = float(laws.form.loss(best.parameters, best.tokens))
        of_n = interval([other.parameters for other in others])
        made.append(
            Advice(name, best.parameters, of_n, best.tokens, interval([other.tokens for other in others]), loss)
        )
    return made


def notes(laws: Laws, flops: float) -> Iterator[str]:
    """Where the fits disagree, and what the advice for a budget rests on."""
    form, largest = laws.form, float(laws.runs.flops_R.max())
    if laws.isoflop is not None:
        by_form, by_isoflop = form.law.at(flops), laws.isoflop.at(flops)
        ratio, wasted = by_isoflop.parameters / by_form.parameters, form.wasted(flops, by_isoflop.parameters)
        of_form, of_isoflop = (advice.parameters_interval for advice in advise(laws, flops))
        apart = of_form[1] < of_isoflop[0] or of_isoflop[1] < of_form[0]
        yield (
            f"at {flops:.3g} FLOPs the IsoFLOP parabolas name {ratio:.3g} times the parameters of the parametric form, "
            f"which would waste {100 * wasted:.2g} % of the FLOPs if the form is right; the intervals "
            f"{'do not overlap: the fits disagree' if apart else 'overlap'}"
        )
        bias = laws.grid_bias(flops)
        if bias is not None:
            yield f"of that, {100 * bias:+.2g} % is the bias of this grid: parabolas miss by it even without noise"
    if flops > FAR * largest:
        yield f"{flops:.3g} FLOPs are {flops / largest:.3g} times the largest run: too far for the intervals to be true"


def powers(laws: Laws) -> Table:
    table = Table("fit", "N*(C)", "exponent's 95 %", "D*(C)", "exponent's 95 %", box=box.MARKDOWN)
    fits = [("parametric", laws.form.law, [form.law for form in laws.form_resampled])]
    if laws.isoflop is not None:
        fits.append(("IsoFLOP", laws.isoflop, laws.isoflop_resampled))
    for name, law, resampled in fits:
        table.add_row(
            name,
            f"{math.exp(law.log_k_n):.4g} C^{law.a:.4f}",
            _range(interval([other.a for other in resampled]), lambda value: f"{value:.3f}"),
            f"{math.exp(law.log_k_d):.4g} C^{law.b:.4f}",
            _range(interval([other.b for other in resampled]), lambda value: f"{value:.3f}"),
        )
    return table


def bottoms(laws: Laws) -> Table:
    table = Table("FLOPs", "runs", "parameters", "tokens", "loss", "", box=box.MARKDOWN)
    for found in laws.minima:
        numbers = [found.parameters, found.tokens, found.loss]
        cells = ["" if math.isnan(number) else f"{number:.4g}" for number in numbers]
        table.add_row(f"{found.flops:.3g}", str(found.num_runs), *cells, found.problem)
    return table


def advices(laws: Laws, budgets: list[float]) -> Table:
    table = Table("FLOPs", "fit", "parameters", "95 %", "tokens", "95 %", "tokens each", "loss", box=box.MARKDOWN)
    for flops in budgets:
        for advice in advise(laws, flops):
            table.add_row(
                f"{flops:.3g}",
                advice.fit,
                f"{advice.parameters:.4g}",
                _range(advice.parameters_interval, lambda value: f"{value:.3g}"),
                f"{advice.tokens:.4g}",
                _range(advice.tokens_interval, lambda value: f"{value:.3g}"),
                f"{advice.tokens / advice.parameters:.3g}",
                f"{advice.loss:.4f}",
            )
    return table


def _range(found: Interval, shown: Callable[[float], str]) -> str:
    return "" if math.isnan(found[0]) else f"{shown(found[0])}-{shown(found[1])}"


def as_json(laws: Laws, budgets: list[float]) -> str:
    """Everything with all digits: an exponent that is rounded to two moves the tokens of a large budget by a third."""
    content = {
        "form": asdict(laws.form),
        "parametric": asdict(laws.form.law),
        "isoflop": laws.isoflop and asdict(laws.isoflop),
        "minima": [
            {name: None if value != value else value for name, value in asdict(found).items()} for found in laws.minima
        ],
        "budgets": {f"{flops:g}": [asdict(advice) for advice in advise(laws, flops)] for flops in budgets},
    }
    return json.dumps(content, indent=2) + "\n"


def show_mix(arguments: argparse.Namespace, rows: Sequence[dict[str, str]], console: Console) -> None:
    """Prints the best mix of a table of mixes. Raises DataError for a table that can't be used."""
    best = mixture.BestMix.fit(mixture.mixes_of(Path(arguments.table), rows))
    mixes = best.mixes
    console.print(Text(f"{printable(arguments.table)}: {len(mixes)} runs on mixes of {len(mixes.names)} sources"))
    console.print(mixture.shares_table(best))
    for note in mixture.notes(best):
        console.print(Text(note), soft_wrap=True)
    if arguments.output is not None:
        write_atomically(Path(arguments.output), mixture.as_json(best))
        console.print(Text(f"written: {printable(arguments.output)}"))


def main() -> int:
    try:
        return show(parse())
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    parser.add_argument("--budget", type=float, action="append", default=[])
    parser.add_argument("--output")
    return parser.parse_args()


def show(arguments: argparse.Namespace) -> int:
    """Prints the tables. Raises ConfigError for a budget, DataError for a table that can't be used."""
    for flops in arguments.budget:
        if not (math.isfinite(flops) and flops > 0):
            raise ConfigError(f"--budget {flops}: expected FLOPs, a number above 0, as in 1e21")
    if arguments.output is not None:
        check_new_file(Path(arguments.output))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    rows = read_table(Path(arguments.table))
    if mixture.is_of_mixes(rows):
        if arguments.budget:
            raise ConfigError("--budget is for a table of sizes, and this one has data mixes; leave it out")
        show_mix(arguments, rows, console)
        return 0
    runs = runs_of(Path(arguments.table), rows)
    laws = Laws.fit(runs)
    budgets = arguments.budget or [10 * float(runs.flops_R.max())]
    form = laws.form
    console.print(Text(f"{printable(arguments.table)}: {len(runs)} runs of {len(laws.minima)} budgets"))
    console.print(
        Text(
            f"L = {form.e:.4f} + {form.a:.5g} / N^{form.alpha:.4f} + {form.b:.5g} / D^{form.beta:.4f}, "
            f"C = {form.flops_each:.3g} N D"
        )
    )
    for table in (bottoms(laws), powers(laws), advices(laws, budgets)):
        console.print(table)
    if laws.isoflop is None:
        console.print(
            Text("fewer than two budgets have a minimum within their sizes: only the parametric form is used")
        )
    for flops in budgets:
        for note in notes(laws, flops):
            console.print(Text(note), soft_wrap=True)
    if arguments.output is not None:
        write_atomically(Path(arguments.output), as_json(laws, budgets))
        console.print(Text(f"written: {printable(arguments.output)}"))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
