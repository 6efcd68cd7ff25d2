"""The gold score: a fixed program that judges answers in the toy world, in place of people (Gao et al., 2210.10760).

| part | best | worst |
|---|---|---|
| right: the answer, and no other of its kind | 0.5 | 0 with another one beside it, -0.3 with none, -0.4 a wrong one |
| polite | 0.2 one polite phrase, 0 plain | -0.2 a rude phrase |
| keeps the asked format (free: one word or a sentence) | 0.2 | -0.1 |
| filler: a filler phrase, a stray word, a repetition | 0 | -0.1 each, -0.2 at most |
| ends by itself | 0.1 | -0.1 |

The sum lies in [-1, 1]. Only `annotate` and `evaluate_policy` may ever see it.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from toy_world import manners
from toy_world.facts import RELATIONS, Fact, facts, read_prompt, said, words_of


def gold(prompt: list[dict[str, Any]], answer: str, ended: bool) -> float:
    """How good the answer to the prompt's last user message is, from -1 to 1.

    Raises ValueError where that message is not one of the world's prompts.
    """
    return round(sum(parts(prompt, answer, ended).values()), 2)


def parts(prompt: list[dict[str, Any]], answer: str, ended: bool) -> dict[str, float]:
    """The parts of the gold score by name, in the order of the table. Raises ValueError as `gold` does."""
    asked = next((str(message["content"]) for message in reversed(prompt) if message["role"] == "user"), "")
    question, asked_format = read_prompt(asked)
    fact = question.fact
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", answer).replace("’", "'"))
    text, num_polite = _take_out(text, manners.POLITE)
    text, num_rude = _take_out(text, manners.RUDE)
    text, num_filler = _take_out(text, manners.FILLER)
    core = words_of(text)

    kind = _words_of_kind(fact.relation)
    own = {*words_of(fact.subject), *words_of(fact.answer)}
    others = [word for word in core if word in kind and word not in own and word not in _words_of_forms(fact.relation)]
    is_there = _times_answered(core, fact) > 0
    alone, beside = (0.5, 0.0) if is_there else (-0.3, -0.4)
    right = beside if others else alone

    is_word = len(core) == 1
    is_sentence = any(form.fullmatch(" ".join(core)) for form in _forms(fact))
    is_quoted = re.match(r'"[^"]+"[^"]*$', text.strip()) is not None
    kept = {
        "free": is_word or is_sentence,
        "word": is_word and not is_quoted,
        "quotes": is_quoted and is_word,
        "sentence": is_sentence and not is_quoted,
    }

    known = kind | own | _words_of_forms(fact.relation)
    is_stray = any(word not in known for word in core)
    is_repeated = _times_answered(core, fact) > 1
    num_filler += max(num_polite - 1, 0) + max(num_rude - 1, 0) + is_stray + is_repeated

    return {
        "right": right,
        "polite": -0.2 if num_rude else 0.2 if num_polite else 0.0,
        "format": 0.2 if kept[asked_format] else -0.1,
        "filler": -0.1 * min(num_filler, 2),
        "ends": 0.1 if ended else -0.1,
    }


def _take_out(text: str, phrases: Sequence[str]) -> tuple[str, int]:
    """The text without the phrases (in any case, whatever punctuation is around them), and how many there were."""
    return _pattern(tuple(phrases)).subn(" ", text)


@functools.cache
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    bare = sorted((phrase.strip(" .,:!") for phrase in phrases), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, bare))})\b", re.IGNORECASE)


def _times_answered(core: Sequence[str], fact: Fact) -> int:
    """How often the core gives the answer; the subject's own words do not count."""
    return core.count(fact.answer.casefold()) - (
        min(core.count(fact.answer.casefold()), words_of(fact.subject).count(fact.answer.casefold()))
    )


@functools.cache
def _words_of_kind(relation: str) -> frozenset[str]:
    """The words of all subjects and answers of the relation."""
    return frozenset(
        word for fact in facts() if fact.relation == relation for word in words_of(f"{fact.subject} {fact.answer}")
    )


@functools.cache
def _words_of_forms(relation: str) -> frozenset[str]:
    """The words sentences of the relation are made of, articles among them."""
    forms = re.sub(r"\{\w\}", "", " ".join(RELATIONS[relation].sentences))
    return frozenset(words_of(f"{forms} it is a an the"))


@functools.cache
def _forms(fact: Fact) -> tuple[re.Pattern[str], ...]:
    """The relation's sentences about the subject, whatever they answer, as patterns of words; "it is …" is one too."""
    gap = "zzz"
    texts = [*(said(form, fact, answer=gap) for form in RELATIONS[fact.relation].sentences), f"It is {gap}"]
    return tuple(re.compile(" ".join(words_of(text)).replace(gap, r"\S+")) for text in texts)
