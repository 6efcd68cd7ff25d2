"""How far an LLM judge can be trusted, measured on its own comparisons: each was made in both orders.

Position consistency is the share of comparisons in which both orders give the same verdict (Zheng et al., arXiv
2306.05685, 4.1). A coin has one half without ties. A judge that takes the first answer with probability p, whatever it
says, has 2 p (1 - p), so its consistency is below a coin's and `prefers_first` is p.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.judging.comparison import Metric
from engine.judging.verdicts import Comparison, Unparsable, Verdict


@dataclass(frozen=True)
class JudgeReport:
    """Counts and shares of a judge's comparisons; a share is None where nothing was compared."""

    num_compared: int  # pairs of answers that the judge was asked about
    num_parsed: int  # of them with a verdict in both orders
    num_decided: int  # of those with a winner that both orders agree on
    num_verdicts: int  # asked for: two for each pair
    unparsable: Counter[str]  # reason -> verdicts
    position_consistency: float | None  # share of the parsed pairs
    prefers_first: float | None  # share of the verdicts with a winner in which it is the answer that was shown first
    tie_rate: float | None  # share of the parsed pairs without a winner
    prefers_longer: float | None  # share of the decided pairs of different length that the longer answer wins

    @property
    def num_unparsable(self) -> int:
        return sum(self.unparsable.values())

    def metrics(self, prefix: str) -> dict[str, Metric]:
        """For a step's record."""
        return {
            f"{prefix}_comparisons": self.num_compared,
            f"{prefix}_position_consistency": self.position_consistency,
            f"{prefix}_prefers_first": self.prefers_first,
            f"{prefix}_tie_rate": self.tie_rate,
            f"{prefix}_prefers_longer": self.prefers_longer,
            f"{prefix}_unparsable": self.num_unparsable,
            **{f"{prefix}_unparsable_{reason}": count for reason, count in sorted(self.unparsable.items())},
        }


def report_of(comparisons: Sequence[Comparison]) -> JudgeReport:
    """The report on comparisons; those that needed no judge are left out."""
    asked = [one for one in comparisons if one.verdicts is not None]
    parsed = [one for one in asked if one.is_parsed]
    verdicts = [verdict for one in asked for verdict in one.verdicts or ()]
    winners = [verdict.winner for verdict in verdicts if isinstance(verdict, Verdict) and verdict.winner]
    decided = [one for one in parsed if one.points != 0.5]
    longer_wins = [
        (len(one.pairing.one) > len(one.pairing.other)) == (one.points == 1)
        for one in decided
        if len(one.pairing.one) != len(one.pairing.other)
    ]
    return JudgeReport(
        num_compared=len(asked),
        num_parsed=len(parsed),
        num_decided=len(decided),
        num_verdicts=len(verdicts),
        unparsable=Counter(verdict.reason for verdict in verdicts if isinstance(verdict, Unparsable)),
        position_consistency=_share([one.winners[0] == one.winners[1] for one in parsed]),
        prefers_first=_share([winner == "first" for winner in winners]),
        tie_rate=_share([one.points == 0.5 for one in parsed]),
        prefers_longer=_share(longer_wins),
    )


def _share(holds: Sequence[bool]) -> float | None:
    return sum(holds) / len(holds) if holds else None
