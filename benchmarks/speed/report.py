"""Writes docs/benchmarks.md and its plots from the measurements of the speed benchmark."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed import tables
from benchmarks.speed.measure import Measurements, Ratio, Values
from benchmarks.speed.workloads import BATCHES, LENGTHS, SIZES, WORKLOADS
from data_schemas.errors import ConfigError
from data_schemas.files import read_json

# -- plots ------------------------------------------------------------------------------------------------------------


def plotting() -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "alignloop"
    import matplotlib.pyplot as plt

    return plt


def draw_table(measured: Measurements, path: Path) -> bool:
    """Draws a bar for each peer: the ratio with its spread, and the target as a line across it.

    Returns whether there was anything to draw.
    """
    plt = plotting()
    bars = []
    for (workload, side), target in tables.TARGETS.items():
        our_side = next(each.sides[0] for each in WORKLOADS if each.name == workload)
        ours, theirs = tables.runs_of(measured, workload, our_side, side)
        if ours:
            bars.append(
                (
                    f"{workload.replace('_', ' ')}: {tables.PEERS[side].replace('`', '')}",
                    target,
                    Ratio.in_turn(tables.rates(ours), tables.rates(theirs)),
                )
            )
    if not bars:
        return False
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(bars) + 1.2), layout="constrained")
    for row, (_, target, ratio) in enumerate(bars):
        spread = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
        axes.barh(row, ratio.median, xerr=spread, color="C0" if ratio.median >= target else "C3", height=0.6)
        axes.plot([target, target], [row - 0.4, row + 0.4], color="black", linewidth=2)
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars])
    axes.invert_yaxis()
    axes.set(xlabel="times the peer's rows a second (line: the target)")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True


def draw_grid(measured: Measurements, path: Path) -> None:
    """Draws a column of panels for each model size, with tokens a second above memory.

    Each batch size has its colour; dashed lines are TRL.
    """
    plt = plotting()
    sizes = [
        size
        for size in SIZES
        if any(tables.of_cell(measured, size, length, batch) for length in LENGTHS for batch in BATCHES)
    ]
    figure, axes = plt.subplots(2, len(sizes), figsize=(4 * len(sizes), 6), layout="constrained", squeeze=False)
    for column, size in enumerate(sizes):
        for row, unit in enumerate(("tokens/s", "GiB")):
            panel = axes[row][column]
            for colour, batch in enumerate(BATCHES):
                lengths = [length for length in LENGTHS if tables.of_cell(measured, size, length, batch)]
                cells = [tables.of_cell(measured, size, length, batch) for length in lengths]
                for side, (name, style) in enumerate((("ours", "-"), ("TRL", "--"))):
                    panel.plot(
                        lengths,
                        [sides[side][row] for sides in cells],
                        style,
                        color=f"C{colour}",
                        marker="o",
                        markersize=3,
                        label=f"{name}, {batch} pairs",
                    )
            panel.set(
                title=size if row == 0 else "", xlabel="words a sequence", ylabel=unit, xticks=LENGTHS, ylim=(0, None)
            )
            panel.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=7, frameon=False, handlelength=4)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# -- the page ---------------------------------------------------------------------------------------------------------


def write(root: Path, docs: Path) -> None:
    """Writes docs/benchmarks.md and its plots. Raises ConfigError if nothing was measured."""
    table, grid = (read_json(root / f"{part}.json") for part in ("table", "grid"))
    if table is None and grid is None:
        raise ConfigError(f"no measurements in {root}; run `python -m benchmarks.speed table` first")
    docs.mkdir(parents=True, exist_ok=True)
    text = "" if table else f"{TITLE}\n"
    for part, pointer in (("table", table), ("grid", grid)):
        if pointer is None:
            continue
        folder = root / str(pointer["folder"])
        measured, about = Measurements(folder), read_json(folder / "about.json") or {}
        text += (table_page if part == "table" else grid_page)(measured, about, docs)
    (docs / "benchmarks.md").write_text(text, encoding="utf-8")
    print(text)


def table_page(measured: Measurements, about: Values, docs: Path) -> str:
    """The page's table, with the rows, the loop's time and the arithmetic."""
    settings = about["settings"]
    lines = [*tables.speed_lines(measured, settings), *tables.other_lines(measured)]
    vllm = [f"vllm {values['vllm']}" for values in measured.of("sampling", "sampling-vllm")[:1]]
    versions = ", ".join([*(f"{name} {version}" for name, version in about["versions"].items()), *vllm])
    facts = next(iter(measured.of("sample", "prepare")), None)
    pairs = tables.most_pairs(measured)
    text = TABLE.format(
        title=TITLE, machine=about["machine"], versions=versions, table="\n".join(lines), pairs=pairs, **settings
    )
    if about.get("is_quick"):
        text = text.replace("\n\n", f"\n\n{QUICK}\n\n", 1)
    if facts:
        text += SAMPLE.format(table="\n".join(tables.sample_lines(facts)))
    if tokens := tables.token_lines(measured):
        text += "\n" + "\n".join(tokens) + "\n"
    for values in measured.of("demo", "demo"):
        text += LOOP.format(wall=values["wall"], table="\n".join(tables.loop_table(values)))
    for values in measured.of("arithmetic", "arithmetic"):
        text += arithmetic_text(values, [run["seconds"] for run in measured.of("dpo", "dpo-ours")], settings)
    if draw_table(measured, docs / "benchmarks.svg"):
        text += "\n![ratios](benchmarks.svg)\n"
    return text


def arithmetic_text(values: Values, runs: Sequence[float], settings: Values) -> str:
    """The section on arithmetic. `runs` has the seconds of the first line's runs, which include the reference."""
    dtypes = list(values["peaks"][0])
    lines = [
        " | ".join(["| product", *(f"{dtype}, GFLOP/s" for dtype in dtypes)]) + " |",
        "|---|" + "---:|" * len(dtypes),
    ]
    for name, shape in values["shapes"].items():
        cells = [f"{max(peaks[dtype][name] for peaks in values['peaks']) / 1e9:.0f}" for dtype in dtypes]
        lines.append(" | ".join([f"| {name}: {' × '.join(map(str, shape))}", *cells]) + " |")
    steps, best = ([f"{rate / 1e9:.0f}" for rate in rates] for rates in tables.step_rates(values))
    text = ARITHMETIC.format(
        table="\n".join(lines),
        operations=values["operations"] / 1e12,
        steps=", ".join(steps),
        best=", ".join(best),
        untimed_steps=settings["untimed_steps"],
        **values["counts"],
        **values["sizes"],
    )
    if runs:
        with_reference = values["operations"] * 4 / 3  # the policy's two passes take three times its forward pass
        text += FIRST_STEP.format(rate=with_reference * settings["steps"] / statistics.median(runs) / 1e9)
    return text


