"""The lines of docs/benchmarks.md: what was measured against what was to be reached."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.speed.measure import Measurements, Ratio, num_pairs
from benchmarks.speed.works import BATCHES, LENGTHS, SIZES, WORKS, cell

PARTS = ("start and end", "load", "save", "train", "evaluate", "generate", "score", "other")
WORK = ("train", "evaluate", "generate", "score")  # what a run is for: all else counts as start-up, loading and saving
TARGETS = {  # (work, side) -> of the ratio ours / theirs in rows a second
    ("dpo", "dpo-trl"): 3.0,
    ("dpo_grouped", "dpo-trl-grouped"): 1.8,
    ("reward", "reward-trl"): 2.5,
    ("sft", "sft-trl"): 1.8,
    ("sft", "sft-trl-packed"): 1.0,
    ("sampling", "sampling-generate"): 2.0,
    ("sampling", "sampling-vllm"): 1.0,
}
MOST_MEMORY, MOST_OVERHEAD, LEAST_ARITHMETIC = 0.5, 0.2, 0.6
LABELS = {
    "dpo": "DPO, {batch} pairs a batch, reference included",
    "dpo_grouped": "the same, batches of like length",
    "reward": "reward model, the rows of the first line",
    "sft": "SFT, dialogs",
    "sampling": "sampling, {prompts} prompts × {answers} answers of ≤ {max_new_tokens} tokens",
}
PEERS = {
    "dpo-trl": "TRL, otherwise default",
    "dpo-trl-grouped": "TRL, reference precomputed, length-grouped",
    "reward-trl": "TRL, otherwise default",
    "sft-trl": "TRL, otherwise default",
    "sft-trl-packed": "TRL, `packing`",
    "sampling-generate": "`generate()`, 8 prompts a call, file order",
    "sampling-vllm": "vLLM, CPU build",
}
UNITS = {"dpo": "pairs/s", "dpo_grouped": "pairs/s", "reward": "pairs/s", "sft": "dialogs/s", "sampling": "answers/s"}


def rates(found: Sequence[Mapping[str, Any]], what: str = "rows") -> list[float]:
    return [values[what] / values["seconds"] for values in found]


def runs_of(measured: Measurements, work: str, ours: str, theirs: str) -> tuple[list[Any], list[Any]]:
    """Runs of both sides; none where one of them has none."""
    mine, others = measured.of(work, ours), measured.of(work, theirs)
    return (mine, others) if mine and others else ([], [])


def how(values: Mapping[str, Any]) -> str:
    """In what a side worked; sampling keeps no activations."""
    kept = {None: "", False: ", activations kept", True: ", activations recomputed"}
    return values["dtype"] + kept[values.get("activation_checkpointing")]


def verdict(reached: bool) -> str:
    return "reached" if reached else "**missed**"


def most_pairs(measured: Measurements) -> int:
    """The most that a line has; one that has fewer says so."""
    return max(
        num_pairs(*runs_of(measured, work.name, work.sides[0], side)) for work in WORKS for side in work.sides[1:]
    )


def speed_lines(measured: Measurements, settings: Mapping[str, Any]) -> list[str]:
    """A row of the table for each pair of sides."""
    lines = []
    for work in WORKS:
        label, unit = LABELS[work.name].format(**settings), UNITS[work.name]
        for side in work.sides[1:]:
            target = TARGETS[work.name, side]
            mine, others = runs_of(measured, work.name, work.sides[0], side)
            if not mine:
                why = "no `--vllm_python`" if side == "sampling-vllm" else "left out"
                lines.append(f"| {label} | {PEERS[side]} | ≥ {target:.1f}× | not measured: {why} | | | |")
                continue
            ratio = Ratio.in_turn(rates(mine), rates(others))
            both = [how(mine[0]), how(others[0])]
            each = [f"{statistics.median(rates(found)):.3g} {unit}" for found in (mine, others)]
            pairs = num_pairs(mine, others)
            fewer = "" if pairs == most_pairs(measured) else f" of {pairs}"
            found = f"{ratio}{fewer}, {verdict(ratio.median >= target)}"
            cells = [label, PEERS[side], f"≥ {target:.1f}×", found, *each, " / ".join(dict.fromkeys(both))]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def other_lines(measured: Measurements) -> list[str]:
    """The rows that are no ratio of speeds."""
    lines: list[str] = []
    mine, others = runs_of(measured, "dpo", "dpo-ours", "dpo-trl")
    if mine:
        ratio = Ratio.in_turn([of["peak_mib"] for of in mine], [of["peak_mib"] for of in others])
        each = [f"{statistics.median(of['peak_mib'] for of in found) / 1024:.1f} GiB" for found in (mine, others)]
        lines.append(
            f"| peak memory of the first line | TRL, otherwise default | ≤ {MOST_MEMORY}× | {ratio}, "
            f"{verdict(ratio.median <= MOST_MEMORY)} | {each[0]} | {each[1]} | {how(mine[0])} |"
        )
    for values in measured.of("arithmetic", "arithmetic"):
        first, passes = values["passes"]
        lines.append(
            f"| second DPO run with another β and seed: reference passes | the first run | 0 | {passes}, "
            f"{verdict(passes == 0)} | {passes} | {first} | float32 |"
        )
    for values in measured.of("demo", "demo"):
        share = overhead(values)
        lines.append(
            f"| `make demo`: start-up, loading and saving | its own wall time | ≤ {MOST_OVERHEAD:.0%} | "
            f"{share:.0%}, {verdict(share <= MOST_OVERHEAD)} | {share * values['wall']:.0f} s | "
            f"{values['wall']:.0f} s | float32 |"
        )
    for values in measured.of("arithmetic", "arithmetic"):
        steps, peaks = step_rates(values)
        share = Ratio.of(steps, peaks)
        lines.append(
            f"| training step of the first line: arithmetic | measured matrix-product peak | "
            f"≥ {LEAST_ARITHMETIC:.0%} | {share.median:.0%} [{share.low:.0%}, {share.high:.0%}], "
            f"{verdict(share.median >= LEAST_ARITHMETIC)} | {statistics.median(steps) / 1e9:.0f} GFLOP/s | "
            f"{statistics.median(peaks) / 1e9:.0f} GFLOP/s | float32 |"
        )
    return lines


def overhead(values: Mapping[str, Any]) -> float:
    """Share of a run's wall time that is none of the work: starting, loading, saving, and what is in no part."""
    inside = sum(parts.get(name, 0.0) for parts in values["parts"].values() for name in WORK)
    return 1 - inside / values["wall"]


