"""Prompts whose answers a program can check, after IFEval (arXiv 2311.07911): a task and one or two constraints.

Seeded code makes the prompts; `score` reads the constraints back from a prompt's text and says what share of them an
answer keeps. Training and evaluation prompts ask about different things.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASKS = (
    "Describe {topic}.",
    "Explain to a child what {topic} is.",
    "Give one useful tip about {topic}.",
    "Write a short note about {topic}.",
    "Say why people like {topic}.",
    "Tell me something about {topic}.",
)
TOPICS = " ".join(
    """rain, bread, the moon, a bicycle, coffee, a library, winter, the sea, a garden, honey, a train, music, a
    mountain, soup, a clock, the desert, chess, a candle, a river, tea, a kite, an island, cheese, a mirror, a
    forest, salt, a violin, the market, a lighthouse, wool, a bridge, apples, a puppet, fog, a harbour, pepper, a
    carpet, a volcano, rice, a whistle, a lantern, glass, a beehive, silk, an orchard, a compass, thunder, a
    windmill, butter, a notebook""".split()
).split(", ")
HELD_OUT = 15  # topics that only evaluation asks about


@dataclass(frozen=True)
class Constraint:
    asked: str  # as a prompt says it; {} is its number or word
    kept: Callable[[str, str], bool]  # (the answer, the number or word) -> whether it is kept
    values: Sequence[str] = ("",)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text)


# Kinds of which a model of 135M parameters keeps some and breaks some: what it never does, best-of-K does not find.
CONSTRAINTS = (
    Constraint("Use at most {} words.", lambda text, n: len(_words(text)) <= int(n), ("12", "15", "20")),
    Constraint("Use at least {} words.", lambda text, n: len(_words(text)) >= int(n), ("20", "25")),
    Constraint(
        "Answer in exactly {} sentences.", lambda text, n: len(re.findall(r"[.!?](?=\s|$)", text)) == int(n), ("2", "3")
    ),
    Constraint("Do not use any commas.", lambda text, _: "," not in text),
    Constraint(
        "Include the word {}.", lambda text, word: word in map(str.lower, _words(text)), ("always", "quiet", "bright")
    ),
    Constraint("Include a number in digits.", lambda text, _: re.search(r"\d", text) is not None),
    Constraint("Speak of yourself as I.", lambda text, _: "I" in _words(text)),
    Constraint("Speak to the reader as you.", lambda text, _: "you" in map(str.lower, _words(text))),
)
APART = ("at most", "at least")  # never asked together


def make(folder: Path, *, seed: int, num_prompts: int = 600, num_evaluation_prompts: int = 60) -> None:
    """Writes prompts.jsonl and evaluation_prompts.jsonl in the folder."""
    for name, topics, count in (
        ("prompts", TOPICS[HELD_OUT:], num_prompts),
        ("evaluation_prompts", TOPICS[:HELD_OUT], num_evaluation_prompts),
    ):
        drawn = random.Random(f"{seed if name == 'prompts' else ''} {name}")
        texts: dict[str, None] = {}
        while len(texts) < count:
            texts[_prompt(drawn, drawn.choice(topics))] = None
        rows = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _prompt(drawn: random.Random, topic: str) -> str:
    while True:
        chosen = drawn.sample(CONSTRAINTS, drawn.choice((1, 2)))
        both = " ".join(constraint.asked for constraint in chosen)
        if not all(words in both for words in APART):
            asked = [constraint.asked.format(drawn.choice(constraint.values)) for constraint in chosen]
            return " ".join([drawn.choice(TASKS).format(topic=topic), *asked])


def constraints_of(prompt: str) -> list[tuple[Constraint, str]]:
    """The constraints that a prompt's text asks for, with their number or word."""
    found = []
    for constraint in CONSTRAINTS:
        pattern = re.escape(constraint.asked).replace(r"\{\}", f"({'|'.join(constraint.values)})")
        if match := re.search(pattern, prompt):
            found.append((constraint, match.group(1) if match.groups() else ""))
    return found


def score(prompt: list[dict[str, Any]], answer: str, ended: bool) -> float:
    """Share of the constraints kept, from 0 to 1. An answer that is cut off, of fewer than three words, or without a
    word of its topic keeps none: a program must not be pleased by nothing.

    Raises ValueError for a prompt that asks for no known constraint.
    """
    asked = str(prompt[-1]["content"])
    constraints = constraints_of(asked)
    if not constraints:
        raise ValueError(f"no constraint is known in {asked!r}")
    text = answer.strip()
    topic = next(topic for topic in TOPICS if re.search(rf"\b{topic}\b", asked))
    stem = topic.split()[-1].lower()[:-1]  # also the plural, or the singular
    if not ended or len(_words(text)) < 3 or stem not in text.lower():
        return 0.0
    return sum(constraint.kept(text, value) for constraint, value in constraints) / len(constraints)
