"""Generates or reads the rows of a run, validates them, and splits them once by dialog: training, validation, judge and
evaluation.

No training file contains any turn of an evaluation dialog: documents that contain an evaluation prompt are left out,
and so are dialogs of another group that ask one in a later turn. Needs no torch.

    python stages/prepare_data.py --preferences pairs.jsonl --chosen_as_instructions 0.3 --output_dir data
"""

import inspect
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from data_schemas.check_request import ROW_NOTES
from data_schemas.errors import ConfigError, DataError
from data_schemas.files import write_atomically
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
from data_schemas.splitting import Place, Shares, assign, becomes_instruction, split_documents
from data_schemas.stage_keys import StageTraits
from engine.curation.decontamination import (
    most_frequent_causes,
    without_documents_that_contain,
    without_later_prompts,
)
from engine.curation.grouping import DialogType, describe_large_group, systems_tell_apart, with_system_groups
from engine.runtime import progress
from engine.runtime.arguments import PlainStageArguments
from engine.runtime.functions import find_function
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage, StageResult, run_stage

RECIPE_VERSION = 2
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


@dataclass(frozen=True)
class SourceRows:
    """The rows of each kind, and those that were set aside as bad."""

    documents: list[Document]
    conversations: list[Conversation]
    pairs: list[PreferencePair]
    prompts: list[Prompt]
    evaluation_prompts: list[Prompt]
    bad: list[BadRow]
    notes: list[str]  # what a user should know of the files, one line each

    @property
    def dialogs(self) -> list[Conversation | PreferencePair | Prompt]:
        """The rows of all kinds but documents."""
        return [*self.conversations, *self.pairs, *self.prompts, *self.evaluation_prompts]


@dataclass(frozen=True)
class Split:
    """The side of each dialog: training, validation, judge or evaluation, by the hash of its group."""

    shares: Shares
    evaluation_groups: frozenset[str]  # of the evaluation prompts that were given

    @classmethod
    def of(cls, arguments: PrepareDataArguments, given: Sequence[Prompt]) -> "Split":
        """Where evaluation prompts are given, no others are held out by hash."""
        evaluation_share = 0.0 if given else arguments.evaluation_share
        shares = Shares(evaluation_share, arguments.judge_share, arguments.validation_share)
        return cls(shares, frozenset(prompt.group_id for prompt in given))

    def rows_on(self, side: Place, rows: Sequence[DialogType]) -> list[DialogType]:
        """The rows whose dialogs are on this side."""
        return [
            row for row in rows if assign(row.group_id, self.shares, evaluation_groups=self.evaluation_groups) == side
        ]


@progress.activity("reading rows")
def read_sources(stage: Stage, arguments: PrepareDataArguments) -> SourceRows:
    """Reads the rows of every kind, at most max_rows of each. Raises what the readers raise for a bad row or file."""
    files = sources(stage, arguments)
    documents = _read(read_documents, files["documents"], arguments)
    conversations = _read(read_conversations, files["instructions"], arguments)
    pairs = _read(read_pairs, files["preferences"], arguments)
    prompts = _read(read_prompts, files["prompts"], arguments)
    evaluation = _read(read_prompts, files["evaluation_prompts"], arguments)
    kinds = (documents, conversations, pairs, prompts, evaluation)
    bad = [row for kind in kinds for row in kind.bad]
    notes = list(dict.fromkeys(note for kind in kinds for note in kind.notes))
    return SourceRows(documents.rows, conversations.rows, pairs.rows, prompts.rows, evaluation.rows, bad, notes)


def _read(
    reader: Callable[..., ReadRows[RowType]], paths: list[SourceValue], arguments: PrepareDataArguments
) -> ReadRows[RowType]:
    if not paths:
        return ReadRows([], [])
    result = reader(paths, on_bad_row=arguments.on_bad_row)
    return replace(result, rows=result.rows[: arguments.max_rows])


def tell_apart(rows: SourceRows) -> SourceRows:
    """The rows with groups by which they can be split: where all dialogs have the same first user message, the system
    message counts too. A note says where one group is still large."""
    if systems_tell_apart(rows.dialogs):
        rows = replace(
            rows,
            conversations=with_system_groups(rows.conversations),
            pairs=with_system_groups(rows.pairs),
            prompts=with_system_groups(rows.prompts),
            evaluation_prompts=with_system_groups(rows.evaluation_prompts),
        )
    note = describe_large_group(rows.dialogs)
    if note:
        log.warning("%s", note)
    return replace(rows, notes=[*rows.notes, *filter(None, [note])])


