"""Lets people compare answers: writes a page for each person, waits for their files, and reads them.

Every person gets a random order, and each answer is A or B by lot; both are recorded in the labels. With several people
a share of the rows goes to all of them, so that their agreement is known; the others are dealt out in turn. The step
stops as waiting until every row has its labels. The form of the files is in data_schemas/people.py.
"""

import json
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_schemas.errors import WaitingForPeople
from data_schemas.files import digest, write_atomically
from data_schemas.people import BATCH, FOLDER, Batch, Label, Shown, page_file, read_labels, work_of
from data_schemas.rows import Prompt, for_template
from engine.judging.people.page import page_of
from engine.runtime.arguments import GenerationArguments
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage

LABELS = "labels.jsonl"
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PeopleArguments(GenerationArguments):
    """Keys of the stages in which people may compare answers."""

    people: list[str] | None = key_field(
        None, "names of people who compare answers, each on a separate page", omitted_at_default=True
    )
    people_overlap: float = key_field(
        0.2, "share of the rows that all of the people get", minimum=0, maximum=1, omitted_at_default=True
    )
    people_budget: int | None = key_field(
        None,
        "comparisons that go to people after a model has judged; null: people judge all",
        minimum=1,
        maximum=10**6,
        omitted_at_default=True,
    )


@dataclass(frozen=True)
class PeopleRow:
    """Two answers to one prompt that people compare."""

    prompt: Prompt
    one: str
    other: str

    @property
    def id(self) -> str:
        """16 hex digits of the hash of the prompt and the answers."""
        return digest([self.prompt.prompt_id, self.one, self.other])[:16]


# Row -> the labels that it has, by the name of the person.
Labels = Mapping[str, Mapping[str, Label]]


def ask_people(
    stage: Stage, rows: Sequence[PeopleRow], people: Sequence[str], *, overlap: float, seed: int, rubric: str = ""
) -> Labels:
    """The labels of every row. Raises WaitingForPeople until all are there, and DataError for an unusable file."""
    folder = stage.folder / FOLDER
    by_id = {row.id: row for row in rows}
    dealt = deal(sorted(by_id), people, overlap=overlap, seed=seed)
    run, step = str(stage.values.get("run_group") or ""), str(stage.values.get("step") or stage.name)
    content = {name: [(one.row, one.first) for one in shown] for name, shown in dealt.items()}
    batch = Batch(run=run, step=step, batch=digest([run, step, rubric, content])[:16], people=dealt)
    if stage.is_main:
        _write_pages(stage, batch, by_id, rubric)
    labels = read_labels(folder, batch)
    work = work_of(folder, batch, labels)
    if not all(one.is_done for one in work):
        done = ", ".join(f"{one.name} {one.num_done} of {one.num_rows}" for one in work)
        raise WaitingForPeople(
            f"waiting for people ({done} done): their pages are {folder}/*.html; put the files that they save into "
            f"{folder}, and run the same command again"
        )
    by_row: dict[str, dict[str, Label]] = {row: {} for row in by_id}
    for name, own in labels.items():
        for label in own:
            by_row[label.row][name] = label
    return by_row


def deal(rows: Sequence[str], people: Sequence[str], *, overlap: float, seed: int) -> dict[str, list[Shown]]:
    """The rows of each person in a random order, with the answer that is shown first."""
    mixed = list(rows)
    random.Random(f"{seed}/people").shuffle(mixed)
    num_common = math.ceil(overlap * len(mixed)) if len(people) > 1 else 0
    dealt: dict[str, list[Shown]] = {}
    for place, name in enumerate(people):
        draw = random.Random(f"{seed}/people/{name}")
        own = mixed[:num_common] + mixed[num_common + place :: len(people)]
        draw.shuffle(own)
        dealt[name] = [Shown(row=row, first=draw.choice(("one", "other"))) for row in own]
    return dealt


def _write_pages(stage: Stage, batch: Batch, rows: Mapping[str, PeopleRow], rubric: str) -> None:
    """Writes the pages and then `batch.json`; nothing where they are there already."""
    folder = stage.folder / FOLDER
    folder.mkdir(exist_ok=True)
    if Batch.read(folder) == batch and all(page_file(folder, name).exists() for name in batch.people):
        return
    (folder / BATCH).unlink(missing_ok=True)
    for name, shown in batch.people.items():
        listed = [_shown_row(rows[one.row], one) for one in shown]
        write_atomically(page_file(folder, name), page_of(batch, name, listed, rubric))
        log.info("%s: %d rows", page_file(folder, name), len(listed))
    batch.write(folder)


def _shown_row(row: PeopleRow, shown: Shown) -> dict[str, object]:
    """A row as the page shows it. As an LLM judge, a person does not see the system message."""
    answers = [row.one, row.other] if shown.first == "one" else [row.other, row.one]
    turns = [
        {"role": str(turn["role"]), "content": str(turn.get("content", ""))}
        for turn in for_template(row.prompt.prompt)
        if turn["role"] != "system"
    ]
    return {"row": shown.row, "first": shown.first, "prompt": turns, "answers": answers}


def write_labels(stage: Stage, labels: Labels) -> dict[str, str]:
    """Writes what people said, one line for each label; returns the output, name -> file."""
    if not labels:
        return {}
    if stage.is_main:
        lines = [
            json.dumps({"person": name} | label.model_dump(exclude_none=True), ensure_ascii=False)
            for row in labels.values()
            for name, label in row.items()
        ]
        write_atomically(stage.folder / LABELS, "".join(f"{line}\n" for line in lines))
    return {"labels": LABELS}
