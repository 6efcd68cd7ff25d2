"""The rows of the tables in docs/benchmarks.md: what was measured, and whether it reached its target."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.speed.measure import Measurements, Ratio, Values, num_pairs
from benchmarks.speed.workloads import BATCHES, LENGTHS, SIZES, WORKLOADS, cell

PARTS = ("start and end", "load", "save", "train", "evaluate", "generate", "score", "other")
WORK_PARTS = ("train", "evaluate", "generate", "score")  # all other parts count as start-up, loading and saving
TARGETS = {  # (workload, side) -> least ratio ours / theirs in rows a second
    ("dpo", "dpo-trl"): 3.0,
    ("dpo_grouped", "dpo-trl-grouped"): 1.8,
    ("reward", "reward-trl"): 2.5,
    ("sft", "sft-trl"): 1.8,
    ("sft", "sft-trl-packed"): 1.0,
    ("sampling", "sampling-generate"): 2.0,
    ("sampling", "sampling-vllm"): 1.0,
}
MAX_MEMORY_RATIO, MAX_OVERHEAD, MIN_ARITHMETIC_SHARE = 0.5, 0.2, 0.6
LABELS = {
    "dpo": "DPO, {batch} pairs a batch, reference included",
    "dpo_grouped": "the same, batches of similar length",
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


def rates(runs: Sequence[Values], unit: str = "rows") -> list[float]:
    """Rows (or tokens) a second of each run."""
    return [values[unit] / values["seconds"] for values in runs]


def runs_of(measured: Measurements, workload: str, ours: str, theirs: str) -> tuple[list[Values], list[Values]]:
    """The runs of both sides; none of either if one side has none."""
    our_runs, their_runs = measured.of(workload, ours), measured.of(workload, theirs)
    return (our_runs, their_runs) if our_runs and their_runs else ([], [])


def precision_of(values: Values) -> str:
    """Precision of a side, and whether it kept its activations, which does not apply to sampling."""
    activations = {None: "", False: ", activations kept", True: ", activations recomputed"}
    return values["dtype"] + activations[values.get("activation_checkpointing")]


def verdict(reached: bool) -> str:
    return "reached" if reached else "**missed**"


def most_pairs(measured: Measurements) -> int:
    """The largest number of pairs of any line. A line with fewer pairs shows its own number."""
    return max(
        num_pairs(*runs_of(measured, workload.name, workload.sides[0], side))
        for workload in WORKLOADS
        for side in workload.sides[1:]
    )


def speed_lines(measured: Measurements, settings: Values) -> list[str]:
    """A row of the table for each peer of each workload."""
    lines = []
    for workload in WORKLOADS:
        label, unit = LABELS[workload.name].format(**settings), UNITS[workload.name]
        for side in workload.sides[1:]:
            target = TARGETS[workload.name, side]
            ours, theirs = runs_of(measured, workload.name, workload.sides[0], side)
            if not ours:
                reason = "no `--vllm_python`" if side == "sampling-vllm" else "left out"
                lines.append(f"| {label} | {PEERS[side]} | ≥ {target:.1f}× | not measured: {reason} | | | |")
                continue
            ratio = Ratio.in_turn(rates(ours), rates(theirs))
            precisions = dict.fromkeys([precision_of(ours[0]), precision_of(theirs[0])])
            medians = [f"{statistics.median(rates(runs)):.3g} {unit}" for runs in (ours, theirs)]
            pairs = num_pairs(ours, theirs)
            fewer = "" if pairs == most_pairs(measured) else f" of {pairs}"
            reached = f"{ratio}{fewer}, {verdict(ratio.median >= target)}"
            cells = [label, PEERS[side], f"≥ {target:.1f}×", reached, *medians, " / ".join(precisions)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def other_lines(measured: Measurements) -> list[str]:
    """The rows of the table that are not ratios of speeds."""
    lines: list[str] = []
    ours, theirs = runs_of(measured, "dpo", "dpo-ours", "dpo-trl")
    if ours:
        peaks = [[values["peak_mib"] for values in runs] for runs in (ours, theirs)]
        ratio = Ratio.in_turn(*peaks)
        our_peak, their_peak = [f"{statistics.median(mib) / 1024:.1f} GiB" for mib in peaks]
        lines.append(
            f"| peak memory of the first line | TRL, otherwise default | ≤ {MAX_MEMORY_RATIO}× | {ratio}, "
            f"{verdict(ratio.median <= MAX_MEMORY_RATIO)} | {our_peak} | {their_peak} | {precision_of(ours[0])} |"
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
            f"| `make demo`: start-up, loading and saving | its own wall time | ≤ {MAX_OVERHEAD:.0%} | "
            f"{share:.0%}, {verdict(share <= MAX_OVERHEAD)} | {share * values['wall']:.0f} s | "
            f"{values['wall']:.0f} s | float32 |"
        )
    for values in measured.of("arithmetic", "arithmetic"):
        steps, peaks = step_rates(values)
        share = Ratio.of(steps, peaks)
        lines.append(
            f"| training step of the first line: arithmetic | measured matrix-product peak | "
            f"≥ {MIN_ARITHMETIC_SHARE:.0%} | {share.median:.0%} [{share.low:.0%}, {share.high:.0%}], "
            f"{verdict(share.median >= MIN_ARITHMETIC_SHARE)} | {statistics.median(steps) / 1e9:.0f} GFLOP/s | "
            f"{statistics.median(peaks) / 1e9:.0f} GFLOP/s | float32 |"
        )
    return lines


def overhead(values: Values) -> float:
    """Share of a run's wall time outside WORK_PARTS: starting, loading, saving, and time that is in no part."""
    work = sum(parts.get(name, 0.0) for parts in values["parts"].values() for name in WORK_PARTS)
    return 1 - work / values["wall"]