def grid_page(measured: Measurements, about: Values, docs: Path) -> str:
    """The section on the grid; empty if no cell is complete."""
    if not any(
        tables.of_cell(measured, size, length, batch) for size in SIZES for length in LENGTHS for batch in BATCHES
    ):
        return ""  # no cell is complete yet
    draw_grid(measured, docs / "benchmarks-grid.svg")
    quick = f"\n{QUICK}\n" if about.get("is_quick") else ""
    table = "\n".join(tables.grid_table(measured))
    return GRID.format(machine=about["machine"], table=table, quick=quick, **about["settings"])


QUICK = "**From a trial run with one step a side: these numbers mean nothing.**"

TITLE = "# How fast is it?"

TABLE = """{title}

Measured by `make bench` on {machine}, with {versions}.
Every side is a separate process. The sides of a line run in turn (A B A B), and a ratio compares a run of ours with the
peer's run just before or after it, so two runs a side give three ratios. The table has the median of {pairs} ratios,
unless a line says otherwise, with the smallest and the largest. Ratios are ours to theirs.

| work | against | target | reached | ours | theirs | both in |
|---|---|---|---|---|---|---|
{table}

The time measured is the part that grows with the rows: from the first forward pass of any model to the end of the last
step ({steps} in all). It includes precomputation and the reference, and excludes imports, loading, tokenization,
evaluation and saving. The peers are the trainers of `trl dpo`, `trl reward` and `trl sft`, with the same rows, weights,
template, batch, learning rate and precision as ours, and with our labels in SFT. Memory is the largest resident size of
all processes of a side together. In sampling, all sides draw at temperature {temperature} from the full distribution,
with all cores, in the precision in which this machine multiplies faster: we generate {generation_batch_size} answers at
a time, `generate()` 64, and vLLM its default. `generate()` calls are independent of one another, so each run makes one:
those whose width is nearest to the mean. vLLM is started once, and is stopped while other sides run.
The target of a line is what this project set out to reach.
"""

SAMPLE = """
## The rows

A few steps represent an epoch. Their rows are drawn so that padding costs as much in them as in the complete file. The
batches of similar length are those that length-grouped sampling forms from all rows; a few rows would not give any. Own
tokens count the shared beginning of two answers once.

{table}
"""

LOOP = """
## The loop's time by part

`configs/demo.yaml` from an empty folder takes {wall:.0f} s. The table is in seconds. *Start and end* is the time of a
step that its stage does not account for: process, imports, the record and its hashes. *Load* is loading models and
tokenizing rows. *Other* is in no part, such as building trainers. In the first table everything except training,
evaluation, generation and scores counts as start-up, loading and saving.

{table}
"""

ARITHMETIC = """
## Arithmetic

With W = {weights:,} weights in matrix products (no embeddings), a head of H = {head:,} weights, L = {layers} layers and
an attention width of D = {attention}, the policy takes 6 W tokens + 6 H logits + 12 L D visible operations in its
forward and backward passes. For the rows of the first line, `tokens` ({tokens:,}) counts the shared beginning of two
answers once and no padding, `logits` ({logits:,}) the positions whose logits the loss reads, and `visible`
({visible:,}) the pairs of a token and one that it attends to; together {operations:.1f} TFLOP. Whatever else a step
does (masked pairs, logits recomputed in the backward pass, norms, the optimizer) counts only as time.

Steps and matrix products alternate in one process, because a machine's speed varies over time. The steps ran at {steps}
GFLOP/s, and the best product just before or after each at {best}. The first {untimed_steps} steps are left out, because
touching memory for the first time costs a process more than the work done in it. The best rate of each product over all
turns:

{table}
"""

FIRST_STEP = """
The run of the first line, one step of a new process with the reference's pass, reaches {rate:.0f} GFLOP/s.
"""

GRID = """
## Cost against size

DPO with random Llamas of three sizes on random pairs, measured by `make bench-full` on {machine}.
Each side runs once, in turn (A B, B A, …), for one step, or for several steps that see {min_words:,} words together if
one step has fewer. The peer is TRL, otherwise default, with the reference included, in float32, with activations kept.
Tokens are those of both sequences of a pair, without padding.
{quick}
{table}

![tokens a second and memory](benchmarks-grid.svg)
"""
