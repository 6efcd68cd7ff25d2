"""Paraphrases of training prompts by a language model: what it is asked, and which of its texts become prompts.

A paraphrase is asked for directly, or by back-translation (Sennrich et al. 2016, arXiv 1511.06709; for augmentation Yu
et al. 2018, arXiv 1804.09541): into another language, and from there back. Different from there, both directions are
one instruction-tuned model, which is sampled (Edunov et al. 2018, arXiv 1808.09381). Only a prompt's last user message
changes. A text that is no new prompt is dropped by a named rule. Needs no torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from data_schemas.rows import Message, Prompt
from engine.curation.contamination import LLAMA3, NEAR_PROMPT, TULU3, EvaluationIndex
from engine.curation.content import Content, Finding, content_of
from engine.curation.duplicates import content_key

Operation = Literal["paraphrase", "back_translation"]
PARAPHRASE: Operation = "paraphrase"
BACK_TRANSLATION: Operation = "back_translation"
FENCE = "==="  # the line before and after the text in a question
_TASK = "It may be a question or a task: do not answer it. Write only the new text."
_KEPT = "Keep its meaning, and all names, numbers, quotations, code and requirements."


@dataclass(frozen=True)
class Draft:
    """A text that a model wrote for a prompt. `problem` says why it cannot be used: unfinished, refused, rejected."""

    prompt: Prompt  # the original
    operation: Operation
    text: str
    problem: str = ""
    language: str = ""  # of a back-translation: the one between


@dataclass(frozen=True)
class NewPrompt:
    """A prompt whose last user message was replaced by a draft's text."""

    prompt: Prompt
    draft: Draft


def paraphrase_question(text: str) -> str:
    """What a model is asked for a paraphrase of a text."""
    return _fenced(f"Write the text between the lines {FENCE} again in other words, in its language. {_KEPT}", text)


def translation_question(text: str, language: str) -> str:
    """What a model is asked for a translation of a text into a language, which is named as in "German"."""
    return _fenced(f"Translate the text between the lines {FENCE} into {language}. {_KEPT}", text)


def _fenced(task: str, text: str) -> str:
    return f"{task} {_TASK}\n{FENCE}\n{text}\n{FENCE}"


def without_fence(text: str) -> str:
    """A model's answer without white space and lines FENCE around it, which some models repeat."""
    lines = text.strip().splitlines()
    while lines and lines[0].strip() in ("", FENCE):
        lines = lines[1:]
    while lines and lines[-1].strip() in ("", FENCE):
        lines = lines[:-1]
    return "\n".join(lines).strip()


def last_user_text(prompt: Prompt) -> str:
    """The text of the prompt's last user message."""
    return prompt.prompt[_place(prompt)].content


def with_user_text(prompt: Prompt, text: str) -> Prompt:
    """The prompt with another text as its last user message: another prompt of the same group, tag and tools."""
    messages = list(prompt.prompt)
    changed = messages[_place(prompt)].model_dump(exclude_unset=True) | {"content": text}
    messages[_place(prompt)] = Message.model_validate(changed)
    fields = {name: getattr(prompt, name) for name in prompt.model_fields_set if name != "prompt_id"}
    return Prompt.model_validate(fields | {"prompt": messages})


def _place(prompt: Prompt) -> int:
    return max(place for place, message in enumerate(prompt.prompt) if message.role == "user")


def choose(
    drafts: Iterable[Draft], prompts: Sequence[Prompt], evaluation: EvaluationIndex | None
) -> tuple[list[NewPrompt], list[tuple[Draft, Finding]]]:
    """The drafts that are new prompts, and those that are dropped, each by one rule; both in order.

    The rules, in their order: `unfinished`, `refused`, `rejected` (the draft's problem), `empty`, `unchanged` (the text
    of the original, whatever its case and punctuation), `duplicate` (another prompt, or an earlier draft), and the
    rules of contamination against `evaluation`.
    """
    known = {content_key(_content(prompt).prompt): prompt.prompt_id for prompt in prompts}
    kept: list[NewPrompt] = []
    dropped: list[tuple[Draft, Finding]] = []
    for draft in drafts:
        if draft.problem or not draft.text:
            dropped.append((draft, Finding(draft.problem or "empty", draft.text[:80])))
            continue
        prompt = with_user_text(draft.prompt, draft.text)
        content = _content(prompt)
        key = content_key(content.prompt)
        finding = _repetition(key, draft, known) or (_leak(content, evaluation) if evaluation else None)
        if finding:
            dropped.append((draft, finding))
        else:
            known[key] = prompt.prompt_id
            kept.append(NewPrompt(prompt, draft))
    return kept, dropped


def _content(prompt: Prompt) -> Content:
    return content_of("prompts", prompt.model_dump())


def _repetition(key: bytes, draft: Draft, known: dict[bytes, str]) -> Finding | None:
    if key == content_key(_content(draft.prompt).prompt):
        return Finding("unchanged", 1.0, partner=draft.prompt.prompt_id)
    return Finding("duplicate", 1.0, partner=known[key]) if key in known else None


def _leak(content: Content, evaluation: EvaluationIndex) -> Finding | None:
    rules = evaluation.rules()
    found = (rules[name](content) for name in (LLAMA3, NEAR_PROMPT, TULU3))
    return next(filter(None, found), None)
