"""Generates or reads the rows of a run, validates them, and splits them once by dialog: training, validation, judge and
evaluation.

No training file contains any turn of an evaluation dialog: documents that contain an evaluation prompt are left out,
and so are dialogs of another group that ask one in a later turn. Rows pass one by one, by way of an unnamed file beside
the output, so memory grows by an index and not by the texts. Needs no torch.

    python stages/prepare_data.py --preferences pairs.jsonl --chosen_as_instructions 0.3 --output_dir data
"""

import inspect
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from data_schemas.disk_list import DiskList
from data_schemas.errors import ConfigError
from data_schemas.files import writing_atomically
from data_schemas.reading import (
    BadRow,
    ReadRows,
    read_conversations,
    read_documents,
    read_pairs,
    read_prompts,
    write_rows,
)
from data_schemas.rows import Conversation, Document, PreferencePair, Prompt, Row
from data_schemas.sources import SourceValue
from data_schemas.stage_keys import StageTraits
from engine.curation.origins import FileNumbers, write_origins
from engine.curation.row_store import RowStore, RowView
from engine.curation.sides import (
    Files,
    SourceRows,
    Split,
    check_sides,
    decontaminate,
    hold_out,
    move_chosen_answers,
    num_repeated,
    split_rows,
    tell_apart,
)
from engine.runtime import progress
from engine.runtime.arguments import PlainStageArguments
from engine.runtime.functions import find_function
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage, StageResult, run_stage

RECIPE_VERSION = 4
EXAMPLE = "python stages/prepare_data.py --preferences pairs.jsonl --chosen_as_instructions 0.3 --output_dir data"
TRAITS = StageTraits(
    purpose="Reads files, or the rows that a function writes, and splits them into training and held-out rows.",
    position=0,
    kind="transforms",
    runs="once",
    one_process=True,
    imports_torch=False,
)
KINDS = ("documents", "instructions", "preferences", "prompts", "evaluation_prompts")
log = logging.getLogger(__name__)
RowType = TypeVar("RowType", bound=Row)


@dataclass(kw_only=True)
class PrepareDataArguments(PlainStageArguments):
    make_data: str | None = key_field(
        None, "module:function that writes the files below into a folder", role="function"
    )
    make_data_arguments: dict[str, Any] | None = key_field(None, "keyword arguments of make_data")
    documents: list[SourceValue] | None = key_field(None, "texts to pretrain on", role="rows")
    instructions: list[SourceValue] | None = key_field(None, "conversations for SFT", role="rows")
    preferences: list[SourceValue] | None = key_field(None, "preference pairs", role="rows")
    prompts: list[SourceValue] | None = key_field(
        None, "prompts to sample from; null: those of the other rows", role="rows"
    )
    evaluation_prompts: list[SourceValue] | None = key_field(
        None, "held-out prompts; null: a share by hash", role="rows"
    )
    evaluation_share: float = key_field(0.1, "share of the dialogs kept for evaluate_policy", minimum=0, below=1)
    judge_share: float = key_field(
        0.0, "share of the dialogs whose pairs train a judge that no round optimises", minimum=0, below=1
    )
    validation_share: float = key_field(
        0.05, "share of the dialogs kept for the eval loss of the training stages", minimum=0, below=1
    )
    num_evaluation_prompts: int = key_field(300, "evaluation prompts at most", minimum=1)
    chosen_as_instructions: float = key_field(
        0.0,
        "share of the dialogs in preferences whose chosen side becomes an instruction instead of a pair",
        minimum=0,
        maximum=1,
    )
    keep_sources: bool = key_field(
        False,
        "documents and instructions keep which of the files they are from, as a mix by source needs it; a recipe whose "
        "curation has such a mix sets it",
        omitted_at_default=True,
    )
    max_rows: int | None = key_field(None, "rows read of each kind at most, the first ones", minimum=1)
    on_bad_row: Literal["error", "set_aside"] = key_field("error", "what a bad row does: stop, or be set aside")


ARGUMENTS = (PrepareDataArguments,)


def sources(stage: Stage, arguments: PrepareDataArguments) -> dict[str, list[SourceValue]]:
    """The files of each kind: those that are given, and those that make_data writes. Raises ConfigError without any."""
    files = {kind: list(getattr(arguments, kind) or []) for kind in KINDS}
    if arguments.make_data:
        generated = stage.folder / "made"
        shutil.rmtree(generated, ignore_errors=True)
        generated.mkdir()
        generate(generated, arguments.make_data, {"seed": arguments.seed} | (arguments.make_data_arguments or {}))
        for kind in KINDS:
            if (generated / f"{kind}.jsonl").exists():
                files[kind].append(str(generated / f"{kind}.jsonl"))
    if not any(files.values()):
        raise ConfigError("prepare_data has nothing to read: give make_data, documents, instructions or preferences")
    return files


