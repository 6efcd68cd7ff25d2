"""Writes `report.html` beside `summary.json`: one file that opens from the disk, without a network or a server.

    alignloop report runs/demo

While a run goes on, `alignloop run` writes it again when a step starts or ends and every few seconds, atomically.
"""

import importlib.metadata
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from data_schemas.files import write_atomically
from data_schemas.progress import duration
from data_schemas.tracked_round import PAGE
from data_schemas.yaml_files import dump_yaml
from pipeline.report import calibration, rounds, run_status
from pipeline.report.page import sections
from pipeline.report.page.answers import Evaluated, side_by_side
from pipeline.report.page.facts import FactsReader, StepFacts, evaluations
from pipeline.report.page.lineage import anchor, graph
from pipeline.report.page.sections import Table
from pipeline.report.page.svg import NUM_COLOURS
from pipeline.report.page.template import LEFT_OUT, fill, shown_answers
from pipeline.report.page.verdict import doing, next_command, verdict
from pipeline.report.rounds import number
from pipeline.state.run import StepState
from pipeline.state.summary import RecipeEntry, Summary, read
from pipeline.steps import Step

log = logging.getLogger(__name__)

REFRESH_SECONDS = 5  # between two loads of the page of a running run
MAX_SHARE = 0.02  # of the time that the page may take from a run

CONTENTS = (
    ("rounds", "By round"),
    ("graph", "Steps"),
    ("kl", "Proxy and judge"),
    ("training", "Training"),
    ("distributions", "Distributions"),
    ("wins", "Wins"),
    ("calibration", "Calibration"),
    ("answers", "Answers"),
    ("dropped", "Rows not used"),
    ("time", "Time"),
    ("costs", "Estimated"),
    ("recipe", "Recipe"),
)


@dataclass
class PageWriter:
    """Keeps the page of a run up to date. A page that can't be written is reported once, and stops nothing."""

    folder: Path
    reader: FactsReader = field(init=False)
    next_write: float = 0.0  # seconds of the monotonic clock
    has_failed: bool = False

    def __post_init__(self) -> None:
        self.reader = FactsReader(self.folder)

    def __call__(self, step: Step, state: StepState) -> None:
        """Writes the page where a step has started or ended, and every few seconds while it runs."""
        now = time.monotonic()
        if state.state in ("reused", "skipped") or (state.state == "running" and now < self.next_write):
            return
        self.write()
        took = time.monotonic() - now
        self.next_write = now + max(REFRESH_SECONDS, took / MAX_SHARE)

    def write(self, *, warns: bool = True) -> None:
        """Writes the page. What prevents it is a warning: a run does not fail for its report."""
        try:
            write_atomically(self.folder / PAGE, render(self.folder, read(self.folder), self.reader))
        except Exception as error:
            if warns and not self.has_failed:
                self.has_failed = True
                log.warning("%s is not written: %s: %s", self.folder / PAGE, type(error).__name__, error)


def write_page(folder: Path) -> tuple[Path, list[str]]:
    """Writes the page of the run in a folder. Returns its path, and what could not be read for it.

    Raises AlignloopError or OSError.
    """
    summary, reader = read(folder), FactsReader(folder)
    write_atomically(folder / PAGE, render(folder, summary, reader))
    steps = reader.read(summary)  # what is final has been read
    return folder / PAGE, unread(steps, evaluations(steps))


def unread(steps: Sequence[StepFacts], evaluated: Sequence[Evaluated]) -> list[str]:
    """A sentence for each record, and for each file of answers, that could not be read."""
    said = [f"{step.name}: {step.problem}" for step in steps if step.problem]
    return said + [f"{one.policy}: {one.problem}" for one in evaluated if one.problem]


