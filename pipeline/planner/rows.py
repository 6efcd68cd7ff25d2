"""The rows that each step will read: those that exist, by their real lengths, and an assumption about those that don't.

Rows that a later step writes are assumed to be like the ones there are: its prompts are drawn from the run's prompts,
and its answers are as long as those of the data, up to `max_new_tokens`.
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_schemas.artifact import Artifact
from data_schemas.cost_request import RowFiles, RowKind, RowLengths, RowSample
from data_schemas.stage_keys import with_defaults
from pipeline.state.run import Run
from pipeline.steps import File, Output, Reference, Step

KINDS: dict[str, RowKind] = {
    "documents": "documents",
    "instructions": "conversations",
    "winners": "conversations",
    "preferences": "pairs",
    "pairs": "pairs",
    "prompts": "prompts",
    "evaluation_prompts": "prompts",
}
MAX_SAMPLES = 500  # of rows that are assumed
WITHOUT_DATA = 64  # tokens of a prompt, where no row shows its length
TASK_FILES = ("ifeval", "gsm8k", "function_calls")  # choices are compared, which takes next to no time
TOP_QUARTILE = 0.25  # share of the winners that keep_by: top_quartile keeps


@dataclass(frozen=True)
class Rows:
    """Rows of one kind, or of several files of one kind."""

    count: float
    samples: Sequence[RowSample]
    is_assumed: bool = False  # they do not exist yet

    def mean(self, values: Sequence[float]) -> float:
        return sum(values) / len(values) if values else 0.0


def tokens_of(row: RowSample) -> int:
    """Tokens of a packed row, in which the answers share their prompt."""
    return row["shared"] + sum(row["branches"])


def longest(row: RowSample) -> int:
    return row["shared"] + max(row["branches"], default=0)


def existing_files(run: Run) -> dict[str, RowFiles]:
    """`step/output` -> the file of every output of rows that exists."""
    found: dict[str, RowFiles] = {}
    for step in run.steps:
        folder = run.folder(step.name)
        record = Artifact.read(folder) if folder else None
        if folder is None or record is None:
            continue
        for name, file in record.outputs.items():
            kind = KINDS.get(name.partition(".")[0])
            if kind and file.endswith(".jsonl"):
                found[f"{step.name}/{name}"] = {"kind": kind, "files": [str(folder / file)]}
    return found


class RowsOfRun:
    """The rows of every output of a plan."""

    def __init__(self, run: Run, lengths: Mapping[str, RowLengths]) -> None:
        self.steps = {step.name: step for step in run.steps}
        self.known = {name: Rows(found["count"], found["samples"]) for name, found in lengths.items()}
        self.finished = {name.partition("/")[0] for name in lengths}

    def of(self, references: Sequence[Reference], shares: Sequence[float] | None = None) -> Rows:
        """The rows of several outputs together; `shares` are kept of each."""
        parts = [self._of_output(item) for item in references if isinstance(item, Output)]
        weights = list(shares or ()) or [1.0] * len(parts)
        parts = [
            replace(part, count=part.count * share) for part, share in zip(parts, weights, strict=False) if part.count
        ]
        return _joined(parts)

    def _of_output(self, output: Output) -> Rows:
        known = self.known.get(f"{output.step}/{output.name}")
        if known is not None or output.step in self.finished:
            return known or Rows(0, [])
        step, (name, _, side) = self.steps[output.step], output.name.partition(".")
        if earlier := self._earlier(step, output.name, side):
            return earlier
        if name == "pairs" and (answers := with_defaults(step.stage, step.keys).get("num_answers")):
            return self._sampled(step, side, answers=answers)
        if name == "winners":
            return self._sampled(step, side, answers=1)
        read = step.inputs.get(name) or step.inputs.get("train_data") or []  # a step that keeps some of its rows
        rows = self.of(read)
        if step.stage == "paraphrase":
            keys = with_defaults(step.stage, step.keys)
            num_variants = keys["num_paraphrases"] + len(keys["back_translations"] or [])
            rows = replace(rows, count=rows.count * (1 + num_variants))
        return replace(rows, is_assumed=True)

    def _earlier(self, step: Step, name: str, side: str) -> Rows | None:
        """Rows like those that the newest finished step of the same stage wrote: as many for each prompt, as long."""
        alike = [
            other
            for other in self.steps.values()
            if other.stage == step.stage and f"{other.name}/{name}" in self.known and self.prompts(other, side).count
        ]
        if not alike:
            return None
        rows = self.known[f"{alike[-1].name}/{name}"]
        share = self.prompts(step, side).count / self.prompts(alike[-1], side).count
        return replace(rows, count=rows.count * share, is_assumed=True)

    def prompts(self, step: Step, side: str = "train") -> Rows:
        """The prompts that a step answers on one side: as many as it asks for, or all."""
        keys = with_defaults(step.stage, step.keys)
        if step.stage == "evaluate_tasks":
            return _questions(step) if side == "train" else Rows(0, [])
        references = step.inputs.get("prompts" if side == "train" else "validation_prompts", [])
        rows = self.of(references)
        asked = keys.get("num_prompts" if side == "train" else "num_validation_prompts")
        return replace(rows, count=min(asked, rows.count) if asked and rows.count else (asked or rows.count))

    def answer_lengths(self, longest_answer: int) -> list[int]:
        """Tokens of the answers in the data, at most `longest_answer`; half of that where there are none."""
        lengths = [
            length
            for name, rows in self.known.items()
            for row in rows.samples
            for length in _answers(name.partition("/")[2], row)
        ]
        return [min(length, longest_answer) for length in lengths] or [max(1, longest_answer // 2)]

    def _sampled(self, step: Step, side: str, *, answers: int) -> Rows:
        """Rows that a step will write: a prompt with so many answers; one answer is a dialog to train on."""
        keys = with_defaults(step.stage, step.keys)
        prompts = self.prompts(step, side)
        lengths = self.answer_lengths(keys["max_new_tokens"])
        draw = random.Random(0)
        prompt_tokens = [longest(row) for row in prompts.samples] or [WITHOUT_DATA]
        samples: list[RowSample] = []
        for _ in range(MAX_SAMPLES):
            shared, branches = draw.choice(prompt_tokens), draw.choices(lengths, k=answers)
            if answers == 1:
                samples.append({"shared": 0, "branches": [shared + branches[0]], "trained": branches[0]})
            else:
                kept = branches if keys.get("keep_rankings") else branches[:2]
                samples.append({"shared": shared, "branches": kept, "trained": sum(kept)})
        count = prompts.count * (keys.get("num_winners") or 1 if answers == 1 else 1)
        count *= TOP_QUARTILE if keys.get("keep_by") == "top_quartile" else 1
        return Rows(count, samples, is_assumed=True)


def _questions(step: Step) -> Rows:
    """The questions of the files of tasks, as many as their lines; their length is assumed."""
    most = step.keys.get("num_questions")
    counts = [
        sum(_lines(item.path) for item in items if isinstance(item, File))
        for key, items in step.inputs.items()
        if key in TASK_FILES
    ]
    count = sum(min(count, most) if most else count for count in counts)
    sample: RowSample = {"shared": 0, "branches": [WITHOUT_DATA], "trained": 0}
    return Rows(count, [sample], is_assumed=True)


def _lines(path: str) -> int:
    """The lines of a file that are not empty; 0 of one that cannot be read, which the stage reports."""
    try:
        with Path(path).open("rb") as file:
            return sum(bool(line.strip()) for line in file)
    except OSError:
        return 0


def _answers(name: str, row: RowSample) -> list[int]:
    kind = KINDS.get(name.partition(".")[0])
    if kind == "pairs":
        return row["branches"]
    return [row["trained"]] if kind == "conversations" and row["trained"] else []


def _joined(parts: Sequence[Rows]) -> Rows:
    """Several rows as one; each part has its share of the samples."""
    if len(parts) < 2:
        return parts[0] if parts else Rows(0, [])
    total = sum(part.count for part in parts)
    samples = list(
        itertools.chain.from_iterable(
            _resampled(part.samples, max(1, round(MAX_SAMPLES * part.count / total))) for part in parts
        )
    )
    return Rows(total, samples, any(part.is_assumed for part in parts))


def _resampled(samples: Sequence[RowSample], count: int) -> Iterator[RowSample]:
    for number in range(count if samples else 0):
        yield samples[number * len(samples) // count % len(samples)]


def heaviest_micro_batch(samples: Sequence[RowSample], *, size: int, batches: int) -> list[RowSample]:
    """The micro-batch with the most tokens of so many that are drawn at random, as an epoch draws them."""
    if not samples:
        return []
    draw = random.Random(0)
    drawn = (draw.choices(samples, k=size) for _ in range(max(1, min(batches, 1000))))
    return max(drawn, key=lambda rows: sum(map(tokens_of, rows)))
