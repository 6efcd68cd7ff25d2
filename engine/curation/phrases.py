"""Balances overused phrases, as "I'm sorry" (Llama 3, arXiv 2407.21783, 4.2.3): their share falls, and some stay.

A phrase may be in at most a share of the rows. Of the rows with a more frequent one the worst leave first: those of the
lowest quality, then of the highest id. The share is of the rows that are left, so of n rows of which c have the phrase,
d = ceil((c - share n) / (1 - share)) leave.

Phrases that a policy overuses are found by their log-odds against human answers with an informative Dirichlet prior
(Monroe, Colaresi and Quinn 2008, equations 16, 20 and 22), counted by the answers that have them. Needs no torch.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.curation.content import Finding
from engine.curation.duplicates import ranking
from engine.curation.words import Hashes, ngram_hashes

DEFAULT_PHRASES = ("I'm sorry", "I apologize")
RULE = "overused_phrase"
LENGTHS = range(3, 9)  # words of the phrases that are looked for
MIN_ANSWERS = 5  # of the policy with a phrase
MIN_Z = 3.0  # standard errors by which the policy's odds are higher
PRIOR = 0.1  # pseudo-counts of a phrase, for each answer of both sides with it
MOSTLY = 0.8  # of the answers with a phrase
MAX_PHRASES = 20
MAX_WORDS = 200  # from the start of an answer
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_WORD_OR_END = re.compile(rf"{_WORD.pattern}|[.!?:;\n]+")


class PhraseFinder:
    """Which of some phrases a text has, as complete words in any case."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self._patterns = {phrase: _pattern(phrase) for phrase in phrases}

    def phrases_in(self, text: str) -> list[str]:
        return [phrase for phrase, pattern in self._patterns.items() if pattern.search(text)]


def balance_phrases(
    carriers: Mapping[str, Collection[int]],
    *,
    max_share: float,
    ids: Sequence[str],
    quality: Sequence[float] | None = None,
    excluded: Collection[int] = (),
) -> dict[int, Finding]:
    """The rows that leave until every phrase is in at most this share of the rows that are left.

    `carriers` has the rows with each phrase. The value of a finding is the phrase's share before any row left. Rows in
    `excluded` are not there.
    """
    best = ranking(ids, quality)
    without = set(excluded)
    num_left = len(ids) - len(without)
    # The best first, so that the worst are at the end.
    left = {phrase: sorted(set(rows) - without, key=best) for phrase, rows in sorted(carriers.items())}
    before = {phrase: len(rows) / max(1, num_left) for phrase, rows in left.items()}
    dropped: dict[int, Finding] = {}
    while too_many := [phrase for phrase, rows in left.items() if len(rows) > max_share * num_left + 1e-9]:
        phrase = max(too_many, key=lambda phrase: (len(left[phrase]), phrase))
        number = math.ceil((len(left[phrase]) - max_share * num_left) / (1 - max_share) - 1e-9)
        finding = Finding(RULE, round(before[phrase], 4), max_share, phrase)
        leaving = dict.fromkeys(left[phrase][-number:], finding)
        dropped |= leaving
        num_left -= number
        left = {name: [row for row in rows if row not in leaving] for name, rows in left.items()}
    return dropped


@dataclass(frozen=True)
class OverusedPhrase:
    """A phrase that a policy uses more often than people do."""

    phrase: str
    z: float  # log-odds ratio in standard errors
    policy_share: float  # of the answers that have it
    human_share: float


def overused_phrases(policy: Sequence[str], human: Sequence[str]) -> list[OverusedPhrase]:
    """Phrases of 3 to 8 words that policy answers have significantly more often than human ones, by z.

    Of phrases that share three words only the first is listed, and of one that is mostly part of a longer the longer.
    """
    known: dict[str, int] = {}
    policy_words, human_words = ([_numbered(text, known) for text in texts] for texts in (policy, human))
    found = [phrase for length in LENGTHS for phrase in _overused(policy_words, human_words, length, names=[*known])]
    complete = [phrase for phrase in found if not any(_is_part(phrase, longer) for longer in found)]
    listed: list[OverusedPhrase] = []
    seen: set[tuple[str, ...]] = set()
    for phrase in sorted(complete, key=lambda phrase: (-phrase.z, phrase.phrase)):
        words = phrase.phrase.split()
        parts = set(zip(words, words[1:], words[2:], strict=False))
        if not parts & seen:
            listed.append(phrase)
            seen |= parts
    return listed[:MAX_PHRASES]


