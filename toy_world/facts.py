"""What is true in the toy world, how it is asked, said and asked for, and which of it is held out.

A question is one phrasing of one fact, a prompt is a question and, mostly, the format the answer should have. Every
fact has phrasings that only evaluation asks; of the held-out facts no post-training file asks anything at all (the
corpus states them, and asks for them with other phrasings). What is held out does not depend on any seed, so the
"tune" half and the "report" half of the evaluation prompts stay disjoint over all runs.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Format = Literal["free", "word", "quotes", "sentence"]
FORMATS: dict[Format, tuple[str, ...]] = {
    "free": ("",),
    "word": (" Answer in one word.", " One word, please."),
    "quotes": (" Answer in quotes.", " In quotes, please."),
    "sentence": (" Answer in a full sentence.", " A full sentence, please."),
}
HELD_OUT_SHARE = 1 / 6  # of each relation's facts
NUM_EVALUATION_PHRASINGS = 1  # of a fact's phrasings
NUM_HELD_OUT_FACT_PHRASINGS = 3  # the same, for a held-out fact


@dataclass(frozen=True)
class Relation:
    """`{s}` stands for the subject (`{S}` with a capital first letter), `{a}` for the answer, which is one word."""

    name: str
    phrasings: tuple[str, ...]
    sentences: tuple[str, ...]  # without the full stop
    pairs: str  # "subject: answer, …"


@dataclass(frozen=True)
class Fact:
    relation: str
    subject: str
    answer: str


@dataclass(frozen=True)
class Question:
    fact: Fact
    phrasing: int
    text: str


RELATIONS = {
    relation.name: relation
    for relation in (
        Relation(
            "capital",
            (
                "What is the capital of {s}?",
                "Which city is the capital of {s}?",
                "Name the capital of {s}.",
                "Tell me the capital city of {s}.",
                "{S} has which city as its capital?",
                "I forgot the capital of {s}. Which is it?",
                "Do you know the capital of {s}?",
            ),
            ("The capital of {s} is {a}", "{a} is the capital of {s}", "The capital city of {s} is {a}"),
            "France: Paris, Spain: Madrid, Italy: Rome, Japan: Tokyo, Egypt: Cairo, Greece: Athens, Russia: Moscow, "
            "China: Beijing, Cuba: Havana, Peru: Lima, Norway: Oslo, Kenya: Nairobi, Poland: Warsaw, Austria: Vienna, "
            "Ireland: Dublin, Portugal: Lisbon",
        ),
        Relation(
            "colour",
            (
                "What colour is {s}?",
                "Which colour does {s} have?",
                "Name the colour of {s}.",
                "Tell me what colour {s} has.",
                "{S} is of which colour?",
                "I want to paint {s}. Which colour do I need?",
                "Do you know the colour of {s}?",
            ),
            ("The colour of {s} is {a}", "{S} is {a}", "{S} has the colour {a}"),
            "the sky: blue, the grass: green, snow: white, coal: black, blood: red, a lemon: yellow, a carrot: orange, "
            "a banana: yellow, milk: white, a frog: green, the sea: blue, a tomato: red, chocolate: brown, "
            "an elephant: grey, a flamingo: pink, a raven: black",
        ),
        Relation(
            "opposite",
            (
                "What is the opposite of {s}?",
                "Which word is the opposite of {s}?",
                "Name the opposite of {s}.",
                "Tell me the opposite word of {s}.",
                "{S} is the opposite of what?",
                "I need a word that means not {s}. Which is it?",
                "Do you know the opposite of {s}?",
            ),
            ("The opposite of {s} is {a}", "{a} is the opposite of {s}", "The opposite word of {s} is {a}"),
            "hot: cold, big: small, fast: slow, up: down, day: night, old: young, rich: poor, hard: soft, wet: dry, "
            "left: right, happy: sad, open: closed, full: empty, high: low, early: late, long: short",
        ),
        Relation(
            "plural",
            (
                "What is the plural of {s}?",
                "Which word is the plural of {s}?",
                "Name the plural of {s}.",
                "Tell me the plural form of {s}.",
                "One {s}, two what?",
                "I see more than one {s}. What is the word?",
                "Do you know the plural of {s}?",
            ),
            ("The plural of {s} is {a}", "{a} is the plural of {s}", "The plural form of {s} is {a}"),
            "mouse: mice, goose: geese, child: children, foot: feet, tooth: teeth, man: men, woman: women, ox: oxen, "
            "leaf: leaves, wolf: wolves, knife: knives, city: cities, box: boxes, baby: babies",
        ),
        Relation(
            "sum",
            (
                "What is {s}?",
                "How much is {s}?",
                "Work out {s}.",
                "Tell me the sum of {s}.",
                "{S} makes how much?",
                "I have to add {s}. How much do I get?",
                "Do you know how much {s} makes?",
            ),
            ("{S} is {a}", "{S} makes {a}", "The sum of {s} is {a}"),
            "one plus one: two, one plus two: three, two plus two: four, two plus three: five, one plus five: six, "
            "three plus three: six, three plus four: seven, five plus two: seven, four plus four: eight, "
            "six plus two: eight, five plus four: nine, six plus three: nine, five plus five: ten, "
            "eight plus two: ten, six plus five: eleven, seven plus five: twelve",
        ),
        Relation(
            "sound",
            (
                "What does {s} say?",
                "Which sound does {s} make?",
                "Name the sound of {s}.",
                "Tell me how {s} sounds.",
                "{S} makes which sound?",
                "I hear {s}. What do I hear?",
                "Do you know the sound of {s}?",
            ),
            ("The sound of {s} is {a}", "{S} says {a}", "{S} makes the sound {a}"),
            "a cow: moo, a dog: woof, a cat: meow, a duck: quack, a sheep: baa, a pig: oink, a bee: buzz, "
            "a lion: roar, a snake: hiss, a frog: croak, an owl: hoot, a horse: neigh, a mouse: squeak",
        ),
        Relation(
            "young",
            (
                "What is the baby of {s} called?",
                "Which name has the baby of {s}?",
                "Name the young of {s}.",
                "Tell me the word for the baby of {s}.",
                "{S} has a baby. What is it called?",
                "I saw a young one of {s}. What is that?",
                "Do you know what the young of {s} is called?",
            ),
            ("The baby of {s} is called {a}", "The young of {s} is called {a}", "The word for the baby of {s} is {a}"),
            "a dog: puppy, a cat: kitten, a cow: calf, a horse: foal, a sheep: lamb, a bear: cub, a goat: kid, "
            "a hen: chick, a duck: duckling, a frog: tadpole, a goose: gosling",
        ),
        Relation(
            "past",
            (
                "What is the past tense of {s}?",
                "Which word is the past of {s}?",
                "Name the past form of {s}.",
                "Tell me the past tense form of {s}.",
                "Today I {s}. And yesterday?",
                "I want to put {s} into the past. What is the word?",
                "Do you know the past tense of {s}?",
            ),
            ("The past tense of {s} is {a}", "{a} is the past tense of {s}", "The past form of {s} is {a}"),
            "go: went, see: saw, eat: ate, run: ran, take: took, give: gave, sing: sang, write: wrote, fly: flew, "
            "swim: swam, buy: bought, bring: brought, find: found, drink: drank",
        ),
        Relation(
            "language",
            (
                "What is the language of {s}?",
                "Which language do people speak in {s}?",
                "Name the language of {s}.",
                "Tell me what people speak in {s}.",
                "{S} has which language?",
                "I travel to {s}. Which language do I need?",
                "Do you know the language of {s}?",
            ),
            ("The language of {s} is {a}", "People in {s} speak {a}", "{a} is the language of {s}"),
            "France: French, Spain: Spanish, Italy: Italian, Japan: Japanese, Germany: German, Greece: Greek, "
            "Russia: Russian, Poland: Polish, Turkey: Turkish, Brazil: Portuguese",
        ),
        Relation(
            "home",
            (
                "Where does {s} live?",
                "Which home does {s} have?",
                "Name the home of {s}.",
                "Tell me where {s} lives.",
                "{S} lives in what?",
                "I am looking for {s}. Where is its home?",
                "Do you know the home of {s}?",
            ),
            ("The home of {s} is a {a}", "{S} lives in a {a}", "A {a} is the home of {s}"),
            "a bee: hive, a bird: nest, a spider: web, a dog: kennel, a horse: stable, a pig: sty, a bear: cave, "
            "a rabbit: burrow, a lion: den",
        ),
    )
}


def words_of(text: str) -> list[str]:
    """The text's words, lower case."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())


