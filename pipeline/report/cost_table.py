"""The tables of `alignloop plan --cost`: what each step will need, the totals, and where it does not fit."""

from collections.abc import Iterator

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.planner.estimate import RunEstimate, StepEstimate
from pipeline.planner.memory import Memory
from pipeline.planner.remedies import Remedy, refusals

GIB = 2**30
UNITS = ((3600, "h"), (60, "min"), (1, "s"))
COLUMNS = ("step", "rows", "tokens", "params", "trained", "FLOPs", "GiB", "of", "disk GB", "time", "price", "verdict")
BUCKETS = ("weights", "gradients", "optimizer", "reference", "activations", "logits", "kv_cache")


def show(console: Console, estimate: RunEstimate, remedies: dict[str, Remedy | None]) -> None:
    """Prints both tables, the totals, the steps that do not fit, and what the numbers rest on."""
    console.print(steps_table(estimate))
    console.print(memory_table(estimate))
    for line in (*totals(estimate), *verdicts(estimate, remedies), *basis(estimate)):
        console.print(line, soft_wrap=not console.is_terminal)


def steps_table(estimate: RunEstimate) -> Table:
    """A row for each step that is not reused."""
    table = Table(box=MARKDOWN, title=f"{estimate.model.name}: {amount(estimate.model.parameters)} parameters")
    table.title_justify = "left"
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("step", "verdict") else "right", no_wrap=True)
    for step in estimate.to_run:
        table.add_row(*_row(step))
    total = estimate.total_seconds()
    price = estimate.total_price()
    table.add_row(
        Text("total", style="bold"),
        *[""] * 4,
        amount(sum(step.work.flops for step in estimate.to_run)),
        *[""] * 2,
        f"{estimate.disk() / 1e9:.2f}",
        time_of(*total) if total else "?",
        f"{price:,.2f}" if price is not None else "",
    )
    return table


def _row(step: StepEstimate) -> list[Text | str]:
    needed, device = step.needed, step.device
    return [
        Text(step.step.name),
        f"{'~' if step.work.is_assumed and step.work.rows else ''}{amount(step.work.rows)}",
        amount(step.work.tokens),
        amount(step.parameters) if step.memory else "",
        amount(step.trainable) if step.trainable else "",
        amount(step.work.flops),
        f"{needed / GIB:.1f}" if needed is not None else "",
        f"{device.usable / GIB:.1f}" if device and step.memory else "",
        f"{step.disk / 1e9:.2f}" + (f" +{step.temporary_disk / 1e9:.0f}" if step.temporary_disk >= 5e8 else ""),
        time_of(step.seconds.low, step.seconds.high) if step.seconds else "?",
        f"{step.price:,.2f}" if step.price is not None else "",
        verdict(step),
    ]


def verdict(step: StepEstimate) -> Text:
    if step.memory is None:
        return Text("")
    if step.fits is None:
        return Text("no device known", style="yellow")
    if not step.fits:
        return Text("does not fit", style="red")
    return Text("fits", style="green") if step.memory.is_probed else Text("fits without activations", style="yellow")


def memory_table(estimate: RunEstimate) -> Table:
    """GiB by bucket, on one device: of the steps that hold a model, those with equal memory once."""
    table = Table(box=MARKDOWN, title="memory of one process in GiB", title_justify="left")
    for name in ("step", *BUCKETS, "slack", "host", "device"):
        table.add_column(
            name.replace("_", " "), justify="left" if name in ("step", "device") else "right", no_wrap=True
        )
    rows: dict[tuple[str, ...], list[str]] = {}
    for step in estimate.to_run:
        if step.memory is not None:
            rows.setdefault(_buckets(step, step.memory), []).append(step.step.name)
    for cells, names in rows.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        table.add_row(Text(names[0] + more), *cells)
    return table


def _buckets(step: StepEstimate, memory: Memory) -> tuple[str, ...]:
    cells = [gib(getattr(memory, name)) for name in BUCKETS]
    device = step.device
    slack = gib(device.memory - device.usable) if device else "?"
    return (*cells, slack, gib(memory.host), f"{device.name}, {gib(device.memory)} GiB" if device else "?")


def totals(estimate: RunEstimate) -> Iterator[Text]:
    chain, seconds = estimate.critical_path()
    if chain:
        shown = chain if len(chain) <= 4 else [*chain[:2], "...", chain[-1]]
        yield Text(f"critical path: {' -> '.join(shown)} ({len(chain)} steps, about {time_of(seconds, seconds)})")
    free, disk = estimate.free_disk, estimate.disk()
    line = Text(f"disk: {disk / 1e9:.1f} GB at most, {free / 1e9:.1f} GB are free")
    yield line if disk <= free else line.append(": too few", style="red")


def verdicts(estimate: RunEstimate, remedies: dict[str, Remedy | None]) -> Iterator[Text]:
    """The steps that do not fit, with the nearest change that does."""
    yield from (Text(line, style="red") for line in refusals(estimate, remedies))


def basis(estimate: RunEstimate) -> Iterator[Text]:
    """What the numbers are taken from."""
    learnt = [step for step in estimate.to_run if step.seconds and step.seconds.basis == "measured"]
    stated = [step for step in estimate.to_run if step.seconds and step.seconds.basis == "utilisation"]
    parts = [f"of {len(learnt)} steps, by finished ones on this hardware"] if learnt else []
    parts += [f"of {len(stated)} steps, by an assumed share of the device's peak speed"] if stated else []
    if parts:
        yield Text(f"time: {', '.join(parts)}", style="dim")
    if any(step.work.is_assumed and step.work.rows for step in estimate.to_run):
        yield Text("~ rows do not exist yet: as many as the recipe asks for, as long as those of the data", style="dim")
    for note in estimate.notes:
        yield Text(note, style="yellow")


def amount(value: float) -> str:
    """As in 8.03B, 1.2e+21 for more than a quadrillion, or nothing for 0."""
    if value >= 1e15:
        return f"{value:.2e}"
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * unit or (value >= unit and unit > 1e3):
            return f"{value / unit:.3g}{name}"
    return f"{value:.0f}" if value else ""


def time_of(low: float, high: float) -> str:
    """A range of seconds in the unit of its upper end, as in `7-8 s`, `12-15 min` or `3.1-4.2 h`."""
    seconds, unit = next(((size, name) for size, name in UNITS if high >= 2 * size), UNITS[-1])
    small, large = (f"{value / seconds:.{int(value < 10 * seconds)}f}" for value in (low, high))
    return f"{small} {unit}" if small == large else f"{small}-{large} {unit}"


def gib(value: float) -> str:
    return f"{value / GIB:.2f}" if 0 < value < 100 * GIB else f"{value / GIB:.0f}" if value else "-"
