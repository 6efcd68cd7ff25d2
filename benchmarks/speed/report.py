"""docs/benchmarks.md and its plots, from the measurements of benchmarks/speed.py."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed import tables as tables
from benchmarks.speed.measure import Measurements, Ratio
from benchmarks.speed.works import BATCHES, LENGTHS, SIZES, WORKS
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
    """A bar a peer: the ratio with its spread, and the target as a line across it. Whether there is one."""
    plt = plotting()
    found = []
    for (work, side), target in tables.TARGETS.items():
        ours = next(each.sides[0] for each in WORKS if each.name == work)
        mine, others = tables.runs_of(measured, work, ours, side)
        if mine:
            found.append(
                (
                    f"{work.replace('_', ' ')}: {tables.PEERS[side].replace('`', '')}",
                    target,
                    Ratio.in_turn(tables.rates(mine), tables.rates(others)),
                )
            )
    if not found:
        return False
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(found) + 1.2), layout="constrained")
    for place, (_, target, ratio) in enumerate(found):
        spread = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
        axes.barh(place, ratio.median, xerr=spread, color="C0" if ratio.median >= target else "C3", height=0.6)
        axes.plot([target, target], [place - 0.4, place + 0.4], color="black", linewidth=2)
    axes.set_yticks(range(len(found)), [label for label, _, _ in found])
    axes.invert_yaxis()
    axes.set(xlabel="times the peer's rows a second (line: the target)")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True


def draw_grid(measured: Measurements, path: Path) -> None:
    """A column a size of model: tokens a second above, memory below, a colour a batch, dashes for TRL."""
    plt = plotting()
    sizes = [
        size
        for size in SIZES
        if any(tables.of_cell(measured, size, length, batch) for length in LENGTHS for batch in BATCHES)
    ]
    figure, axes = plt.subplots(2, len(sizes), figsize=(4 * len(sizes), 6), layout="constrained", squeeze=False)
    for column, size in enumerate(sizes):
        for row, (what, label) in enumerate((("tokens/s", 0), ("GiB", 1))):
            panel = axes[row][column]
            for colour, batch in enumerate(BATCHES):
                lengths = [length for length in LENGTHS if tables.of_cell(measured, size, length, batch)]
                cells = [tables.of_cell(measured, size, length, batch) for length in lengths]
                for side, (name, style) in enumerate((("ours", "-"), ("TRL", "--"))):
                    panel.plot(
                        lengths,
                        [found[side][label] for found in cells],
                        style,
                        color=f"C{colour}",
                        marker="o",
                        markersize=3,
                        label=f"{name}, {batch} pairs",
                    )
            panel.set(
                title=size if row == 0 else "", xlabel="words a sequence", ylabel=what, xticks=LENGTHS, ylim=(0, None)
            )
            panel.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=7, frameon=False, handlelength=4)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# -- the page ---------------------------------------------------------------------------------------------------------


def write(root: Path, docs: Path) -> None:
    """docs/benchmarks.md and its plots."""
    table, grid = (read_json(root / f"{part}.json") for part in ("table", "grid"))
    if table is None and grid is None:
        raise ConfigError(f"nothing is measured in {root}; run `python -m benchmarks.speed table` first")
    docs.mkdir(parents=True, exist_ok=True)
    text = "" if table else f"{TITLE}\n"
    for part, found in (("table", table), ("grid", grid)):
        if found is None:
            continue
        folder = root / str(found["folder"])
        measured, about = Measurements(folder), read_json(folder / "about.json") or {}
        text += (table_page if part == "table" else grid_page)(measured, about, docs)
    (docs / "benchmarks.md").write_text(text, encoding="utf-8")
    print(text)


def table_page(measured: Measurements, about: Mapping[str, Any], docs: Path) -> str:
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


def arithmetic_text(values: Mapping[str, Any], runs: Sequence[float], settings: Mapping[str, Any]) -> str:
    """`runs` are the seconds of whole runs of the first line, from nothing and with the reference."""
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
        first=settings["first_steps"],
        **values["counts"],
        **values["sizes"],
    )
    if runs:
        with_reference = values["operations"] * 4 / 3  # forth and back is three times forth
        text += FROM_NOTHING.format(rate=with_reference * settings["steps"] / statistics.median(runs) / 1e9)
    return text


def grid_page(measured: Measurements, about: Mapping[str, Any], docs: Path) -> str:
    if not any(
        tables.of_cell(measured, size, length, batch) for size in SIZES for length in LENGTHS for batch in BATCHES
    ):
        return ""  # it was only begun
    draw_grid(measured, docs / "benchmarks-grid.svg")
    quick = f"\n{QUICK}\n" if about.get("is_quick") else ""
    table = "\n".join(tables.grid_table(measured))
    return GRID.format(machine=about["machine"], table=table, quick=quick, **about["settings"])


QUICK = "**A quick look, one run of one step a side: these numbers say nothing.**"

TITLE = "# How fast is it?"

TABLE = """{title}