@progress.activity("generating the data")
def generate(folder: Path, reference: str, given: dict[str, Any]) -> None:
    """Calls `module:function(folder, **given)`, which writes files of rows into the folder.

    Raises ConfigError where the function does not accept these arguments, or raises a ValueError.
    """
    function = find_function(reference)
    try:
        inspect.signature(function).bind(folder, **given)
    except TypeError as error:
        raise ConfigError(f"{reference}: {error}; see make_data_arguments") from None
    try:
        function(folder, **given)
    except ValueError as error:
        raise ConfigError(f"{reference}: {error}") from error


@progress.activity("reading rows")
def read_sources(stage: Stage, arguments: PrepareDataArguments) -> SourceRows:
    """Reads the rows of every kind, at most max_rows of each. Raises what the readers raise for a bad row or file."""
    files = sources(stage, arguments)
    bad = DiskList[BadRow]()
    notes, warnings = dict[str, None](), dict[str, None]()
    numbers, generated = FileNumbers(), str(stage.folder / "made")

    def read(kind: str, reader: Callable[..., ReadRows[RowType]], row_type: type[RowType]) -> RowView[RowType]:
        store = RowStore(stage.folder, row_type)

        def keep(row: RowType, copies: int, file: str, line: int) -> None:
            store.add(row, copies, numbers.origin(file.replace(generated, str(arguments.make_data)), line))

        if files[kind]:
            result = reader(files[kind], on_bad_row=arguments.on_bad_row, keep=keep)
            bad.extend(result.bad)
            notes.update(dict.fromkeys(result.notes))
            warnings.update(dict.fromkeys(result.warnings))
        return store.view().first(arguments.max_rows)

    rows = SourceRows(
        stage.folder,
        read("documents", partial(read_documents, with_sources=arguments.keep_sources), Document),
        read("instructions", partial(read_conversations, with_sources=arguments.keep_sources), Conversation),
        read("preferences", read_pairs, PreferencePair),
        read("prompts", read_prompts, Prompt),
        read("evaluation_prompts", read_prompts, Prompt),
        bad,
        notes=[],
        warnings=[],
        files=numbers,
    )
    return replace(rows, notes=list(notes), warnings=list(warnings))


@progress.activity("writing rows")
def write(
    stage: Stage,
    files: Files,
    rows: SourceRows,
    left_out: dict[str, int],
    *,
    needs_prompts: bool,
) -> StageResult:
    """Writes every file and counts its rows. Raises ConfigError where an evaluation has no prompt."""
    outputs = {name: f"{name}.jsonl" for name, of_file in files.items() if of_file}
    for name, of_file in files.items():
        if isinstance(of_file, RowView):
            path = stage.folder / f"{name}.jsonl"
            with writing_atomically(path) as file:
                file.writelines(of_file.lines())
            if name in outputs and name.endswith(".train"):  # the rows that curation may drop
                outputs[f"{name}.origins"] = write_origins(path, rows.files.names, of_file.origins())
        else:
            write_rows(stage.folder / f"{name}.jsonl", of_file)
    write_rows(stage.folder / "rejected_rows.jsonl", rows.bad)
    shutil.rmtree(stage.folder / "made", ignore_errors=True)
    counts = {name: len(of_file) for name, of_file in files.items()} | {"rejected_rows": len(rows.bad)} | left_out
    log.info("%s", ", ".join(f"{name} {count}" for name, count in counts.items() if count))
    if not files["evaluation_prompts"] and needs_prompts:
        raise ConfigError("no evaluation prompt is left: give evaluation_prompts, or a larger evaluation_share")
    return StageResult(
        outputs=outputs | {"rejected_rows": "rejected_rows.jsonl"},
        metrics=dict(counts),
        warnings=rows.warnings,
        notes=rows.notes,
    )


def main(stage: Stage, arguments: PrepareDataArguments) -> StageResult:
    rows = move_chosen_answers(tell_apart(read_sources(stage, arguments)), arguments.chosen_as_instructions)
    split = Split.of(
        rows.evaluation_prompts,
        evaluation=arguments.evaluation_share,
        judge=arguments.judge_share,
        validation=arguments.validation_share,
    )
    evaluation = hold_out(rows, split, arguments.num_evaluation_prompts)
    clean, num_documents_left_out, num_dialogs_left_out = decontaminate(rows, evaluation)
    files = split_rows(clean, evaluation, split, arguments.validation_share)
    is_evaluated = arguments.evaluation_share > 0 or arguments.evaluation_prompts is not None
    check_sides(rows, files, needs_prompts=is_evaluated)
    return write(
        stage,
        files,
        clean,
        {
            "documents_left_out": num_documents_left_out,
            "repeated_documents_left_out": num_repeated(clean.documents),
            "dialogs_left_out": num_dialogs_left_out,
        },
        needs_prompts=is_evaluated,
    )


if __name__ == "__main__":
    run_stage("prepare_data", ARGUMENTS, main)