def step_rates(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Operations a second of each step, and of the best product just before or after it."""
    best = [max(rates["float32"].values()) for rates in values["peaks"]]
    return [values["operations"] / seconds for seconds in values["steps"]], list(map(max, best[:-1], best[1:]))


def loop_table(values: Mapping[str, Any]) -> list[str]:
    """Seconds by stage and part."""
    lines = [f"| stage | {' | '.join(PARTS)} | all |", f"|---|{'---:|' * (len(PARTS) + 1)}"]
    total = dict.fromkeys(PARTS, 0.0)
    for stage, parts in values["parts"].items():
        row = [parts.get(name, 0.0) for name in PARTS]
        total = {name: total[name] + seconds for name, seconds in zip(PARTS, row, strict=True)}
        lines.append(f"| `{stage}` | {' | '.join(f'{seconds:.1f}' for seconds in row)} | {sum(row):.1f} |")
    whole = sum(total.values())
    lines.append(f"| all | {' | '.join(f'{seconds:.1f}' for seconds in total.values())} | {whole:.1f} |")
    lines.append(f"| share | {' | '.join(f'{seconds / whole:.0%}' for seconds in total.values())} | |")
    return lines


def sample_lines(facts: Mapping[str, Any]) -> list[str]:
    lines = [
        "| sample | rows | padded tokens a row, here / whole file | own tokens a row, here / whole file |",
        "|---|---:|---|---|",
    ]
    for name, label in (
        ("pairs", "pairs, in random order"),
        ("grouped", "pairs, in batches of like length"),
        ("dialogs", "dialogs, in random order"),
    ):
        of = facts[name]
        lines.append(
            f"| {label} | {of['rows']} | {of['padded']:.0f} / {of['padded_of_all']:.0f} | "
            f"{of['own']:.0f} / {of['own_of_all']:.0f} |"
        )
    return lines


def grid_table(measured: Measurements) -> list[str]:
    head = ["model", "words", "pairs", "tokens/s, ours", "tokens/s, TRL", "ratio", "GiB, ours", "GiB, TRL"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for size in SIZES:
        for length in LENGTHS:
            for batch in BATCHES:
                found = of_cell(measured, size, length, batch)
                if found:
                    (mine, my_gib), (others, their_gib) = found
                    lines.append(
                        f"| {size} | {length} | {batch} | {mine:.0f} | {others:.0f} | {mine / others:.2f}× | "
                        f"{my_gib:.1f} | {their_gib:.1f} |"
                    )
    return lines


def of_cell(measured: Measurements, size: str, length: int, batch: int) -> list[tuple[float, float]]:
    """(tokens a second, GiB) of ours and theirs; empty where one is missing."""
    rows = measured.of(f"rows {length} {batch}", "grid-rows")
    both = [measured.of(cell(size, length, batch), side) for side in ("dpo-ours", "dpo-trl")]
    if not rows or not all(both):
        return []
    return [(rows[0]["tokens"] / values[0]["seconds"], values[0]["peak_mib"] / 1024) for values in both]


def token_lines(measured: Measurements) -> list[str]:
    """Sampling in tokens a second: answers differ in length by their noise."""
    lines = []
    for side in WORKS[-1].sides[1:]:
        mine, others = runs_of(measured, "sampling", "sampling-ours", side)
        if mine:
            each = [f"{statistics.median(rates(found, 'tokens')):.0f}" for found in (mine, others)]
            lengths = [statistics.median(of["tokens"] / of["rows"] for of in found) for found in (mine, others)]
            lines.append(
                f"- Sampling against {PEERS[side]}, in tokens: "
                f"{Ratio.in_turn(rates(mine, 'tokens'), rates(others, 'tokens'))} ({each[0]} and {each[1]} "
                f"tokens/s; {lengths[0]:.0f} and {lengths[1]:.0f} tokens an answer)."
            )
    return lines
