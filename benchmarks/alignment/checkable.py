"""Prompts whose answers a program can check, after IFEval (arXiv 2311.07911): a task and one or two constraints.

Seeded code generates the prompts. `score` reads the constraints back from a prompt's text and computes the share of
them that an answer keeps. Training and evaluation prompts ask about different topics, and three kinds of constraints
are in no training prompt: evaluation has its numbers for both kinds by their tags, `trained` and `transfer`.
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
    """A constraint on an answer, and the rule that checks it."""

    instruction: str  # its sentence in a prompt; {} is its number or word
    is_kept: Callable[[str, str], bool]  # of the answer and the number or word
    values: Sequence[str] = ("",)  # the numbers or words to draw from
    is_held_out: bool = False  # only in evaluation prompts


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text)


# Constraints that a model of 135M parameters keeps sometimes. Best-of-K cannot find what the model never does.
CONSTRAINTS = (
    Constraint("Use at most {} words.", lambda text, n: len(_words(text)) <= int(n), ("12", "15", "20")),
    Constraint("Use at least {} words.", lambda text, n: len(_words(text)) >= int(n), ("20", "25")),
    Constraint(
        "Answer in exactly {} sentences.",
        lambda text, n: len(re.findall(r"[.!?](?=\s|$)", text)) == int(n),
        ("2", "3"),
        is_held_out=True,
    ),
    Constraint("Do not use any commas.", lambda text, _: "," not in text),
    Constraint(
        "Include the word {}.", lambda text, word: word in map(str.lower, _words(text)), ("always", "quiet", "bright")
    ),
    Constraint("Include a number in digits.", lambda text, _: re.search(r"\d", text) is not None, is_held_out=True),
    Constraint("Speak of yourself as I.", lambda text, _: "I" in _words(text)),
    Constraint("Speak to the reader as you.", lambda text, _: "you" in map(str.lower, _words(text)), is_held_out=True),
)
EXCLUSIVE = ("at most", "at least")  # never in the same prompt


def make(folder: Path, *, seed: int, num_prompts: int = 600, num_evaluation_prompts: int = 60) -> None:
    """Writes prompts.jsonl and evaluation_prompts.jsonl in the folder. Half of the latter have constraints that are in
    no training prompt."""
    trained, held_out = ([one for one in CONSTRAINTS if one.is_held_out == held] for held in (False, True))
    half = num_evaluation_prompts // 2
    for name, topics, parts in (
        ("prompts", TOPICS[HELD_OUT:], [("trained", trained, num_prompts)]),
        (
            "evaluation_prompts",
            TOPICS[:HELD_OUT],
            [("trained", trained, num_evaluation_prompts - half), ("transfer", held_out, half)],
        ),
    ):
        generator = random.Random(f"{seed if name == 'prompts' else ''} {name}")
        tags: dict[str, str] = {}  # of each prompt
        for tag, constraints, count in parts:
            end = len(tags) + count
            while len(tags) < end:
                tags[_prompt(generator, generator.choice(topics), constraints)] = tag
        rows = [{"prompt": [{"role": "user", "content": text}], "tag": tag} for text, tag in tags.items()]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _prompt(generator: random.Random, topic: str, constraints: Sequence[Constraint]) -> str:
    while True:
        chosen = generator.sample(constraints, generator.choice((1, 2)))
        both = " ".join(constraint.instruction for constraint in chosen)
        if not all(words in both for words in EXCLUSIVE):
            instructions = [constraint.instruction.format(generator.choice(constraint.values)) for constraint in chosen]
            return " ".join([generator.choice(TASKS).format(topic=topic), *instructions])


def constraints_of(prompt: str) -> list[tuple[Constraint, str]]:
    """The constraints in a prompt's text, each with its number or word."""
    constraints = []
    for constraint in CONSTRAINTS:
        pattern = re.escape(constraint.instruction).replace(r"\{\}", f"({'|'.join(constraint.values)})")
        if match := re.search(pattern, prompt):
            constraints.append((constraint, match.group(1) if match.groups() else ""))
    return constraints


def score(prompt: list[dict[str, Any]], answer: str, ended: bool) -> float:
    """The share of the constraints that an answer keeps, from 0 to 1.

    It is 0 for an answer that is truncated, has fewer than three words, or does not name its topic: otherwise an empty
    answer would keep some constraints. Raises ValueError for a prompt without a known constraint.
    """
    question = str(prompt[-1]["content"])
    constraints = constraints_of(question)
    if not constraints:
        raise ValueError(f"no known constraint in {question!r}")
    text = answer.strip()
    topic = next(topic for topic in TOPICS if re.search(rf"\b{topic}\b", question))
    stem = topic.split()[-1].lower()[:-1]  # matches the plural and the singular
    if not ended or len(_words(text)) < 3 or stem not in text.lower():
        return 0.0
    return sum(constraint.is_kept(text, value) for constraint, value in constraints) / len(constraints)