def _is_part(phrase: OverusedPhrase, longer: OverusedPhrase) -> bool:
    """Whether most answers with the phrase have it in the longer one."""
    is_within = phrase.phrase != longer.phrase and f" {phrase.phrase} " in f" {longer.phrase} "
    return is_within and longer.policy_share >= MOSTLY * phrase.policy_share


def _overused(
    policy: Sequence[Hashes], human: Sequence[Hashes], length: int, *, names: Sequence[str]
) -> list[OverusedPhrase]:
    grams = [np.unique(ngram_hashes(words, length)) for words in policy]
    values, counts = _counted(grams)
    human_values, human_counts = _counted([np.unique(ngram_hashes(words, length)) for words in human])
    totals = counts.sum(), human_counts.sum()
    is_frequent = counts >= MIN_ANSWERS
    values, counts = values[is_frequent], counts[is_frequent]
    if not len(values):
        return []
    places = np.searchsorted(human_values, values)
    places[places == len(human_values)] = 0
    is_shared = human_values[places] == values if len(human_values) else np.zeros(len(values), dtype=bool)
    other_counts = np.where(is_shared, human_counts[places] if len(human_counts) else 0, 0)
    z = z_scores(counts, other_counts, *totals)
    overused = {int(values[place]): place for place in np.flatnonzero(z >= MIN_Z)}
    texts = _texts_of(overused.keys(), policy, length, names)
    return [
        OverusedPhrase(
            texts[value], float(z[k]), float(counts[k] / len(policy)), float(other_counts[k] / max(1, len(human)))
        )
        for value, k in overused.items()
    ]


def z_scores(
    policy: NDArray[np.int64], human: NDArray[np.int64], num_policy: int, num_human: int
) -> NDArray[np.float64]:
    """The log-odds ratio of each phrase in standard errors, from its counts and those of all phrases. The prior of a
    phrase is PRIOR of its counts on both sides."""
    prior, prior_sum = PRIOR * (policy + human), PRIOR * (num_policy + num_human)
    odds = [
        np.log((counts + prior) / (total + prior_sum - counts - prior))
        for counts, total in ((policy, num_policy), (human, num_human))
    ]
    return (odds[0] - odds[1]) / np.sqrt(1 / (policy + prior) + 1 / (human + prior))


def _counted(grams: Sequence[Hashes]) -> tuple[Hashes, NDArray[np.int64]]:
    return np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *grams]), return_counts=True)


def _texts_of(values: Collection[int], answers: Sequence[Hashes], length: int, names: Sequence[str]) -> dict[int, str]:
    """The words of these n-grams, where they occur first."""
    texts: dict[int, str] = {}
    for words in answers:
        if len(texts) == len(values):
            break
        for place, value in enumerate(ngram_hashes(words, length).tolist()):
            if value in values and value not in texts:
                texts[value] = " ".join(names[int(number) - 1] for number in words[place : place + length])
    return texts


def _numbered(text: str, known: dict[str, int]) -> Hashes:
    """A number from 1 for each different word, and another one for each end of a sentence, as no phrase crosses it."""
    words = _WORD_OR_END.findall(text.lower().replace("’", "'"))[:MAX_WORDS]
    names = (word if word[0].isalnum() else f"{word}{len(known)}" for word in words)
    return np.array([known.setdefault(name, len(known) + 1) for name in names], dtype=np.uint64)


def _pattern(phrase: str) -> re.Pattern[str]:
    words = (re.escape(word).replace("'", "['’]") for word in _WORD.findall(phrase.replace("’", "'")))
    return re.compile(r"(?<!\w)" + r"\W+".join(words) + r"(?!\w)", re.IGNORECASE)
