"""The rows of a run on their sides: training, validation, judge and evaluation. Needs no torch.

No side contains a turn of an evaluation dialog: documents that contain an evaluation prompt are left out, and so are
dialogs of another group that ask one in a later turn. Rows stay on the disk (row_store.py) and pass one by one.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data_schemas.errors import DataError
from data_schemas.reading import BadRow
from data_schemas.rows import Conversation, Document, PreferencePair, Prompt, tag_of
from data_schemas.splitting import Place, Shares, assign, becomes_instruction
from engine.curation.contamination import asked_later, contained, distinctive_texts, most_frequent_causes
from engine.curation.grouping import (
    DialogType,
    describe_large_group,
    messages_of,
    systems_tell_apart,
    with_system_group,
)
from engine.curation.origins import FileNumbers
from engine.curation.row_store import RowStore, RowView
from engine.runtime import progress

log = logging.getLogger(__name__)
DialogView = RowView[Conversation] | RowView[PreferencePair] | RowView[Prompt]
AnyView = RowView[Document] | DialogView
Files = Mapping[str, AnyView | Sequence[Prompt]]  # by name without ending


@dataclass(frozen=True)
class SourceRows:
    """The rows of each kind, and those that were set aside as bad."""

    folder: Path  # where rows are kept while the stage runs
    documents: RowView[Document]
    conversations: RowView[Conversation]
    pairs: RowView[PreferencePair]
    prompts: RowView[Prompt]
    evaluation_prompts: RowView[Prompt]
    bad: Sequence[BadRow]
    notes: list[str]  # on the files: the columns that nothing reads, one line for each file
    warnings: list[str]  # what a user should know of the rows, one line each: those that are left out, for one
    files: FileNumbers = field(default_factory=FileNumbers)  # that the origins of rows name

    @property
    def dialogs(self) -> list[DialogView]:
        """The rows of all kinds but documents."""
        return [self.conversations, self.pairs, self.prompts, self.evaluation_prompts]


@dataclass(frozen=True)
class Split:
    """The side of each dialog: training, validation, judge or evaluation, by the hash of its group."""

    shares: Shares
    evaluation_groups: frozenset[str]  # of the evaluation prompts that were given

    @classmethod
    def of(cls, given: RowView[Prompt], *, evaluation: float, judge: float, validation: float) -> "Split":
        """The split by these shares of all groups. Where evaluation prompts are given, no others are held out by hash.

        Raises ConfigError where the shares leave nothing to train on.
        """
        shares = Shares(0.0 if len(given) else evaluation, judge, validation)
        return cls(shares, frozenset(given.groups()))

    def sides(self, rows: RowView[DialogType]) -> dict[Place, RowView[DialogType]]:
        """The rows on each side."""
        found = (assign(group, self.shares, evaluation_groups=self.evaluation_groups) for group in rows.groups())
        places = np.fromiter(map(SIDES.index, found), np.int8)
        return {side: rows.at(places == number) for number, side in enumerate(SIDES)}


SIDES: tuple[Place, ...] = ("evaluation", "judge", "judge_validation", "validation", "train")


def tell_apart(rows: SourceRows) -> SourceRows:
    """The rows with groups by which they can be split: where all dialogs have the same first user message, the system
    message counts too. A warning says where one group is still large."""
    groups = itertools.chain(*(kind.groups() for kind in rows.dialogs))
    is_one_group = all(group == first for first in itertools.islice(groups, 1) for group in groups)
    if is_one_group and systems_tell_apart(itertools.chain(*(kind.once() for kind in rows.dialogs))):
        rows = replace(
            rows,
            conversations=_with_system_groups(rows, rows.conversations, Conversation),
            pairs=_with_system_groups(rows, rows.pairs, PreferencePair),
            prompts=_with_system_groups(rows, rows.prompts, Prompt),
            evaluation_prompts=_with_system_groups(rows, rows.evaluation_prompts, Prompt),
        )
    warning = large_group(rows.dialogs)
    if warning:
        log.warning("%s", warning)
    return replace(rows, warnings=[*rows.warnings, *filter(None, [warning])])


def large_group(kinds: Sequence[DialogView]) -> str:
    """As `describe_large_group`, of all rows of these kinds, with copies."""
    counts = itertools.chain(*(zip(kind.groups(), kind.copies_N.tolist(), strict=True) for kind in kinds))
    groups = (group for group, copies in counts for _ in range(copies))
    return describe_large_group(groups, lambda: itertools.chain(*(kind.once() for kind in kinds)))


def _with_system_groups(
    rows: SourceRows, of_kind: RowView[DialogType], row_type: type[DialogType]
) -> RowView[DialogType]:
    store = RowStore(rows.folder, row_type)
    for row, copies, origin in of_kind.counts():
        store.add(with_system_group(row), copies, origin)
    return store.view()


def move_chosen_answers(rows: SourceRows, share: float) -> SourceRows:
    """Turns the pairs of a share of the groups into conversations with the chosen answer; adds prompts where there are
    none."""
    conversations, pairs = rows.conversations, rows.pairs
    if share and len(pairs):
        is_moved = np.array([becomes_instruction(group, share) for group in pairs.groups()], dtype=bool)
        store = RowStore(rows.folder, Conversation)
        for row, copies, origin in conversations.counts():
            store.add(row, copies, origin)
        for pair, copies, origin in pairs.at(is_moved).counts():
            store.add(_chosen_answer(pair), copies, origin)
        conversations, pairs = store.view(), pairs.at(~is_moved)
    prompts = rows.prompts if len(rows.prompts) else prompts_of(rows.folder, conversations, pairs)
    return replace(rows, conversations=conversations, pairs=pairs, prompts=prompts)


def _chosen_answer(pair: PreferencePair) -> Conversation:
    return Conversation(
        messages=[*pair.prompt, *pair.chosen],
        tools=pair.tools,
        group_id=pair.group_id,
        source="preferences.chosen",
        **tag_of(pair),
    )


def hold_out(rows: SourceRows, split: Split, num_prompts: int) -> list[Prompt]:
    """The evaluation prompts: those that were given, else the prompts on the evaluation side of the split."""
    given = rows.evaluation_prompts
    found = given if len(given) else split.sides(rows.prompts)["evaluation"]
    return list(unique(found).first(num_prompts))


@progress.activity("looking for evaluation prompts in the rows")
def decontaminate(rows: SourceRows, evaluation: Sequence[Prompt]) -> tuple[SourceRows, int, int]:
    """The rows without those that contain an evaluation prompt, and the numbers of documents and dialogs left out."""
    texts = distinctive_texts(evaluation)
    has_prompt = np.array([bool(found) for found in contained(rows.documents.once(), evaluation)], dtype=bool)
    documents, bad_documents = rows.documents.at(~has_prompt), rows.documents.at(has_prompt)
    conversations, bad_conversations = _without_later(rows.conversations, texts)
    pairs, bad_pairs = _without_later(rows.pairs, texts)
    prompts, bad_prompts = _without_later(rows.prompts, texts)
    warnings = list(rows.warnings)
    num_dialogs = len(bad_conversations) + len(bad_pairs)
    of_dialogs = f"{num_dialogs} of {len(rows.conversations) + len(rows.pairs)} dialogs that ask an evaluation prompt"
    of_documents = f"{len(bad_documents)} of {len(rows.documents)} documents that contain an evaluation prompt"
    left_out = [f"{of_dialogs} in a later turn"] * bool(num_dialogs) + [of_documents] * bool(len(bad_documents))
    if left_out:
        dialogs = itertools.chain(bad_conversations, bad_pairs)
        causes = most_frequent_causes(evaluation, dialogs=dialogs, documents=bad_documents)
        warnings.append(f"left out: {', '.join(left_out)}; {causes}")
        log.warning("%s", warnings[-1])
    rows = replace(
        rows, documents=documents, conversations=conversations, pairs=pairs, prompts=prompts, warnings=warnings
    )
    return rows, len(bad_documents), num_dialogs + len(bad_prompts)


def _without_later(rows: RowView[DialogType], texts: set[str]) -> tuple[RowView[DialogType], RowView[DialogType]]:
    """The dialogs that ask none of the texts in a user turn after the first, and the others. Dialogs that begin with
    one are on the evaluation side of the split already."""
    asks = rows.has_later_turns_N()
    asks[asks] = rows.at(asks).mask(lambda row: bool(asked_later(messages_of(row), texts)))
    return rows.at(~asks), rows.at(asks)


def check_sides(rows: SourceRows, files: Mapping[str, Sized], *, needs_prompts: bool) -> None:
    """Raises DataError where every row is set aside, or where one first user message leaves a side without rows."""
    if rows.bad and not len(rows.documents) and not any(map(len, rows.dialogs)):
        first = rows.bad[0]
        raise DataError(f"all {len(rows.bad)} rows are set aside; the first: {first.file}:{first.line}: {first.reason}")
    train = ("instructions.train", "preferences.train", "prompts.train", "documents.train")
    has_prompts = bool(files["evaluation_prompts"]) or not needs_prompts
    if has_prompts and any(len(files[name]) for name in train):
        return

    # A prompt of a dialog is no dialog more.
    is_given = len(rows.conversations) or len(rows.pairs)
    described = large_group([rows.conversations, rows.pairs] if is_given else rows.dialogs)
    if described.startswith("all "):
        raise DataError(
            f"{described}, and the other sides have no row; expected rows with different first user messages (or "
            "different system messages, if only these differ)"
        )


def split_rows(rows: SourceRows, evaluation: Sequence[Prompt], split: Split, validation_share: float) -> Files:
    """The rows of every file that the stage writes, by the file's name without its ending.

    Copies of a row, from a source with a share above 1, are trained on and not held out.
    """
    documents, is_held_out = _split_documents(rows.documents, validation_share)
    conversations, pairs, prompts = split.sides(rows.conversations), split.sides(rows.pairs), split.sides(rows.prompts)
    return {
        "documents.train": documents.at(~is_held_out),
        "documents.validation": documents.at(is_held_out).single(),
        "instructions.train": conversations["train"],
        "instructions.validation": conversations["validation"].single(),
        "preferences.train": pairs["train"],
        "preferences.validation": pairs["validation"],
        "preferences.judge": pairs["judge"],
        "preferences.judge_validation": pairs["judge_validation"],
        "prompts.train": unique(prompts["train"]),
        "prompts.validation": unique(prompts["validation"]),
        "evaluation_prompts": evaluation,
    }


def num_repeated(documents: RowView[Document]) -> int:
    """How many documents have the text of another one before them; `split_rows` leaves them out."""
    return len(documents.keys_N) - len(np.unique(documents.keys_N))


def _split_documents(documents: RowView[Document], validation_share: float) -> tuple[RowView[Document], np.ndarray]:
    """The different documents, in their order, and whether each is held out. They are split by their texts, not by a
    group; a text that occurs more than once is written once, as often as its last occurrence counts."""
    keys = documents.keys_N
    _, firsts, of_key = np.unique(keys, return_index=True, return_inverse=True)
    lasts = len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]
    firsts.sort()
    different = documents.at(firsts).counted(documents.copies_N[lasts[of_key[firsts]]])
    shares = Shares(evaluation=0.0, validation=validation_share)
    return different, different.mask(lambda document: assign(document.text, shares) == "validation")


def prompts_of(folder: Path, conversations: RowView[Conversation], pairs: RowView[PreferencePair]) -> RowView[Prompt]:
    """The prompts of the other rows: that of each pair, and each conversation up to its last answer."""
    store = RowStore(folder, Prompt)
    for pair, copies, origin in pairs.counts():
        store.add(Prompt(prompt=pair.prompt, tools=pair.tools, group_id=pair.group_id, **tag_of(pair)), copies, origin)
    for row, copies, origin in conversations.counts():
        before = list(row.messages[:-1])
        if before and before[-1].role in ("user", "tool"):
            prompt = Prompt(prompt=before, tools=row.tools, group_id=row.group_id, **tag_of(row))
            store.add(prompt, copies, origin)
    return store.view()


def unique(prompts: RowView[Prompt]) -> RowView[Prompt]:
    """Each prompt once, in the order of the ids, so that the first prompts do not depend on the order of the files."""
    keys = prompts.keys_N
    return prompts.at(len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]).single()
