"""What the rules of curation would drop of a file of rows, for `alignloop data`. Needs no torch."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from data_schemas.reading import write_rows
from data_schemas.sources import SourceValue
from data_schemas.survey import Survey, excerpt
from data_schemas.text import printable
from engine.curation.arguments import CurateArguments
from engine.curation.contamination import EvaluationIndex
from engine.curation.content import KINDS, Kind
from engine.curation.dialog_rules import ANSWER_CHECKS, PROMPT_CHECKS
from engine.curation.row_rules import evaluation_sets
from engine.curation.table import Table as Rows
from stages.curate import compare

MAX_EXAMPLE = 60  # characters of a row
BY_DEFAULT = "what `curate: {}` would drop (nothing is dropped now)"
ON_REQUEST = (
    "what document_rules or dialog_rules of `curate` would drop if a recipe asked for them (nothing is dropped now)"
)


def rules_of(found: Survey, evaluation: Sequence[SourceValue]) -> list[Table | Text]:
    """What each rule would drop of the rows, with an example, and the overlap with evaluation sets.

    Those that `curate: {}` has and those that a recipe has to ask for are in two tables, which are independent: a row
    may be in both. Raises what reading an evaluation set raises.
    """
    kinds: dict[str, Kind] = {**{kind: kind for kind in KINDS}, "evaluation_prompts": "prompts"}
    kind = kinds[str(found.kind)]
    with tempfile.TemporaryDirectory(prefix="alignloop-data-") as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, (item.row for item in found.rows))
        by_default = CurateArguments(decontaminate_against=list(evaluation) or None)
        on_request = CurateArguments(
            document_rules=["gopher", "c4", "fineweb"],
            dialog_rules=[name for name in (*ANSWER_CHECKS, *PROMPT_CHECKS) if name not in by_default.dialog_rules],
            exact_duplicates=False,
            near_duplicates=None,
        )
        sets = None
        shown: list[Table | Text] = []
        for arguments, title in ((by_default, BY_DEFAULT), (on_request, ON_REQUEST)):
            setattr(arguments, kind, [str(file)])
            of_arguments = evaluation_sets(arguments)
            rows = compare(kind, arguments, of_arguments)
            sets = sets or of_arguments
            shown += [Text(title), _of_rules(rows, found)] if rows.findings else []
    return [*shown, *(_of_sets(sets) if sets else [])]


def _of_rules(rows: Rows, found: Survey) -> Table:
    table = Table("rule", "rows", "value", "limit", "example", box=box.SIMPLE_HEAD, header_style="dim")
    table.columns[1].justify = "right"
    table.columns[4].overflow = "fold"
    for rule, dropped in rows.dropped_by_rule():
        index = min(dropped)
        finding = rows.findings[index]
        text = excerpt(rows.content(index).text.replace("\n", " "), MAX_EXAMPLE)
        line = found.rows[index].place.rpartition(":")[2]
        limit = "" if finding.threshold is None else _short(finding.threshold)
        cells = (_short(finding.value), limit, f"line {line}: {text}")
        table.add_row(rule, f"{len(dropped):,}", *(Text(printable(cell)) for cell in cells))
    return table


def _short(value: float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else excerpt(str(value), 20)


def _of_sets(sets: EvaluationIndex) -> list[Text]:
    return [
        Text(
            printable(
                f"{name}: {report.num_contaminated} of its {report.num_prompts} prompts are in these rows "
                f"({report.num_equal} completely), {report.num_sharing} share an 8-gram; longest span "
                f"{report.longest_span} words"
            )
        )
        for name, report in sets.report().items()
    ]