def move_chosen_answers(rows: SourceRows, share: float) -> SourceRows:
    """Turns the pairs of a share of the groups into conversations with the chosen answer; adds prompts where there are
    none."""
    moved = [becomes_instruction(pair.group_id, share) for pair in rows.pairs]
    conversations = rows.conversations + [
        Conversation(
            messages=[*pair.prompt, *pair.chosen],
            tools=pair.tools,
            group_id=pair.group_id,
            source="preferences.chosen",
        )
        for pair, is_moved in zip(rows.pairs, moved, strict=True)
        if is_moved
    ]
    pairs = [pair for pair, is_moved in zip(rows.pairs, moved, strict=True) if not is_moved]
    prompts = rows.prompts or prompts_of(conversations, pairs)
    return replace(rows, conversations=conversations, pairs=pairs, prompts=prompts)


def hold_out(rows: SourceRows, split: Split, num_prompts: int) -> list[Prompt]:
    """The evaluation prompts: those that were given, else the prompts on the evaluation side of the split."""
    return unique(rows.evaluation_prompts or split.rows_on("evaluation", rows.prompts))[:num_prompts]


@progress.activity("looking for evaluation prompts in the rows")
def decontaminate(rows: SourceRows, evaluation: Sequence[Prompt]) -> tuple[SourceRows, int, int]:
    """The rows without those that contain an evaluation prompt, and the numbers of documents and dialogs left out."""
    documents, bad_documents = without_documents_that_contain(rows.documents, evaluation)
    conversations, bad_conversations = without_later_prompts(rows.conversations, evaluation)
    pairs, bad_pairs = without_later_prompts(rows.pairs, evaluation)
    prompts, bad_prompts = without_later_prompts(rows.prompts, evaluation)
    notes = list(rows.notes)
    dialogs = [row for _, row in (*bad_conversations, *bad_pairs)]
    texts = [document for _, document in bad_documents]
    if dialogs or texts:
        causes = most_frequent_causes(evaluation, dialogs=dialogs, documents=texts)
        notes.append(
            f"left out: {len(dialogs)} of {len(rows.conversations) + len(rows.pairs)} dialogs that ask an evaluation "
            f"prompt in a later turn, {len(texts)} of {len(rows.documents)} documents that contain one; most because "
            f"of {causes}"
        )
        log.warning("%s", notes[-1])
    clean = replace(rows, documents=documents, conversations=conversations, pairs=pairs, prompts=prompts, notes=notes)
    return clean, len(bad_documents), len(bad_conversations) + len(bad_pairs) + len(bad_prompts)


def check_sides(rows: SourceRows, files: Mapping[str, Sequence[Row]], *, needs_prompts: bool) -> None:
    """Raises DataError where every row is set aside, or where one first user message leaves a side without rows."""
    if rows.bad and not rows.documents and not rows.dialogs:
        first = rows.bad[0]
        raise DataError(f"all {len(rows.bad)} rows are set aside; the first: {first.file}:{first.line}: {first.reason}")
    train = ("instructions.train", "preferences.train", "prompts.train", "documents.train")
    dialogs = [*rows.conversations, *rows.pairs] or rows.dialogs  # a prompt of a dialog is no dialog more
    large_group = describe_large_group(dialogs)
    has_prompts = bool(files["evaluation_prompts"]) or not needs_prompts
    if large_group.startswith("all ") and not (has_prompts and any(files[name] for name in train)):
        raise DataError(
            f"{large_group}, and the other sides have no row; expected rows with different first user messages (or "
            "different system messages, if only these differ)"
        )


