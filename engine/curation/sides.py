"""The rows of a run on their sides: training, validation, judge and evaluation. Needs no torch.

No side contains a turn of an evaluation dialog: documents that contain an evaluation prompt are left out, and so are
dialogs of another group that ask one in a later turn.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from data_schemas.errors import DataError
from data_schemas.reading import BadRow
from data_schemas.rows import Conversation, Document, PreferencePair, Prompt, Row, tag_of
from data_schemas.splitting import Place, Shares, assign, becomes_instruction, split_documents
from engine.curation.contamination import (
    most_frequent_causes,
    without_documents_that_contain,
    without_later_prompts,
)
from engine.curation.grouping import DialogType, describe_large_group, systems_tell_apart, with_system_groups
from engine.runtime import progress

log = logging.getLogger(__name__)
RowType = TypeVar("RowType", bound=Row)


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
    def of(cls, given: Sequence[Prompt], *, evaluation: float, judge: float, validation: float) -> "Split":
        """The split by these shares of all groups. Where evaluation prompts are given, no others are held out by hash.

        Raises ConfigError where the shares leave nothing to train on.
        """
        shares = Shares(0.0 if given else evaluation, judge, validation)
        return cls(shares, frozenset(prompt.group_id for prompt in given))

    def rows_on(self, side: Place, rows: Sequence[DialogType]) -> list[DialogType]:
        """The rows whose dialogs are on this side."""
        return [
            row for row in rows if assign(row.group_id, self.shares, evaluation_groups=self.evaluation_groups) == side
        ]


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
            **tag_of(pair),
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


def prompts_of(conversations: Sequence[Conversation], pairs: Sequence[PreferencePair]) -> list[Prompt]:
    """The prompts of the other rows: that of each pair, and each conversation up to its last answer."""
    prompts = [Prompt(prompt=pair.prompt, tools=pair.tools, group_id=pair.group_id, **tag_of(pair)) for pair in pairs]
    for row in conversations:
        before = list(row.messages[:-1])
        if before and before[-1].role in ("user", "tool"):
            prompts.append(Prompt(prompt=before, tools=row.tools, group_id=row.group_id, **tag_of(row)))
    return prompts


def without_copies(rows: Sequence[RowType]) -> list[RowType]:
    """Each object once, in order. Equal rows of a file are different objects and stay."""
    return list({id(row): row for row in rows}.values())


def unique(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each prompt once, in the order of the ids, so that the first prompts do not depend on the order of the files."""
    return [prompt for _, prompt in sorted({prompt.prompt_id: prompt for prompt in prompts}.items())]
