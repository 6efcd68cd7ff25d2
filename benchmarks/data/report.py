"""The page of the curation benchmark: its table, and beside each target what was reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_MINUTES_PER_MILLION, MAX_GIB, MAX_GROWTH, MIN_RECALL = 12.0, 3.0, 1.2, 0.99
MILLION = 1_000_000
HEAD = (
    "| rows | minutes | CPU minutes | peak memory, GiB | recall: exact | near | contaminated | other language | "
    "precision of duplicates | other rows dropped |\n|" + "---:|" * 10
)


@dataclass(frozen=True)
class Measured:
    """One run of the stage."""

    num_rows: int
    minutes: float
    cpu_minutes: float  # of all processes
    peak_gib: float
    found: Mapping[str, tuple[int, int]]  # what was planted -> how many were found, of how many
    num_duplicates: int  # dropped as such
    num_wrong: int  # of them repeat no other row at the threshold
    num_other: int  # base rows that another rule dropped

    @property
    def precision(self) -> float:
        return 1 - self.num_wrong / max(1, self.num_duplicates)

    @property
    def recall(self) -> dict[str, float]:
        return {kind: hits / max(1, planted) for kind, (hits, planted) in self.found.items()}

    @property
    def line(self) -> str:
        recall = " | ".join(f"{share:.4f}" for share in self.recall.values())
        return (
            f"| {self.num_rows:,} | {self.minutes:.1f} | {self.cpu_minutes:.1f} | {self.peak_gib:.2f} | {recall} | "
            f"{self.precision:.4f} | {self.num_other} |"
        )


def page(runs: Sequence[Measured], machine: str) -> str:
    """The page in Markdown."""
    table = "\n".join([HEAD, *(run.line for run in runs)])
    return f"""# How long does curation take?

Measured by `make bench-data` on {machine}.

{table}

{targets(runs)}

The rows are synthetic conversations of 150 words on average. Planted are 5 % exact duplicates (other case and
punctuation), 5 % near-duplicates at known Jaccard similarities from 0.6 to 0.95, 1 % rows with an evaluation prompt,
and 2 % in German. One run of `stages/curate.py` reads and validates them, applies its default rules with
`languages: [en]` and an evaluation file of 2,000 prompts, and writes the kept rows and a line for each dropped one.
Minutes are of that run, with the start of Python. Memory is the most that all its processes have together; pages that
they share count once (PSS). Recall is of the planted rows, for near-duplicates of the pairs at or above the threshold
of 0.8 of which one row was dropped; precision is of the rows that were dropped as duplicates. The last column counts
rows without a planted fault that another rule dropped.

[The rules](curation.md).
"""


def targets(runs: Sequence[Measured]) -> str:
    """A table of what was to be reached, and what was."""
    largest, smallest = max(runs, key=lambda run: run.num_rows), min(runs, key=lambda run: run.num_rows)
    per_million = largest.minutes * MILLION / largest.num_rows
    growth = (largest.cpu_minutes / largest.num_rows) / (smallest.cpu_minutes / smallest.num_rows)
    recall, precision = largest.recall["near"], largest.precision
    lines = [
        (f"minutes a million rows (of {largest.num_rows:,})", f"≤ {MAX_MINUTES_PER_MILLION:g}", f"{per_million:.1f}"),
        ("peak memory, GiB", f"≤ {MAX_GIB:g}", f"{largest.peak_gib:.2f}"),
        (f"CPU minutes a row, against {smallest.num_rows:,} rows", f"≤ {MAX_GROWTH:g}×", f"{growth:.2f}×"),
        ("recall of near-duplicates at 0.8 or more", f"≥ {MIN_RECALL:g}", f"{recall:.4f}"),
        ("precision of duplicates", "1", f"{precision:.4f}"),
    ]
    reached = (
        per_million <= MAX_MINUTES_PER_MILLION,
        largest.peak_gib <= MAX_GIB,
        growth <= MAX_GROWTH,
        recall >= MIN_RECALL,
        largest.num_wrong == 0,
    )
    rows = [
        f"| {what} | {target} | {value}, {'reached' if is_reached else 'not reached'} |"
        for (what, target, value), is_reached in zip(lines, reached, strict=True)
    ]
    return "\n".join(["| of the largest run | target | reached |", "|---|---|---|", *rows])
