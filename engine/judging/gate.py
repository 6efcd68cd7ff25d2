"""The gate: whether a round's policy becomes the best so far, the previous best is kept, or the run stops.

A rule that is null is not applied. A breach keeps the previous best, or stops the run where its rule is in `gate_stop`.
Over-optimisation is defined as in Gao et al. (arXiv 2210.10760): the optimised reward rises while the judge's score
falls. The rule on tasks is one of non-inferiority: no task may be worse than before by more than the limit, which the
lower end of a 95 % interval decides (engine/tasks/changes.py).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from engine.judging.groups import lowest_gains
from engine.runtime.arguments import GenerationArguments
from engine.runtime.keys import key_field

Rule = Literal[
    "min_gain",
    "min_win_rate",
    "max_tag_fall",
    "max_length_growth",
    "max_unfinished",
    "max_kl",
    "overoptimised",
    "max_task_fall",
]
RULES: tuple[Rule, ...] = get_args(Rule)
Metrics = Mapping[str, float | int | str | None]


@dataclass(kw_only=True)
class GateArguments(GenerationArguments):
    """The rules. A policy is compared with the best policy so far; KL is measured to the first policy."""

    gate_min_gain: float | None = key_field(
        0.0, "accept when the judge's mean rises by more than this; null: not applied"
    )
    gate_min_win_rate: float | None = key_field(
        None, "accept when at least this share of the answers wins", minimum=0, maximum=1
    )
    gate_max_tag_fall: float | None = key_field(
        None,
        "accept when the judge's mean of no tag of the prompts falls by more than this, with 95 % confidence",
        omitted_at_default=True,
        minimum=0,
    )
    gate_max_length_growth: float | None = key_field(
        None, "accept when mean answer tokens grow by at most this factor", above=0
    )
    gate_max_unfinished: float | None = key_field(
        None, "accept when at most this share of the answers lacks an end token", minimum=0, maximum=1
    )
    gate_max_kl: float | None = key_field(
        None, "accept when the KL to the first policy is at most this, in nats per answer", minimum=0
    )
    gate_overoptimised: bool = key_field(
        False, "do not accept when the round's reward model scores higher and the judge lower than before"
    )
    gate_max_task_fall: float | None = key_field(
        None,
        "accept when no task of evaluate_tasks is worse than this with 95 % confidence, as 0.03 for three points",
        minimum=0,
        maximum=1,
        omitted_at_default=True,
    )
    gate_stop: list[Rule] = key_field([], "rules whose breach stops the run; a breach of others keeps the best so far")


@dataclass(frozen=True)
class Decision:
    action: Literal["accept", "keep", "stop"]
    reason: str  # the numbers that decided, as in "gain 0.246 > 0"


def decide(metrics: Metrics, arguments: GateArguments) -> Decision:
    """The decision of the rules on an evaluation's metrics. The first policy of a run is always accepted."""
    if metrics.get("score_gain_vs_best") is None:
        return Decision("accept", "the first policy")
    outcomes = list(_apply_rules(metrics, arguments))
    breaches = [(rule, numbers) for rule, holds, numbers in outcomes if not holds]
    if not breaches:
        return Decision("accept", outcomes[0][2] if outcomes else "no rule is set")
    stops = any(rule in arguments.gate_stop for rule, _ in breaches)
    return Decision("stop" if stops else "keep", "; ".join(numbers for _, numbers in breaches))


def _apply_rules(metrics: Metrics, arguments: GateArguments) -> Iterator[tuple[Rule, bool, str]]:
    """Every rule that applies, whether it holds, and its number beside its limit."""
    gain, proxy_gain = _number(metrics, "score_gain_vs_best"), _number(metrics, "proxy_gain_vs_best")
    if (limit := arguments.gate_min_gain) is not None:
        holds = gain > limit
        yield "min_gain", holds, f"gain {gain:.3f} {'>' if holds else '<='} {limit:g}"
    if (limit := arguments.gate_min_win_rate) is not None:
        rate = _number(metrics, "win_rate_vs_best")
        holds = rate >= limit
        yield "min_win_rate", holds, f"win rate {rate:.3f} {'>=' if holds else '<'} {limit:g}"
    if (limit := arguments.gate_max_tag_fall) is not None:
        for tag, of_tag, low in lowest_gains(metrics, "tag"):
            holds = low >= -limit
            numbers = f"gain on {tag} {of_tag:.3f}, at least {low:.3f} {'>=' if holds else '<'} {-limit:g}"
            yield "max_tag_fall", holds, numbers
    at_most: tuple[tuple[Rule, str, str, float | None], ...] = (
        ("max_length_growth", "length x", "length_growth", arguments.gate_max_length_growth),
        ("max_unfinished", "unfinished ", "unfinished_share", arguments.gate_max_unfinished),
        ("max_kl", "KL ", "kl_to_first", arguments.gate_max_kl),
    )
    for rule, name, metric, limit in at_most:
        if limit is not None:
            value = _number(metrics, metric)
            holds = value <= limit
            yield rule, holds, f"{name}{value:.3f} {'<=' if holds else '>'} {limit:g}"
    if (limit := arguments.gate_max_task_fall) is not None:
        fall, task = _number(metrics, "most_task_fall"), metrics.get("most_fallen_task")
        holds = fall <= limit
        yield "max_task_fall", holds, f"{task} falls by at most {max(0.0, fall):.3f} {'<=' if holds else '>'} {limit:g}"
    if arguments.gate_overoptimised:
        yield "overoptimised", not proxy_gain > 0 > gain, f"reward {proxy_gain:+.3f}, gain {gain:+.3f}"


def _number(metrics: Metrics, name: str) -> float:
    value = metrics.get(name)
    return float(value) if value is not None else 0.0
