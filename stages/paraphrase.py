"""Paraphrase: adds prompts that a language model writes for the training prompts, also by back-translation.

Augmentation for small sets, beside the operations on words (EDA, arXiv 1901.11196) that `curate` has without a model. A
paraphrase has the group, the tag and the reference of its prompt, and is linked to it in `variants.jsonl`. Answers and
held-out prompts are never changed, and no paraphrase that repeats one of the latter is kept.

    accelerate launch stages/paraphrase.py --config configs/stages/paraphrase.yaml
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_schemas.files import write_atomically
from data_schemas.reading import read_prompts, write_rows
from data_schemas.rows import Prompt
from data_schemas.sources import SourceValue
from data_schemas.stage_keys import StageTraits
from data_schemas.text import is_unicode
from engine.curation.content import Finding
from engine.curation.paraphrasing import (
    BACK_TRANSLATION,
    PARAPHRASE,
    Draft,
    NewPrompt,
    choose,
    last_user_text,
    paraphrase_question,
    translation_question,
    without_fence,
)
from engine.curation.prompt_variants import read_links
from engine.curation.row_rules import evaluation_index
from engine.endpoints.paid_answers import endpoint_metrics
from engine.runtime.arguments import GenerationArguments
from engine.runtime.keys import key_field, required_field
from engine.runtime.stage import Stage, StageResult, format_counts, run_stage
from engine.sampling.answers import Answer, Policy, SampleRequest, SamplingSettings
from engine.sampling.sampler import engine_of

RECIPE_VERSION = 1
EXAMPLE = "accelerate launch stages/paraphrase.py --config configs/stages/paraphrase.yaml --num_paraphrases 2"
TRAITS = StageTraits(
    purpose="Adds paraphrases of the training prompts that a language model writes, also by back-translation.",
    position=6,
    kind="generates",
    runs="once",
    headlines=["variants"],
)
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ParaphraseArguments(GenerationArguments):
    """Which prompts are paraphrased, by which model, and how often."""

    prompts: list[str] = required_field("files of training prompts", role="rows")
    paraphrase_llm: str | None = key_field(
        None,
        "the language model that paraphrases and translates: a folder, or the name of an endpoint (required)",
        role="model",
    )
    num_paraphrases: int = key_field(1, "paraphrases of each prompt; 0: none", minimum=0, maximum=100)
    back_translations: list[str] | None = key_field(
        None, "languages by name, as in [German, Korean]: each prompt is also translated into each, and back"
    )
    prompt_language: str = key_field("English", "the language of the prompts, into which back-translations return")
    earlier_variants: list[str] | None = key_field(
        None, "variants.jsonl of curate: prompts that are variants already, and are not paraphrased", role="rows"
    )
    held_out_prompts: list[str] | None = key_field(
        None, "prompts for evaluation and validation, which no paraphrase may repeat", role="rows"
    )
    decontaminate_against: list[SourceValue] | None = key_field(
        None, "more evaluation sets: files of prompts in any format", role="rows"
    )


ARGUMENTS = (ParaphraseArguments,)


@dataclass(frozen=True)
class Task:
    """What a model is asked to write for a prompt: its k-th paraphrase, or its translation into a language."""

    prompt: Prompt
    k: int = 0
    language: str = ""  # empty: a paraphrase


def tasks_of(prompts: Sequence[Prompt], arguments: ParaphraseArguments) -> list[Task]:
    """All tasks: for each prompt its paraphrases, then its translations."""
    return [
        task
        for prompt in prompts
        for task in (
            *(Task(prompt, k=k) for k in range(arguments.num_paraphrases)),
            *(Task(prompt, language=language) for language in arguments.back_translations or []),
        )
    ]


class Writer:
    """The language model that writes paraphrases and translations."""

    def __init__(self, stage: Stage, arguments: ParaphraseArguments) -> None:
        self.stage = stage
        assert arguments.paraphrase_llm, "key_rules.py checks it"
        self.policy = Policy.of(arguments.paraphrase_llm, arguments.endpoints)
        self.settings = SamplingSettings.of(arguments, purpose="paraphrase")

    def __call__(self, name: str, questions: Sequence[tuple[str, int]]) -> list[Answer]:
        """The k-th answer to each (question, k), in order. `name` is that of the journal."""
        requests = [SampleRequest(question_prompt(question), k) for question, k in questions]
        return engine_of(self.stage, name, self.policy, self.settings).sample(requests) if requests else []


def question_prompt(question: str) -> Prompt:
    """The prompt that asks a model a question."""
    return Prompt.model_validate({"prompt": [{"role": "user", "content": question}]})


def write_drafts(tasks: Sequence[Task], write: Writer, prompt_language: str) -> list[Draft]:
    """The draft of each task, in order. Translations that cannot be used are not translated back."""
    answers = write("drafts", [(_question(task), task.k) for task in tasks])
    drafts = [_draft(task, answer) for task, answer in zip(tasks, answers, strict=True)]
    places = [place for place, draft in enumerate(drafts) if draft.language and draft.text and not draft.problem]
    back = write("back", [(translation_question(drafts[place].text, prompt_language), 0) for place in places])
    returned = {place: _draft(tasks[place], answer) for place, answer in zip(places, back, strict=True)}
    return [returned.get(place, draft) for place, draft in enumerate(drafts)]


def _question(task: Task) -> str:
    text = last_user_text(task.prompt)
    return translation_question(text, task.language) if task.language else paraphrase_question(text)


def _draft(task: Task, answer: Answer) -> Draft:
    operation = BACK_TRANSLATION if task.language else PARAPHRASE
    text = without_fence(answer.text)
    problem = answer.problem or ("" if answer.ended else "unfinished")
    if not problem and not is_unicode(text):
        problem = "not_unicode"
    return Draft(task.prompt, operation, text, problem, task.language)


def _links(kept: Sequence[NewPrompt]) -> Iterator[dict[str, object]]:
    for new in kept:
        through = {"language": new.draft.language} if new.draft.language else {}
        yield {
            "prompt_id": new.prompt.prompt_id,
            "from": new.draft.prompt.prompt_id,
            "operation": new.draft.operation,
            **through,
            "text": new.draft.text,
        }


def _dropped_rows(dropped: Sequence[tuple[Draft, Finding]]) -> Iterator[dict[str, object]]:
    for draft, finding in dropped:
        yield {
            "row_id": draft.prompt.prompt_id,
            "kind": "prompts",
            "rule": finding.rule,
            "value": finding.value,
            "threshold": finding.threshold,
            "partner": finding.partner,
            "row": {"operation": draft.operation, "language": draft.language, "text": draft.text},
        }


def _write_lines(path: Path, rows: Iterator[dict[str, object]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(path, "".join(lines).encode("utf-8", "backslashreplace").decode())


def warnings_of(num_drafts: int, num_kept: int, counts: Mapping[str, int]) -> list[str]:
    """A sentence where no draft is kept, or most are unfinished."""
    if num_drafts and not num_kept:
        return [f"no paraphrase of {num_drafts} is kept ({format_counts(counts)}); see dropped.jsonl"]
    if counts.get("unfinished", 0) > num_drafts / 2:
        return [f"{counts['unfinished']} of {num_drafts} paraphrases are unfinished; raise max_new_tokens"]
    return []


def main(stage: Stage, arguments: ParaphraseArguments) -> StageResult:
    prompts = read_prompts(arguments.prompts).rows
    evaluation = evaluation_index([*(arguments.held_out_prompts or []), *(arguments.decontaminate_against or [])])
    varied = read_links(arguments.earlier_variants or [])
    tasks = tasks_of([prompt for prompt in prompts if prompt.prompt_id not in varied], arguments)
    log.info("%d prompts, %d texts to write for them", len(prompts), len(tasks))
    drafts = write_drafts(tasks, Writer(stage, arguments), arguments.prompt_language)
    kept, dropped = choose(drafts, prompts, evaluation)
    if stage.is_main:
        write_rows(stage.folder / "prompts.train.jsonl", [*prompts, *(new.prompt for new in kept)])
        _write_lines(stage.folder / "variants.jsonl", _links(kept))
        _write_lines(stage.folder / "dropped.jsonl", _dropped_rows(dropped))
    counts = Counter(finding.rule for _, finding in dropped)
    warnings = warnings_of(len(drafts), len(kept), counts)
    for warning in warnings:
        log.warning("%s", warning)
    log.info("%d paraphrases kept, dropped: %s", len(kept), format_counts(counts) or "none")
    metrics: dict[str, float | int | str | None] = {
        "prompts": len(prompts),
        "variants": len(kept),
        "prompts.train": len(prompts) + len(kept),
        **{f"dropped_{rule}": count for rule, count in counts.items()},
    }
    return StageResult(
        outputs={"prompts.train": "prompts.train.jsonl", "variants": "variants.jsonl", "dropped": "dropped.jsonl"},
        metrics=metrics | endpoint_metrics(stage.folder, arguments.endpoints),
        warnings=warnings,
    )


if __name__ == "__main__":
    run_stage("paraphrase", ARGUMENTS, main)