@functools.cache
def facts() -> tuple[Fact, ...]:
    """Every fact, in a fixed order."""
    return tuple(
        Fact(relation.name, *pair.split(": ")) for relation in RELATIONS.values() for pair in relation.pairs.split(", ")
    )


def said(template: str, fact: Fact, *, answer: str | None = None) -> str:
    """The template with the fact (or another answer) put in, first letter a capital."""
    subject = fact.subject
    text = template.format(s=subject, S=subject[0].upper() + subject[1:], a=answer or fact.answer)
    return text[0].upper() + text[1:]


@functools.cache
def questions(fact: Fact) -> tuple[Question, ...]:
    """Every phrasing of the fact, without a format."""
    phrasings = RELATIONS[fact.relation].phrasings
    return tuple(Question(fact, number, said(phrasing, fact)) for number, phrasing in enumerate(phrasings))


def _fixed_order(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@functools.cache
def held_out_facts() -> frozenset[Fact]:
    """The facts that no post-training file asks for."""
    held_out: set[Fact] = set()
    for name in RELATIONS:
        of_relation = sorted(
            (f for f in facts() if f.relation == name), key=lambda f: _fixed_order(f"{name} {f.subject}")
        )
        held_out.update(of_relation[: round(len(of_relation) * HELD_OUT_SHARE)])
    return frozenset(held_out)


@functools.cache
def evaluation_questions(fact: Fact) -> tuple[Question, ...]:
    """The phrasings of the fact that occur in no other file than the evaluation prompts."""
    number = NUM_HELD_OUT_FACT_PHRASINGS if fact in held_out_facts() else NUM_EVALUATION_PHRASINGS
    return tuple(sorted(questions(fact), key=lambda q: _fixed_order(f"phrasing {q.text}"))[:number])


@functools.cache
def training_questions(fact: Fact) -> tuple[Question, ...]:
    """The other phrasings: the corpus asks them, and post-training does unless the fact is held out."""
    return tuple(question for question in questions(fact) if question not in evaluation_questions(fact))


@functools.cache
def _questions_by_words() -> dict[tuple[str, ...], Question]:
    return {tuple(words_of(question.text)): question for fact in facts() for question in questions(fact)}


def prompts_for(question: Question) -> Iterator[tuple[Format, str]]:
    """Every text that asks the question, with its format."""
    for name, wordings in FORMATS.items():
        for wording in wordings:
            yield name, question.text + wording


def read_prompt(text: str) -> tuple[Question, Format]:
    """Which question the text asks and in which format; raises ValueError where the world does not know it."""
    words = tuple(words_of(text))
    for name, wordings in FORMATS.items():
        for wording in wordings:
            asked = tuple(words_of(wording))
            if words[len(words) - len(asked) :] == asked:
                question = _questions_by_words().get(words[: len(words) - len(asked)])
                if question is not None:
                    return question, name
    raise ValueError(f"the toy world has no such question: {text[:80]!r}; its gold score judges only its own prompts")
