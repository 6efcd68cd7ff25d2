"""How many copies of each row train, so that sources or tags have the shares that they should have. Needs no torch.

A source's share of the tokens is proportional to weight * n^(1/T) for its n tokens and the temperature T (Conneau et
al. 2020, arXiv 1911.02116: their exponent 0.3 is T = 3.3). T = 1 are natural shares times the weights; with T = inf the
weights are the shares. A source gives at most its `max_epochs`; with a budget, the tokens that it lacks are divided
among the others. Complete epochs take every row; of the rest, rows are taken by the hash of source and id, so that the
choice does not depend on the order of the rows.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["tokens", "words"]


@dataclass(frozen=True)
class SourceShare:
    """A line of the table of a mix. Sizes are in tokens, or in words where no tokenizer counts them."""

    source: str
    unit: Unit
    rows_before: int
    size_before: int
    share_before: float  # of the size of all rows
    rows_after: int  # with copies
    size_after: int
    share_after: float

    @property
    def epochs(self) -> float:
        return self.size_after / self.size_before if self.size_before else 0.0

    def __str__(self) -> str:
        before = f"{self.rows_before:,} rows, {self.size_before:,} {self.unit}, {self.share_before:.1%}"
        return f"{before} -> {self.rows_after:,} rows, {self.size_after:,} {self.unit}, {self.share_after:.1%}"


@dataclass(frozen=True)
class Mix:
    copies: NDArray[np.int64]  # of each row
    table: list[SourceShare]  # by source, in alphabetical order


def mix_rows(
    sources: Sequence[str],
    num_tokens: Sequence[int],
    *,
    ids: Sequence[str],
    weights: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    max_epochs: Mapping[str, float] | float = 1.0,
    token_budget: int | None = None,
    unit: Unit = "tokens",
    seed: int = 0,
) -> Mix:
    """The copies of each row; `sources` may be tags as well, and tokens words (`unit`).

    A source without weight has 1. Without a budget, the mix has as many tokens as the rows have, or fewer: as many as
    leave all sources within `max_epochs` at exactly these shares. With a budget, the others give what a source lacks,
    and where all are at their `max_epochs`, the mix is smaller than the budget.
    """
    tokens = np.asarray(num_tokens, dtype=np.int64)
    names, of_source = np.unique(np.asarray(sources, dtype=object).astype(str), return_inverse=True)
    available = _sums(of_source, tokens, len(names)).astype(np.float64)
    wanted = _shares(np.array([(weights or {}).get(name, 1.0) for name in names]), available, temperature)
    most = np.array([max_epochs.get(name, 1.0) if isinstance(max_epochs, Mapping) else max_epochs for name in names])
    budget = largest(wanted, available, most * available) if token_budget is None else token_budget
    targets = divide(budget, wanted, most * available)
    copies = np.zeros(len(tokens), dtype=np.int64)
    for number, name in enumerate(names):
        rows = np.flatnonzero(of_source == number)
        order = rows[np.argsort([_place(seed, str(name), ids[int(row)]) for row in rows], kind="stable")]
        copies[order] = copies_of(tokens[order], float(targets[number]))
    return Mix(copies, _table(names, of_source, tokens, copies, unit))


def _shares(weights: NDArray[np.float64], available: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """weight * n^(1/T) of each source, as shares of their sum; by logarithms, as n^(1/T) can be beyond all numbers."""
    is_wanted = (weights > 0) & (available > 0)
    shares = np.zeros_like(available)
    if is_wanted.any():
        logs = np.log(weights[is_wanted]) + np.log(available[is_wanted]) / temperature
        shares[is_wanted] = np.exp(logs - logs.max())
    return shares / max(1.0, shares.sum())


def largest(shares: NDArray[np.float64], available: NDArray[np.float64], most: NDArray[np.float64]) -> float:
    """The size of the largest mix with these shares in which no source gives more than its most; at most what there
    is."""
    is_wanted = shares > 0
    with np.errstate(over="ignore"):  # a tiny share limits nothing
        sizes = most[is_wanted] / shares[is_wanted]
    return float(min([available.sum(), *sizes]))


def divide(budget: float, shares: NDArray[np.float64], most: NDArray[np.float64]) -> NDArray[np.float64]:
    """The budget divided in proportion to the shares, where none gets more than its most."""
    given = np.zeros_like(shares)
    is_open = shares > 0
    while is_open.any():
        rest = budget - given[~is_open].sum()
        portions = rest * shares / shares[is_open].sum()
        is_full = is_open & (portions >= most)
        if not is_full.any():
            given[is_open] = portions[is_open]
            break
        given[is_full] = most[is_full]
        is_open &= ~is_full
    return given


def copies_of(tokens: NDArray[np.int64], target: float) -> NDArray[np.int64]:
    """Copies of a source's rows, in their order: complete epochs, then the first rows that come nearest to the rest."""
    total = int(tokens.sum())
    if not total:
        return np.zeros(len(tokens), dtype=np.int64)
    epochs = math.floor(target / total + 1e-9)
    rest = max(0.0, target - epochs * total)
    ends = np.cumsum(tokens)
    is_taken = ends - tokens / 2 <= rest  # more than half of the row is wanted
    return np.full(len(tokens), epochs, dtype=np.int64) + (is_taken & (rest > 0))


def _place(seed: int, source: str, row_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{source}\0{row_id}".encode(), digest_size=8).digest()


def _sums(of_source: NDArray[np.intp], values: NDArray[np.int64], num_sources: int) -> NDArray[np.int64]:
    """The sum of the values of each source."""
    sums = np.zeros(num_sources, dtype=np.int64)
    np.add.at(sums, of_source, values)
    return sums


def _table(
    names: NDArray[np.str_],
    of_source: NDArray[np.intp],
    tokens: NDArray[np.int64],
    copies: NDArray[np.int64],
    unit: Unit,
) -> list[SourceShare]:
    def of_each(values: NDArray[np.int64]) -> list[int]:
        return _sums(of_source, values, len(names)).tolist()

    before, after = of_each(tokens), of_each(tokens * copies)
    return [
        SourceShare(
            str(name),
            unit,
            rows_before,
            tokens_before,
            tokens_before / max(1, sum(before)),
            rows_after,
            tokens_after,
            tokens_after / max(1, sum(after)),
        )
        for name, rows_before, tokens_before, rows_after, tokens_after in zip(
            names, of_each(np.ones_like(tokens)), before, of_each(copies), after, strict=True
        )
    ]
