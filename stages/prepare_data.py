"""The run's rows, made or read, validated, and split once: training, validation, judge and evaluation, by dialog.

Nothing of an evaluation dialog is in any training file, in any turn: documents that contain an evaluation prompt are
left out, and so are dialogs of another group that ask one in a later turn. Needs no torch.

    python stages/prepare_data.py --preferences pairs.jsonl --chosen_as_instructions 0.3 --output_dir data
"""

import inspect
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_schemas.errors import ConfigError
from data_schemas.reading import BadRow, read_conversations, read_documents, read_pairs, read_prompts, write_rows
from data_schemas.rows import Conversation, Document, PreferencePair, Prompt, Row
from data_schemas.splitting import Shares, assign, becomes_instruction
from data_schemas.stage_keys import StageTraits
from engine.curation.decontamination import asks_later, contains_any
from engine.runtime.arguments import PlainStageArguments
from engine.runtime.functions import find_function
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage, StageResult, run_stage

RECIPE_VERSION = 1
EXAMPLE = "python stages/prepare_data.py --preferences pairs.jsonl --chosen_as_instructions 0.3 --output_dir data"
TRAITS = StageTraits(
    purpose="Reads files, or the rows that a function writes, and splits them into training, held-out and evaluation rows.",
    position=0,
    kind="transforms",
    runs="once",
    one_process=True,
    imports_torch=False,
)
KINDS = ("documents", "instructions", "preferences", "prompts", "evaluation_prompts")
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PrepareDataArguments(PlainStageArguments):
    make_data: str | None = key_field(
        None, "module:function that writes the files below into a folder", role="function"
    )
    make_data_arguments: dict[str, Any] | None = key_field(None, "keyword arguments of make_data")
    documents: list[str] | None = key_field(None, "texts to pretrain on", role="rows")
    instructions: list[str] | None = key_field(None, "conversations for SFT", role="rows")
    preferences: list[str] | None = key_field(None, "preference pairs", role="rows")
    prompts: list[str] | None = key_field(None, "prompts to sample from; null: those of the other rows", role="rows")
    evaluation_prompts: list[str] | None = key_field(None, "held-out prompts; null: a share by hash", role="rows")
    evaluation_share: float = key_field(0.1, "share of the dialogs kept for evaluate_policy")
    judge_share: float = key_field(0.0, "share of the dialogs whose pairs train a judge that no round optimises")
    validation_share: float = key_field(0.05, "share of the dialogs kept for the eval loss of the training stages")
    num_evaluation_prompts: int = key_field(300, "evaluation prompts at most")
    chosen_as_instructions: float = key_field(
        0.0, "share of the dialogs in preferences whose chosen side becomes an instruction instead of a pair"
    )
    max_rows: int | None = key_field(None, "rows read of each kind at most, the first ones")
    on_bad_row: Literal["error", "set_aside"] = key_field("error", "what a bad row does: stop, or be set aside")


ARGUMENTS = (PrepareDataArguments,)


def sources(stage: Stage, arguments: PrepareDataArguments) -> dict[str, list[str]]:
    """The files of each kind: given ones, and those that make_data writes."""
    files = {kind: list(getattr(arguments, kind) or []) for kind in KINDS}
    if arguments.make_data:
        made = stage.folder / "made"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        make(made, arguments.make_data, {"seed": arguments.seed} | (arguments.make_data_arguments or {}))
        for kind in KINDS:
            if (made / f"{kind}.jsonl").exists():
                files[kind].append(str(made / f"{kind}.jsonl"))
    if not any(files.values()):
        raise ConfigError("prepare_data has nothing to read: give make_data, documents, instructions or preferences")
    return files


def make(folder: Path, reference: str, given: dict[str, Any]) -> None:
    """Calls `module:function(folder, **given)`. Raises ConfigError where it does not take these arguments, or refuses
    them by a ValueError."""
    function = find_function(reference)
    try:
        inspect.signature(function).bind(folder, **given)
    except TypeError as error:
        raise ConfigError(f"{reference}: {error}; see make_data_arguments") from None
    try:
        function(folder, **given)
    except ValueError as error:
        raise ConfigError(f"{reference}: {error}") from error