def step_rates(values: Values) -> tuple[list[float], list[float]]:
    """Operations a second of each step, and of the best product measured just before or after it."""
    best = [max(rates["float32"].values()) for rates in values["peaks"]]
    return [values["operations"] / seconds for seconds in values["steps"]], list(map(max, best[:-1], best[1:]))


def loop_table(values: Values) -> list[str]:
    """The table of seconds by stage and part."""
    lines = [f"| stage | {' | '.join(PARTS)} | all |", f"|---|{'---:|' * (len(PARTS) + 1)}"]
    total = dict.fromkeys(PARTS, 0.0)
    for stage, parts in values["parts"].items():
        row = [parts.get(name, 0.0) for name in PARTS]
        total = {name: total[name] + seconds for name, seconds in zip(PARTS, row, strict=True)}
        lines.append(f"| `{stage}` | {' | '.join(f'{seconds:.1f}' for seconds in row)} | {sum(row):.1f} |")
    wall = sum(total.values())
    lines.append(f"| all | {' | '.join(f'{seconds:.1f}' for seconds in total.values())} | {wall:.1f} |")
    lines.append(f"| share | {' | '.join(f'{seconds / wall:.0%}' for seconds in total.values())} | |")
    return lines


def sample_lines(facts: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The table of the sampled rows compared with all rows."""
    lines = [
        "| sample | rows | padded tokens a row, here / complete file | own tokens a row, here / complete file |",
        "|---|---:|---|---|",
    ]
    for name, label in (
        ("pairs", "pairs, in random order"),
        ("grouped", "pairs, in batches of similar length"),
        ("dialogs", "dialogs, in random order"),
    ):
        sizes = facts[name]
        lines.append(
            f"| {label} | {sizes['rows']} | {sizes['padded']:.0f} / {sizes['padded_of_all']:.0f} | "
            f"{sizes['own']:.0f} / {sizes['own_of_all']:.0f} |"
        )
    return lines


def grid_table(measured: Measurements) -> list[str]:
    """The table of the grid: a row for each cell that was measured."""
    head = ["model", "words", "pairs", "tokens/s, ours", "tokens/s, TRL", "ratio", "GiB, ours", "GiB, TRL"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for size in SIZES:
        for length in LENGTHS:
            for batch in BATCHES:
                sides = of_cell(measured, size, length, batch)
                if sides:
                    (ours, our_gib), (theirs, their_gib) = sides
                    lines.append(
                        f"| {size} | {length} | {batch} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f}× | "
                        f"{our_gib:.1f} | {their_gib:.1f} |"
                    )
    return lines


def of_cell(measured: Measurements, size: str, length: int, batch: int) -> list[tuple[float, float]]:
    """(tokens a second, GiB) of our side and of TRL's; empty if one of them was not measured."""
    rows = measured.of(f"rows {length} {batch}", "grid-rows")
    sides = [measured.of(cell(size, length, batch), side) for side in ("dpo-ours", "dpo-trl")]
    if not rows or not all(sides):
        return []
    return [(rows[0]["tokens"] / runs[0]["seconds"], runs[0]["peak_mib"] / 1024) for runs in sides]


def token_lines(measured: Measurements) -> list[str]:
    """Sampling in tokens a second, since the sampled answers of the sides differ in length by chance."""
    lines = []
    for side in WORKLOADS[-1].sides[1:]:
        ours, theirs = runs_of(measured, "sampling", "sampling-ours", side)
        if ours:
            speeds = [f"{statistics.median(rates(runs, 'tokens')):.0f}" for runs in (ours, theirs)]
            lengths = [
                statistics.median(values["tokens"] / values["rows"] for values in runs) for runs in (ours, theirs)
            ]
            lines.append(
                f"- Sampling against {PEERS[side]}, in tokens: "
                f"{Ratio.in_turn(rates(ours, 'tokens'), rates(theirs, 'tokens'))} ({speeds[0]} and {speeds[1]} "
                f"tokens/s; {lengths[0]:.0f} and {lengths[1]:.0f} tokens an answer)."
            )
    return lines