Made by `make bench` on {machine}, with {versions}.
Every side is a process of its own; the sides of a line run in turn (A B A B), a ratio is of a run of ours and the
peer's run before or after it (pairs share runs: two a side make three), and what stands here is the median of {pairs},
where a line does not say otherwise, with the smallest and the largest. Ratios are ours to theirs.

| work | against | target | reached | ours | theirs | both in |
|---|---|---|---|---|---|---|
{table}

Timed is what grows with the rows: from the first forward pass of any model to the end of the step ({steps} of them),
precomputation and reference included, without imports, loading, tokenizing, evaluation and saving. The peers are the
trainers of `trl dpo`, `trl reward` and `trl sft`, on the same rows, weights, template, batch, learning rate and
precision as ours, and with our labels in SFT; memory is the largest resident size of a side's processes together. In
sampling, all draw at temperature {temperature} from the whole distribution, in the precision in which this machine
multiplies faster: {written_together} answers at a time by us, 64 by `generate()`, by vLLM its default, with all cores.
Of `generate()`'s calls, which hang on nothing but themselves, each run has one: those whose width is nearest to the
mean. vLLM is started once, and stopped while others run.
The target of a line is what this project set out to reach.
"""

SAMPLE = """
## The rows

One step stands for an epoch. Its rows are drawn so that padding costs in them what it costs in the whole file; the
batches of like length are such as length-grouped sampling makes of all rows, of which a few alone would give it none.
Own tokens count what two answers begin with once.

{table}
"""

LOOP = """
## The loop's time by part

`configs/demo.yaml` from nothing, {wall:.0f} s, in seconds. *Start and end* is all of a step's time that its stage does
not account for itself: process, imports, the record and its hashes. *Load* is models, and rows in tokens; *other* is in
no part, as trainers being made. In the table above all but training, evaluation, generation and scores counts as
start-up, loading and saving.

{table}
"""

ARITHMETIC = """
## Arithmetic

With W = {weights:,} weights in matrix products (no embeddings), a head of H = {head:,} weights, L = {layers} layers and
an attention D = {attention} wide, the policy takes 6 W tokens + 6 H logits + 12 L D visible operations, forth and
back. Of the rows of the first line, `tokens` ({tokens:,}) counts what two answers begin with once
and no padding, `logits` ({logits:,}) the positions whose logits the loss reads, `visible` ({visible:,}) the pairs of a
token and one it attends to; together {operations:.1f} TFLOP. What a step does besides (masked pairs, logits made again
in the backward pass, norms, the optimizer) counts as time alone.

Steps and products take turns in one process, since a machine is not as fast at all times: steps at {steps} GFLOP/s, the
best product just before or after each at {best}. The first {first} steps are left out: memory that a process touches
for the first time costs more than what is done in it. The best rate of each product, over all turns:

{table}
"""

FROM_NOTHING = """
The first line's own run, one step from nothing with the reference's pass, comes to {rate:.0f} GFLOP/s.
"""

GRID = """
## Cost against size

DPO with random Llamas of three sizes on made pairs, by `make bench-full` on {machine}.
One run a side, in turn (A B, B A, …), of one step, or of several that see {least_words:,} words together where a step
has fewer. Against TRL otherwise default, reference included, in float32, activations kept. Tokens are those of both
sequences of a pair, without padding.
{quick}
{table}

![tokens a second and memory](benchmarks-grid.svg)
"""