def render(folder: Path, summary: Summary, reader: FactsReader) -> str:
    """The page's HTML."""
    steps = reader.read(summary)
    evaluated = evaluations(steps)
    is_running = run_status.is_running(summary, folder)
    recipe = summary.get("recipe")
    warnings = [f"{step.name}: {warning}" for step in steps for warning in step.entry.get("warnings", [])]
    shows_samples = recipe is None or recipe["shows_samples"]
    by_round = [[name, *cells] for name, cells in rounds.rows(summary)] if summary["rounds"] else []
    compared = evaluated if shows_samples else []
    context = {
        "name": summary["name"],
        "state": summary["state"],
        "verdict": verdict(summary),
        "doing": doing(steps) if is_running else [],
        "remarks": [*map(_sentence, rounds.remarks(summary)), *unread(steps, evaluated)],
        "warnings": warnings,
        "warnings_title": _warnings_title(warnings, steps),
        "head": run_status.head(summary, folder),
        "command": "" if is_running else next_command(summary, folder),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "refresh": REFRESH_SECONDS if is_running else None,
        "rounds_title": rounds.title(summary),
        "rounds": Table(("", *rounds.heads(summary)), by_round) if by_round else None,
        "graph": graph(steps) if steps else "",
        "steps": [_details(step) for step in steps],
        "kl": sections.over_kl(summary, _evaluation_files(summary)),
        "training": [(step.name, figures) for step, figures in sections.training(steps)],
        "distributions": sections.distributions(evaluated),
        "wins": sections.wins(evaluated),
        "calibration": sections.calibration_table(steps),
        "calibration_columns": calibration.COLUMNS,
        "calibration_files": [f"{step.entry['folder']}/artifact.json" for step in steps if step.raters],
        "answer_files": [one.file for one in evaluated],
        "answers": [shown_answers(one) for one in side_by_side(compared)],
        "samples_note": "" if shows_samples else LEFT_OUT,
        "dropped": sections.dropped(steps),
        "time": sections.times(steps),
        "num_colours": NUM_COLOURS,
        "costs": sections.costs(steps),
        "recipe": _recipe(recipe),
        "versions": _versions(steps),
    }
    contents = [(name, words) for name, words in CONTENTS if context[name]]
    return fill("report.html.j2", {**context, "contents": contents})


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _warnings_title(warnings: Sequence[str], steps: Sequence[StepFacts]) -> str:
    count = sum(bool(step.entry.get("warnings")) for step in steps)
    return f"{len(warnings)} warning{'s' * (len(warnings) != 1)} of {count} step{'s' * (count != 1)}"


def _recipe(recipe: RecipeEntry | None) -> Mapping[str, object]:
    """The recipe's file, its content as YAML, and its changes; empty texts for a summary of an older version."""
    if recipe is None:
        return {"file": "", "text": "", "changes": []}
    text = dump_yaml(dict(recipe["content"]))
    return {"file": recipe["file"], "text": text, "changes": recipe["changes"]}


def _evaluation_files(summary: Summary) -> dict[str, str]:
    entries = [entry for entry in summary["steps"] if entry["stage"] == "evaluate_policy" and entry["folder"]]
    return {entry["name"]: f"{entry['folder']}/artifact.json" for entry in entries}


def _details(step: StepFacts) -> Mapping[str, object]:
    """What the page has below the graph for a step."""
    entry, record = step.entry, step.record
    return {
        "anchor": anchor(step.name),
        "name": step.name,
        "state": entry["state"],
        "seconds": duration(entry["seconds"]),
        "folder": entry["folder"],
        "fingerprint": (entry["fingerprint"] or "")[:16],
        "warnings": entry.get("warnings", []),
        "problem": step.problem,
        "key_table": Table(
            ("key", "value", "default"),
            [[name, _json(value), _json(default)] for name, (value, default) in step.keys_that_differ.items()],
        ),
        "input_table": Table(("key", "from"), [[key, value] for key, value in record.inputs.items()] if record else []),
        "file_table": Table(
            ("file", "MB"), [[name, f"{size / 1e6:.2f}"] for name, size in record.files.items()] if record else []
        ),
        "metric_table": Table(("metric", "value"), [[name, number(value)] for name, value in entry["metrics"].items()]),
    }


def _json(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _versions(steps: Sequence[StepFacts]) -> Table:
    """The libraries that the steps ran with, and this machine."""
    recorded: dict[str, dict[str, None]] = {}
    for step in steps:
        for library, version in (step.record.versions if step.record else {}).items():
            recorded.setdefault(library, {})[version] = None
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB of memory"
    machine = f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} CPU cores, {memory}"
    rows = [["alignloop", importlib.metadata.version("alignloop")], ["Python", platform.python_version()]]
    rows += [[library, ", ".join(versions)] for library, versions in recorded.items()]
    return Table(("of the steps, and of the machine that wrote this page", ""), [*rows, ["machine", machine]])
