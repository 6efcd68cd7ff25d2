"""Contamination: training rows that contain the prompts of an evaluation set. Needs no torch.

Before the split, `prepare_data` leaves out dialogs and documents that repeat a held-out prompt completely. Prompts are
compared by their first user message, normalised (case, width, punctuation and white space are ignored). A short one
("Continue.") says nothing of its dialog, so only a complete first turn that equals it counts, which the split finds;
see `data_schemas.text.is_distinctive`.

For the evaluation sets of a run, EvaluationIndex has the two published rules for post-training rows:
  tulu3_8gram          more than half of an evaluation prompt's words are in 8-grams that one row has too
                       (arXiv 2411.15124, 3.2)
  llama3_exact_prompt  the row's prompt equals an evaluation prompt (arXiv 2407.21783, 5.2)
and a third one, which holds where these are left out,
  near_evaluation_prompt  the row's prompt nearly equals an evaluation prompt, see near_prompts.py
Neither is Llama 3's analysis of pre-training data (5.1.4), which takes the 8-grams of all rows together. Different
from Tulu 3, every row is looked up and not the first hundred that a search returns, and 8-grams that many prompts of a
set share, as in a template, don't count: else each row with the template would contain the set.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_schemas.files import digest
from data_schemas.formats import shorten
from data_schemas.rows import Conversation, Document, Message, PreferencePair, Prompt
from data_schemas.text import is_distinctive, normalise
from engine.curation.content import Content, Finding, Rule
from engine.curation.duplicates import content_key
from engine.curation.grouping import messages_of
from engine.curation.near_prompts import NEAR, NearPrompts
from engine.curation.words import Hashes, ngram_hashes, word_hashes

NUM_KEY_WORDS = 4  # first words of a prompt by which it is looked up
NUM_CAUSES = 3  # evaluation prompts that a warning names
NUM_CHARACTERS = 61  # of each

TULU3, LLAMA3, NEAR_PROMPT = "tulu3_8gram", "llama3_exact_prompt", "near_evaluation_prompt"
NGRAM = 8  # words and marks
MAX_COVERED = 0.5  # share of a prompt's words that one training row may have
TEMPLATE_SHARE, TEMPLATE_PROMPTS = 0.01, 10  # of a set's prompts; an 8-gram in more than both is a template's
_TABLE_BITS = 24  # of the table in which most n-grams of clean rows are not found: 16 MB


def most_frequent_causes(
    prompts: Sequence[Prompt], *, dialogs: Iterable[Conversation | PreferencePair], documents: Iterable[Document]
) -> str:
    """The evaluation prompts for which these dropped rows were dropped, for the end of a sentence: those that caused
    more than others did, with their numbers of rows, else one as an example."""
    texts = distinctive_texts(prompts)
    found = [asked_later(messages_of(row), texts) for row in dialogs] + contained(documents, prompts)
    original = {normalise(message.content): message.content for row in prompts for message in _first_user_message(row)}
    causes = Counter(text for text in found if text).most_common()
    quoted = {text: repr(shorten(" ".join(original[text].split()), NUM_CHARACTERS)) for text, _ in causes[:NUM_CAUSES]}
    least = causes[-1][1]
    more = [f"{quoted[text]} ({count})" for text, count in causes[:NUM_CAUSES] if count > least]
    return f"most because of {', '.join(more)}" if more else f"as {quoted[causes[0][0]]}"


def asked_later(messages: Sequence[Message], texts: Iterable[str]) -> str:
    """The first of the normalised texts that a user turn after the first equals; empty where there is none. Give a set,
    for speed."""
    users = [message for message in messages if message.role == "user"]
    asked = (normalise(message.content) for message in users[1:])
    return next((text for text in asked if text in texts), "")


def contained(documents: Iterable[Document], prompts: Iterable[Prompt]) -> list[str]:
    """For each document, the normalised first user message of a prompt that it contains as a sequence of complete
    words; empty where there is none."""
    # Looked up by their first words: at most positions of a document no prompt begins, elsewhere only a few do.
    by_start: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for words in map(str.split, distinctive_texts(prompts)):
        by_start[tuple(words[:NUM_KEY_WORDS])].append(words)
    first_words = {start[0] for start in by_start}
    num_key_words = sorted({len(start) for start in by_start})

    def find(document: Document) -> str:
        words = normalise(document.text).split()
        found = (
            " ".join(prompt)
            for position, word in enumerate(words)
            if word in first_words
            for length in num_key_words
            for prompt in by_start.get(tuple(words[position : position + length]), ())
            if words[position : position + len(prompt)] == prompt
        )
        return next(found, "")

    return [find(document) for document in documents]


def distinctive_texts(prompts: Iterable[Prompt]) -> set[str]:
    """The normalised first user messages that are long enough that a text which contains one repeats it."""
    texts = {normalise(message.content) for prompt in prompts for message in _first_user_message(prompt)}
    return {text for text in texts if is_distinctive(text)}


def _first_user_message(prompt: Prompt) -> list[Message]:
    return [message for message in prompt.prompt if message.role == "user"][:1]


# Numbers of evaluation prompts, and for each the share of its words, the longest span, and whether a prompt equals it,
# or nearly does.
Seen = tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]


@dataclass(frozen=True)
class SetReport:
    """What the rows that were looked up contain of an evaluation set, in numbers of its prompts."""

    num_prompts: int
    num_sharing: int  # share an 8-gram with a row
    num_covered: int  # by TULU3
    num_equal: int  # by LLAMA3
    num_contaminated: int  # by any rule
    longest_span: int  # words and marks in a row that a prompt shares with one training row (arXiv 2411.03923)
    num_near: int = 0  # by NEAR_PROMPT

    @property
    def contaminated_share(self) -> float:
        """Share of the set that any rule finds. Tulu 3 removes training data from 0.02 on."""
        return self.num_contaminated / self.num_prompts if self.num_prompts else 0.0


class EvaluationIndex:
    """The prompts of evaluation sets by name, looked up by 8-grams and completely; counts what rows contain of them.

    A set of 10,000 prompts of 100 words takes 16 MB.
    """

    def __init__(self, sets: Mapping[str, Iterable[str]], *, max_covered: float = MAX_COVERED) -> None:
        self._max_covered = max_covered
        given = {name: list(prompts) for name, prompts in sets.items()}
        self.digest = digest(given)  # of the sets' names and prompts
        self._equal: dict[bytes, list[int]] = defaultdict(list)
        self._labels: list[str] = []
        self._ranges: dict[str, range] = {}  # of the numbers of a set's prompts
        parts: list[tuple[Hashes, NDArray[np.int32], NDArray[np.int32]]] = []
        for name, prompts in given.items():
            first = len(self._labels)
            grams = [self._add(name, prompt) for prompt in prompts]
            self._ranges[name] = range(first, len(self._labels))
            parts.append(_without_templates(grams, first))
        hashes, self._prompts, self._places = map(np.concatenate, zip(*parts, strict=True)) if parts else _NOTHING
        order = np.lexsort((self._places, self._prompts, hashes))
        self._hashes, self._prompts, self._places = hashes[order], self._prompts[order], self._places[order]
        self._table = np.zeros(1 << _TABLE_BITS, dtype=bool)
        self._table[_slots(self._hashes)] = True
        by_prompt = np.lexsort((self._places, self._prompts))
        self._num_words = np.zeros(len(self._labels), dtype=np.int64)
        found, covered, _ = _coverage(self._prompts[by_prompt], self._places[by_prompt])
        self._num_words[found] = covered
        self._shares = np.zeros(len(self._labels))  # the highest of any row
        self._spans = np.zeros(len(self._labels), dtype=np.int64)
        self._is_equal = np.zeros(len(self._labels), dtype=bool)
        self._is_near = np.zeros(len(self._labels), dtype=bool)
        self._near = NearPrompts(given, _is_template)

    def rules(self) -> dict[str, Rule]:
        """The rules by their names. A row of a dialog is compared by its prompt, a document by its text."""
        return {LLAMA3: self._exact_prompt, TULU3: self._covered, NEAR_PROMPT: self._nearly_equal}

    def report(self) -> dict[str, SetReport]:
        """What the rows that the rules have seen contain of each set."""
        found: dict[str, SetReport] = {}
        for name, numbers in self._ranges.items():
            part = slice(numbers.start, numbers.stop)
            is_covered, is_equal = self._shares[part] > self._max_covered, self._is_equal[part]
            is_near = self._is_near[part]
            found[name] = SetReport(
                num_prompts=len(numbers),
                num_sharing=int((self._shares[part] > 0).sum()),
                num_covered=int(is_covered.sum()),
                num_equal=int(is_equal.sum()),
                num_contaminated=int((is_covered | is_equal | is_near).sum()),
                longest_span=int(self._spans[part].max(initial=0)),
                num_near=int(is_near.sum()),
            )
        return found

    def take(self) -> Seen:
        """What the rules have seen since the last call: the prompts that a row shares something with, the share and
        the span of each, and whether it equals a row's prompt, or nearly does. For `add` of the same index in another
        process."""
        numbers = np.flatnonzero((self._shares > 0) | self._is_equal | self._is_near)
        is_equal, is_near = self._is_equal[numbers], self._is_near[numbers]
        seen = (numbers, self._shares[numbers], self._spans[numbers], is_equal, is_near)
        self._shares[:], self._spans[:], self._is_equal[:], self._is_near[:] = 0, 0, False, False
        return seen

    def add(self, seen: Seen) -> None:
        """Adds what this index saw in another process."""
        numbers, shares, spans, is_equal, is_near = seen
        self._shares[numbers] = np.maximum(self._shares[numbers], shares)
        self._spans[numbers] = np.maximum(self._spans[numbers], spans)
        self._is_equal[numbers] |= is_equal
        self._is_near[numbers] |= is_near

    def _add(self, name: str, prompt: str) -> Hashes:
        self._equal[content_key(prompt)].append(len(self._labels))
        self._labels.append(f"{name}: {shorten(' '.join(prompt.split()), NUM_CHARACTERS)}")
        return ngram_hashes(word_hashes(prompt, "all"), NGRAM)

    def _exact_prompt(self, content: Content) -> Finding | None:
        equal = self._equal.get(content_key(content.prompt)) if content.prompt else None
        if not equal:
            return None
        self._is_equal[equal] = True
        return Finding(LLAMA3, 1.0, 1.0, self._labels[equal[0]])

    def _nearly_equal(self, content: Content) -> Finding | None:
        numbers, similarity = self._near.similar(content.prompt)
        if not len(numbers):
            return None
        self._is_near[numbers] = True
        most = int(similarity.argmax())
        return Finding(NEAR_PROMPT, round(float(similarity[most]), 4), NEAR, self._labels[numbers[most]])

    def _covered(self, content: Content) -> Finding | None:
        grams = ngram_hashes(word_hashes(content.prompt or content.text, "all"), NGRAM)
        grams = grams[self._table[_slots(grams)]]
        if not len(grams):
            return None
        grams = np.unique(grams)
        starts, ends = (np.searchsorted(self._hashes, grams, side) for side in ("left", "right"))
        places = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
        order = np.lexsort((self._places[places], self._prompts[places]))
        prompts, covered, spans = _coverage(self._prompts[places[order]], self._places[places[order]])
        if not len(prompts):
            return None
        shares = covered / self._num_words[prompts]
        self._shares[prompts] = np.maximum(self._shares[prompts], shares)
        self._spans[prompts] = np.maximum(self._spans[prompts], spans)
        most = int(shares.argmax())
        if shares[most] <= self._max_covered:
            return None
        return Finding(TULU3, round(float(shares[most]), 4), self._max_covered, self._labels[prompts[most]])


_NOTHING = (np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32))


def _slots(hashes: Hashes) -> NDArray[np.intp]:
    return (hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.intp)


def _without_templates(grams: Sequence[Hashes], first: int) -> tuple[Hashes, NDArray[np.int32], NDArray[np.int32]]:
    """The n-grams of a set that are not its template's, with the number of the prompt and the place of each in it."""
    if not grams:
        return _NOTHING
    hashes = np.concatenate(grams)
    prompts = np.repeat(np.arange(first, first + len(grams), dtype=np.int32), [len(part) for part in grams])
    places = np.concatenate([np.arange(len(part), dtype=np.int32) for part in grams])
    # How many prompts have each n-gram: one that a prompt repeats counts once.
    order = np.lexsort((prompts, hashes))
    is_new = np.ones(len(hashes), dtype=bool)
    is_new[1:] = (hashes[order[1:]] != hashes[order[:-1]]) | (prompts[order[1:]] != prompts[order[:-1]])
    values, counts = np.unique(hashes[order[is_new]], return_counts=True)
    templates = values[_is_template(counts, len(grams))]
    keep = ~np.isin(hashes, templates)
    return hashes[keep], prompts[keep], places[keep]


def _is_template(counts: NDArray[np.int64], num_prompts: int) -> NDArray[np.bool_]:
    """Whether n-grams that so many of a set's prompts have are a template's."""
    return counts > max(TEMPLATE_PROMPTS, TEMPLATE_SHARE * num_prompts)


def _coverage(
    prompts: NDArray[np.int32], places: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """From n-grams ordered by prompt and place: the prompts, how many of their words these cover, and the most words
    in a row."""
    if not len(prompts):
        return prompts, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    is_first = np.concatenate([[True], prompts[1:] != prompts[:-1]])
    steps = np.concatenate([[0], np.diff(places)])
    starts = np.flatnonzero(is_first)
    covered = np.add.reduceat(np.where(is_first, NGRAM, np.minimum(steps, NGRAM)), starts)
    run_starts = np.flatnonzero(is_first | (steps != 1))
    lengths = np.diff(np.append(run_starts, len(prompts))) + NGRAM - 1
    longest = np.maximum.reduceat(lengths, np.searchsorted(run_starts, starts))
    return prompts[starts], covered, longest
