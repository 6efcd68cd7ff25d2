"""`alignloop compare`: what differs between two runs, or two policies, in the recipe, the results and the answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_schemas.errors import ConfigError
from data_schemas.intervals import paired_interval
from data_schemas.text import nearest, printable
from pipeline.report import rounds
from pipeline.report.page.answers import Evaluated, SideBySide, mean, side_by_side, win_rate
from pipeline.report.page.facts import FactsReader, evaluations
from pipeline.report.rounds import number
from pipeline.state.recipe_changes import recipe_changes
from pipeline.state.summary import Summary, read, trained_models

NUM_SHOWN = 5  # prompts whose answers the terminal shows
WIDTH = 90  # characters of an answer on the terminal
SEED = 0  # of the bootstrap


@dataclass(frozen=True)
class Side:
    """One of the two runs, and the policy of it that is compared."""

    folder: Path
    summary: Summary
    policy: str  # the step that trained it; empty where the run has evaluated none
    evaluated: Evaluated | None
    judge: str | None

    @property
    def shown_policy(self) -> str:
        return self.policy or "no policy"


@dataclass(frozen=True)
class Difference:
    """The second policy's scores minus the first's, over the prompts that both have answered."""

    num_prompts: int
    mean: float
    low: float
    high: float
    wins: float  # share of the answers that score above the other policy's answer with the same prompt and k
    better: int  # prompts on which the second policy's mean score is higher
    worse: int

    @property
    def sentence(self) -> str:
        same = self.num_prompts - self.better - self.worse
        chance = "" if self.low > 0 or self.high < 0 else ", which may be chance"
        return (
            f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}] in the judge's mean over {self.num_prompts} prompts"
            f"{chance}; it wins {self.wins:.1%} of the answers; {self.better} prompts are judged better, {self.worse} "
            f"worse and {same} the same"
        )


@dataclass(frozen=True)
class Comparison:
    """Two runs or policies."""

    sides: tuple[Side, Side]
    recipe: Sequence[str] | None  # a line for each key that differs; None where a summary has no recipe
    difference: Difference | None
    why_not: str  # why there is no difference
    answers: Sequence[SideBySide]

    @property
    def labels(self) -> tuple[str, str]:
        """A short name of each side: the policy, and the run where there are two."""
        first, second = self.sides
        if first.folder.resolve() == second.folder.resolve():
            return first.shown_policy, second.shown_policy
        are_alike = first.folder.name == second.folder.name
        runs = [str(side.folder) if are_alike else side.folder.name for side in self.sides]
        return f"{runs[0]}: {first.shown_policy}", f"{runs[1]}: {second.shown_policy}"

    @property
    def shows_samples(self) -> bool:
        recipes = [side.summary.get("recipe") for side in self.sides]
        return all(recipe is None or recipe["shows_samples"] for recipe in recipes)


def compare(folders: Sequence[Path], policies: Sequence[str] = ()) -> Comparison:
    """Compares two runs. `policies` names a step of each, by default the best policy.

    Raises ConfigError for a folder that is no run, and for a policy that its run has not evaluated.
    """
    first, second = (_side(folder, policies[place] if policies else "") for place, folder in enumerate(folders))
    recipes = [side.summary.get("recipe") for side in (first, second)]
    changes = None if None in recipes else recipe_changes(recipes[0]["content"], recipes[1]["content"])  # pyright: ignore
    difference, why_not = _difference(first, second)
    evaluated = [side.evaluated for side in (first, second) if side.evaluated is not None]
    answers = side_by_side(evaluated) if len(evaluated) == 2 else []
    return Comparison((first, second), changes, difference, why_not, answers)


def _side(folder: Path, step: str) -> Side:
    summary = read(folder)
    known = evaluations(FactsReader(folder).read(summary))
    by_step = {row.policy: row for row in known}
    by_evaluation = {entry["name"]: entry["folder"] for entry in summary["steps"]}
    for one in known:  # an evaluation names the policy that it evaluates
        by_step |= {name: one for name, its in by_evaluation.items() if its and one.file.startswith(f"{its}/")}
    if step and step not in by_step:
        names = [one.policy for one in known]
        raise ConfigError(
            f"{folder} has no evaluated policy {step!r}; expected one of {', '.join(names)}{nearest(step, names)}"
            if names
            else f"{folder} has evaluated no policy; leave the step out, which compares the recipes and models"
        )
    best = summary["best_policy"]
    chosen = by_step.get(step or (best["step"] if best else "")) or (known[-1] if known else None)
    policy = chosen.policy if chosen else ""
    judge = next((row["judge"] for row in summary["rounds"] if row["policy"] == policy), None)
    return Side(folder, summary, policy, chosen, str(judge) if judge else None)


def _difference(first: Side, second: Side) -> tuple[Difference | None, str]:
    """The difference in scores, or why there is none."""
    before, after = first.evaluated, second.evaluated
    if before is None or after is None:
        missing = first if before is None else second
        return None, f"{missing.folder} has evaluated no policy"
    if first.judge != second.judge:
        return None, f"the scores are of two judges, {first.judge} and {second.judge}"
    common = sorted(set(before.prompts) & set(after.prompts))
    pairs = [(mean(before.prompts[prompt].scores), mean(after.prompts[prompt].scores)) for prompt in common]
    differences = [now - then for then, now in pairs if then is not None and now is not None]
    rate = win_rate(after, before)
    if not differences and (damaged := [side for side in (first, second) if side.evaluated and side.evaluated.problem]):
        return None, f"the answers of {' and '.join(dict.fromkeys(side.policy for side in damaged))} are damaged"
    if not differences or rate is None:
        return None, "they have answered no prompt in common, or no judge has scored them"
    average, low, high = paired_interval(differences, seed=SEED)
    better, worse = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    return Difference(len(differences), average, low, high, rate, better, worse), ""


def damage(comparison: Comparison) -> list[str]:
    """A sentence for each compared evaluation whose file could not be read completely."""
    found = [(side.folder, side.evaluated) for side in comparison.sides]
    return list(dict.fromkeys(f"{folder}/{its.file}: {its.problem}" for folder, its in found if its and its.problem))


def show(console: Console, comparison: Comparison) -> None:
    """Prints the comparison."""
    first, second = comparison.labels
    for side in comparison.sides:
        console.print(Text(f"{side.folder}: {side.summary['state']}, compared by {side.shown_policy}"))
    console.print(Text("\nrecipe"))
    if comparison.recipe is None:
        console.print(Text("  a summary of an older version has no recipe; `alignloop run` writes it"))
    for line in comparison.recipe or ():
        console.print(Text(f"  {line}"), soft_wrap=True)
    if comparison.recipe == []:
        console.print(Text("  the same"))
    console.print(Text("\nresults"))
    console.print(results_table(comparison))
    if comparison.difference is None:
        console.print(Text(f"not compared: {comparison.why_not}"), soft_wrap=True)
    else:
        says = f"{second} against {first}: {comparison.difference.sentence}"
        console.print(Text(says), soft_wrap=not console.is_terminal)
    if comparison.answers and comparison.shows_samples:
        console.print(Text("\nanswers that differ most"))
        for difference, one in _by_difference(comparison.answers)[:NUM_SHOWN]:
            console.print(Text(f"{difference:+.2f}  {_one_line(one.prompt)}"))
            for label, (_, answers) in zip(comparison.labels, one.answers, strict=True):
                says = f"       {label}: {number(answers.scores[0])}  {_one_line(answers.text)}"
                console.print(Text(says), soft_wrap=True)


def _by_difference(answers: Sequence[SideBySide]) -> list[tuple[float, SideBySide]]:
    """The prompts whose first answers, which are the ones that are shown, have other scores; the largest difference
    first."""
    found: list[tuple[float, SideBySide]] = []
    for one in answers:
        before, after = (answer.scores[0] for _, answer in one.answers)
        if before is not None and after is not None and before != after:
            found.append((after - before, one))
    return sorted(found, key=lambda pair: -abs(pair[0]))


def results_table(comparison: Comparison) -> Table:
    """The rows of the table by round, for the two compared policies."""
    table = Table(box=MARKDOWN)
    table.add_column("", no_wrap=True)
    for label in comparison.labels:
        table.add_column(printable(label), justify="right")
    for name, cells in results(comparison):
        table.add_row(name, *cells)
    return table


def results(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """The numbers of the two policies, a row for each of which one has a value. Where neither run has judged a policy,
    they are the losses of the models on held-out rows."""
    found = [
        next((row for row in side.summary["rounds"] if row["policy"] == side.policy), None) for side in comparison.sides
    ]
    shown = {name: ["-" if row is None else show(row) for row in found] for name, show in rounds.ROWS.items()}
    if not any(found):
        losses = [{one["step"]: one["loss_after"] for one in trained_models(side.summary)} for side in comparison.sides]
        return [
            (f"held-out loss of {step}", [number(one.get(step)) for one in losses]) for step in losses[0] | losses[1]
        ]
    return [(name, cells) for name, cells in shown.items() if set(cells) != {"-"}]


def _one_line(text: str) -> str:
    words = printable(" ".join(text.split()))
    return words if len(words) <= WIDTH else f"{words[: WIDTH - 1]}…"