def main(stage: Stage, arguments: PrepareDataArguments) -> StageResult:
    files = sources(stage, arguments)
    bad: list[BadRow] = []

    def read(reader: Any, kind: str) -> list[Any]:
        if not files[kind]:
            return []
        found = reader(files[kind], on_bad_row=arguments.on_bad_row)
        bad.extend(found.bad)
        return found.rows[: arguments.max_rows]

    documents: list[Document] = read(read_documents, "documents")
    conversations: list[Conversation] = read(read_conversations, "instructions")
    pairs: list[PreferencePair] = read(read_pairs, "preferences")
    prompts: list[Prompt] = read(read_prompts, "prompts")
    held_out: list[Prompt] = read(read_prompts, "evaluation_prompts")

    for pair in pairs:
        if becomes_instruction(pair.group_id, arguments.chosen_as_instructions):
            messages = [*pair.prompt, *pair.chosen]
            conversations.append(
                Conversation(messages=messages, tools=pair.tools, group_id=pair.group_id, source="preferences.chosen")
            )
    pairs = [pair for pair in pairs if not becomes_instruction(pair.group_id, arguments.chosen_as_instructions)]
    if not prompts:
        prompts = prompts_of(conversations, pairs)

    # With given evaluation prompts no others are held out by hash.
    shares = Shares(0.0 if held_out else arguments.evaluation_share, arguments.judge_share, arguments.validation_share)
    groups = {prompt.group_id for prompt in held_out}

    def part(rows: Sequence[Any], place: str) -> list[Any]:
        return [row for row in rows if assign(row.group_id, shares, evaluation_groups=groups) == place]

    evaluation = unique(held_out or part(prompts, "evaluation"))[: arguments.num_evaluation_prompts]
    asked = {prompt.group_id for prompt in evaluation}
    before = len(conversations) + len(pairs) + len(prompts)
    conversations = [row for row in conversations if not asks_later(row.messages, asked)]
    pairs = [row for row in pairs if not asks_later(row.prompt, asked)]
    prompts = [row for row in prompts if not asks_later(row.prompt, asked)]
    dialogs_left_out = before - len(conversations) - len(pairs) - len(prompts)
    leaks = contains_any(documents, evaluation)
    clean = [document for document, leak in zip(documents, leaks, strict=True) if not leak]
    # 95/5 by document: the hash of the text is its group.
    by_text = {document.text: document for document in clean}
    sides = document_sides(list(by_text.values()), arguments.validation_share)
    parts: dict[str, Sequence[Row]] = {
        "documents.train": sides[0],
        "documents.validation": sides[1],
        "instructions.train": part(conversations, "train"),
        "instructions.validation": part(conversations, "validation"),
        "preferences.train": part(pairs, "train"),
        "preferences.validation": part(pairs, "validation"),
        "preferences.judge": part(pairs, "judge"),
        "preferences.judge_validation": part(pairs, "judge_validation"),
        "prompts.train": unique(part(prompts, "train")),
        "prompts.validation": unique(part(prompts, "validation")),
        "evaluation_prompts": evaluation,
    }
    for name, rows in parts.items():
        write_rows(stage.folder / f"{name}.jsonl", rows)
    write_rows(stage.folder / "rejected_rows.jsonl", bad)
    shutil.rmtree(stage.folder / "made", ignore_errors=True)
    metrics: dict[str, float | int | str | None] = {name: len(rows) for name, rows in parts.items()}
    metrics |= {"rejected_rows": len(bad), "documents_left_out": len(documents) - len(clean)}
    metrics["dialogs_left_out"] = dialogs_left_out
    log.info("%s", ", ".join(f"{name} {count}" for name, count in metrics.items() if count))
    if not evaluation:
        raise ConfigError("no evaluation prompt is left: give evaluation_prompts, or a larger evaluation_share")
    written = {name: f"{name}.jsonl" for name, rows in parts.items() if rows}
    return StageResult(outputs=written | {"rejected_rows": "rejected_rows.jsonl"}, metrics=metrics)


def prompts_of(conversations: Sequence[Conversation], pairs: Sequence[PreferencePair]) -> list[Prompt]:
    """The prompts that the other rows answer: a pair's, and a conversation's up to its last answer."""
    found = [Prompt(prompt=pair.prompt, tools=pair.tools, group_id=pair.group_id) for pair in pairs]
    for row in conversations:
        before = list(row.messages[:-1])
        if before and before[-1].role in ("user", "tool"):
            found.append(Prompt(prompt=before, tools=row.tools, group_id=row.group_id))
    return found


def unique(prompts: Sequence[Prompt]) -> list[Prompt]:
    """One row a prompt, in the order of their ids: which come first does not hang on the files' order."""
    return [prompt for _, prompt in sorted({prompt.prompt_id: prompt for prompt in prompts}.items())]


def document_sides(documents: Sequence[Document], validation_share: float) -> tuple[list[Document], list[Document]]:
    """Training and validation documents, by the hash of the text."""
    shares = Shares(evaluation=0.0, validation=validation_share)
    sides = [assign(document.text, shares) for document in documents]
    train = [document for document, side in zip(documents, sides, strict=True) if side != "validation"]
    return train, [document for document, side in zip(documents, sides, strict=True) if side == "validation"]


if __name__ == "__main__":
    run_stage("prepare_data", ARGUMENTS, main)
