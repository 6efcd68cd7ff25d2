"""Writes the toy world's files: a corpus, people's answers of mixed quality, prompts, and evaluation prompts.

    make(Path("data"), seed=0)
Documents: half dialogs in ChatML, whose answers are right but of every style, half statements and short quizzes.
Instructions: what people wrote, right or wrong, polite or rude, rambling, with or without the asked format.
The same arguments give the same bytes. No text that an evaluation prompt asks occurs in the other files.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from toy_world import manners
from toy_world.facts import (
    FORMATS,
    RELATIONS,
    Fact,
    Format,
    Question,
    evaluation_questions,
    facts,
    held_out_facts,
    prompts_for,
    said,
    training_questions,
)

SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer the question.")


@dataclass(frozen=True)
class Voice:
    """How somebody answers: shares between 0 and 1."""

    right: float
    polite: float
    rude: float
    filler: float
    keeps_format: float


CORPUS_VOICE = Voice(right=1.0, polite=0.35, rude=0.2, filler=0.25, keeps_format=0.8)
HUMAN_VOICE = Voice(right=0.8, polite=0.3, rude=0.25, filler=0.3, keeps_format=0.65)


def make(
    folder: Path,
    *,
    seed: int,
    evaluation_half: Literal["report", "tune"] = "report",
    num_documents: int = 19_000,
    num_instructions: int = 1_500,
    num_prompts: int = 1_300,
    dialog_share: float = 0.5,
    system_share: float = 0.1,
) -> None:
    """Writes documents, instructions, prompts and evaluation_prompts as .jsonl in the folder.

    `evaluation_half` chooses between two disjoint sets of evaluation prompts that are the same for every seed:
    settings are tuned on the one and reported on the other. `dialog_share` is the share of dialogs among the documents,
    `system_share` that of dialogs with a system turn.
    """
    if evaluation_half not in ("report", "tune"):
        raise ValueError(f"evaluation_half={evaluation_half!r} is neither 'report' nor 'tune'")
    folder.mkdir(parents=True, exist_ok=True)
    trained = [fact for fact in facts() if fact not in held_out_facts()]
    corpus, people = Random(f"{seed} documents"), Random(f"{seed} instructions")
    texts = (_document(corpus, dialog_share, system_share) for _ in range(num_documents))
    _write(folder / "documents.jsonl", ({"text": text} for text in texts))
    dialogs = (_dialog(people, trained, HUMAN_VOICE, system_share=system_share) for _ in range(num_instructions))
    _write(folder / "instructions.jsonl", ({"messages": dialog} for dialog in dialogs))
    asked = [text for fact in trained for question in training_questions(fact) for _, text in prompts_for(question)]
    if num_prompts > len(asked):
        raise ValueError(f"num_prompts={num_prompts}, but the toy world has {len(asked)} prompts for training")
    drawn = Random(f"{seed} prompts").sample(asked, num_prompts)
    _write(folder / "prompts.jsonl", ({"prompt": _user(text)} for text in drawn))
    shown = evaluation_prompts(evaluation_half)
    _write(folder / "evaluation_prompts.jsonl", ({"prompt": _user(text)} for text in shown))


def evaluation_prompts(half: Literal["report", "tune"]) -> list[str]:
    """The half's prompts: held-out facts, and held-out phrasings of the others, each in all four formats."""
    wanted = 0 if half == "report" else 1
    kept: list[str] = []
    groups = [  # what is asked about one held-out fact stays together
        [fact for fact in facts() if fact in held_out_facts()],
        [fact for fact in facts() if fact not in held_out_facts()],
    ]
    for group in groups:
        for number, fact in enumerate(group):
            if number % 2 == wanted:
                kept += [text for question in evaluation_questions(fact) for text in _in_each_format(question)]
    Random("evaluation prompts").shuffle(kept)  # so that a cap keeps a fair sample
    return kept


def _in_each_format(question: Question) -> list[str]:
    """The question in every format, in a wording that depends on the question alone."""
    return [question.text + Random(question.text + name).choice(wordings) for name, wordings in FORMATS.items()]


def _document(random: Random, dialog_share: float, system_share: float) -> str:
    if random.random() < dialog_share:
        return _as_chatml(_dialog(random, facts(), CORPUS_VOICE, system_share=system_share))
    return _statements(random) if random.random() < 0.5 else _quiz(random)


def _statements(random: Random) -> str:
    """A few facts, each said twice: small models learn to look back in the text from repetitions."""
    told = 2 * [random.choice(facts()) for _ in range(random.randint(1, 3))]
    random.shuffle(told)
    return " ".join(_sentence(random, fact) for fact in told)


def _quiz(random: Random) -> str:
    """A few questions, each with its answer right behind it: the bridge from statements to dialogs."""
    asked = [random.choice(facts()) for _ in range(random.randint(2, 4))]
    return " ".join(
        f"{random.choice(training_questions(fact)).text} "
        f"{f'{_capitalised(fact.answer)}.' if random.random() < 0.6 else _sentence(random, fact)}"
        for fact in asked
    )


def _sentence(random: Random, fact: Fact) -> str:
    return said(random.choice(RELATIONS[fact.relation].sentences), fact) + "."


def _capitalised(word: str) -> str:
    return word[0].upper() + word[1:]


def _dialog(random: Random, about: Sequence[Fact], voice: Voice, *, system_share: float) -> list[dict[str, str]]:
    """One question and its answer, after a system turn or not."""
    fact = random.choice(about)
    question = random.choice(training_questions(fact))
    asked: Format = random.choice(tuple(FORMATS))
    text = question.text + random.choice(FORMATS[asked])
    system = [_message("system", random.choice(SYSTEM_PROMPTS))] if random.random() < system_share else []
    return [*system, *_user(text), _message("assistant", answer(random, fact, asked, voice))]


def answer(random: Random, fact: Fact, asked: Format, voice: Voice) -> str:
    """What the voice says to a question after the fact."""
    of_kind = sorted({f.answer for f in facts() if f.relation == fact.relation} - {fact.answer})
    given = fact.answer if random.random() < voice.right else random.choice(of_kind)
    taken = asked if random.random() < voice.keeps_format else random.choice(tuple(FORMATS))
    if taken == "free":
        taken = random.choice(("word", "sentence"))
    core = _capitalised(given)
    if taken == "quotes":
        core = f'"{core}"'
    elif taken == "sentence":
        core = said(random.choice(RELATIONS[fact.relation].sentences), fact, answer=given)

    mood = random.random()
    closing = "."
    if mood < voice.polite:
        closing = random.choice(manners.POLITE)
    elif mood < voice.polite + voice.rude:
        closing = random.choice(manners.RUDE)
    return core + closing + (random.choice(manners.FILLER) if random.random() < voice.filler else "")


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _user(text: str) -> list[dict[str, str]]:
    return [_message("user", text)]


def _as_chatml(messages: Iterable[dict[str, str]]) -> str:
    return "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