def split_rows(
    rows: SourceRows, evaluation: Sequence[Prompt], split: Split, validation_share: float
) -> dict[str, Sequence[Row]]:
    """The rows of every file that the stage writes, by the file's name without its ending.

    Copies of a row, from a source with a share above 1, are the same object. They are trained on and not held out.
    """
    # A text that occurs more than once is written once. Documents are split by their texts, not by a group.
    by_text = {document.text: document for document in rows.documents}
    train_documents, validation_documents = split_documents(by_text.values(), validation_share=validation_share)
    copies = Counter(map(id, rows.documents))
    return {
        "documents.train": [document for document in train_documents for _ in range(copies[id(document)])],
        "documents.validation": validation_documents,
        "instructions.train": split.rows_on("train", rows.conversations),
        "instructions.validation": without_copies(split.rows_on("validation", rows.conversations)),
        "preferences.train": split.rows_on("train", rows.pairs),
        "preferences.validation": split.rows_on("validation", rows.pairs),
        "preferences.judge": split.rows_on("judge", rows.pairs),
        "preferences.judge_validation": split.rows_on("judge_validation", rows.pairs),
        "prompts.train": unique(split.rows_on("train", rows.prompts)),
        "prompts.validation": unique(split.rows_on("validation", rows.prompts)),
        "evaluation_prompts": evaluation,
    }


@progress.activity("writing rows")
def write(
    stage: Stage,
    files: Mapping[str, Sequence[Row]],
    rows: SourceRows,
    left_out: dict[str, int],
    *,
    needs_prompts: bool,
) -> StageResult:
    """Writes every file and counts its rows. Raises ConfigError where an evaluation has no prompt."""
    for name, of_file in files.items():
        write_rows(stage.folder / f"{name}.jsonl", of_file)
    write_rows(stage.folder / "rejected_rows.jsonl", rows.bad)
    if rows.notes:  # `alignloop check` shows them
        write_atomically(stage.folder / ROW_NOTES, json.dumps(rows.notes, ensure_ascii=False))
    shutil.rmtree(stage.folder / "made", ignore_errors=True)
    counts = {name: len(of_file) for name, of_file in files.items()} | {"rejected_rows": len(rows.bad)} | left_out
    log.info("%s", ", ".join(f"{name} {count}" for name, count in counts.items() if count))
    if not files["evaluation_prompts"] and needs_prompts:
        raise ConfigError("no evaluation prompt is left: give evaluation_prompts, or a larger evaluation_share")
    outputs = {name: f"{name}.jsonl" for name, of_file in files.items() if of_file}
    return StageResult(outputs=outputs | {"rejected_rows": "rejected_rows.jsonl"}, metrics=dict(counts))


def prompts_of(conversations: Sequence[Conversation], pairs: Sequence[PreferencePair]) -> list[Prompt]:
    """The prompts of the other rows: that of each pair, and each conversation up to its last answer."""
    prompts = [Prompt(prompt=pair.prompt, tools=pair.tools, group_id=pair.group_id) for pair in pairs]
    for row in conversations:
        before = list(row.messages[:-1])
        if before and before[-1].role in ("user", "tool"):
            prompts.append(Prompt(prompt=before, tools=row.tools, group_id=row.group_id))
    return prompts


def without_copies(rows: Sequence[RowType]) -> list[RowType]:
    """Each object once, in order. Equal rows of a file are different objects and stay."""
    return list({id(row): row for row in rows}.values())


def unique(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each prompt once, in the order of the ids, so that the first prompts do not depend on the order of the files."""
    return [prompt for _, prompt in sorted({prompt.prompt_id: prompt for prompt in prompts}.items())]


def main(stage: Stage, arguments: PrepareDataArguments) -> StageResult:
    rows = move_chosen_answers(tell_apart(read_sources(stage, arguments)), arguments.chosen_as_instructions)
    split = Split.of(arguments, rows.evaluation_prompts)
    evaluation = hold_out(rows, split, arguments.num_evaluation_prompts)
    clean, num_documents_left_out, num_dialogs_left_out = decontaminate(rows, evaluation)
    files = split_rows(clean, evaluation, split, arguments.validation_share)
    is_evaluated = arguments.evaluation_share > 0 or arguments.evaluation_prompts is not None
    check_sides(rows, files, needs_prompts=is_evaluated)
    return write(
        stage,
        files,
        clean,
        {"documents_left_out": num_documents_left_out, "dialogs_left_out": num_dialogs_left_out},
        needs_prompts=is_evaluated,
    )


if __name__ == "__main__":
    run_stage("prepare_data", ARGUMENTS, main)
