"""The page of a comparison: `alignloop compare RUN RUN --page compare.html`."""

import contextlib
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from data_schemas.files import write_atomically
from pipeline.report.comparing import Comparison, results
from pipeline.report.page.sections import Table
from pipeline.report.page.template import LEFT_OUT, fill, shown_answers

MARKER = '<meta name="generator" content="alignloop compare">'  # near the beginning of every page


def is_comparison(path: Path) -> bool:
    """Whether the file is a page that `compare` wrote, which it may write again."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return MARKER.encode() in file.read(1_000)
    return False


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Writes the page. Raises OSError."""
    first, second = comparison.sides
    labels = comparison.labels
    shows_samples = comparison.shows_samples
    difference = comparison.difference
    context = {
        "marker": Markup(MARKER),
        "title": f"{labels[1]} against {labels[0]}",
        "verdict": f"Not compared: {comparison.why_not}." if difference is None else f"{difference.sentence}.",
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "first": str(first.folder),
        "second": str(second.folder),
        "changes": comparison.recipe,
        "results": Table(("", *labels), [[name, *cells] for name, cells in results(comparison)]),
        "answers": [shown_answers(one) for one in comparison.answers] if shows_samples else [],
        "samples_note": "" if shows_samples else LEFT_OUT,
    }
    write_atomically(path, fill("compare.html.j2", context))
