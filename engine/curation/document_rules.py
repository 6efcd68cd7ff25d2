"""Published rules for web documents, for the stage that pretrains: a correct answer of one word fails most of them.

  gopher_*   quality and repetition (Rae et al. 2021, arXiv 2112.11446, table A1)
  c4_*       Raffel et al. 2020 (arXiv 1910.10683, 2.2)
  fineweb_*  Penedo et al. 2024 (arXiv 2406.17557, 3.6)

Different from there: C4's rules for lines remove lines, while a rule here drops a document or keeps it, so c4_sentences
counts the sentences in the lines that C4 would keep. Repeated n-grams are counted by the characters that they cover,
each once. Rules about words say nothing of a text in a script without spaces, and the stop words are English: set
`gopher_min_stop_words: null` for other languages. Needs no torch.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from data_schemas.ranges import THRESHOLDS
from engine.curation.content import Rule
from engine.curation.thresholds import Excess, Threshold, with_thresholds
from engine.curation.words import UNSPACED, Hashes, ngram_hashes

STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])
BULLETS = ("•", "●", "‣", "▪", "-", "*", "–")
ELLIPSES = ("...", "…")
LINE_ENDS = (".", "!", "?", '"', "”", "。", "！", "？", "」", "'")  # of a sentence that is complete
SHORT_LINE = 30  # characters (FineWeb)
WORDS_OF_LINE = 3  # that C4 wants in a line
MAX_UNSPACED = 0.3  # share of the characters from which on a text has no words that count
POLICY = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies", re.IGNORECASE)
_UNSPACED = re.compile("[" + "".join(f"{chr(start)}-{chr(end)}" for start, end in UNSPACED) + "]")
_SENTENCE_END = re.compile(r"[.!?。！？]+[\"'”’)\]]*(?:\s|$)")
_WORD_WITH_LETTER = re.compile(r"[^\W\d_]")


class Page:
    """What several rules need of a document, computed when the first of them asks."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @cached_property
    def has_words(self) -> bool:
        """Whether spaces separate the words of most of the text."""
        return self.text.isascii() or len(_UNSPACED.findall(self.text)) <= MAX_UNSPACED * len(self.text)

    @cached_property
    def lines(self) -> list[str]:
        return [line for line in map(str.strip, self.text.splitlines()) if line]

    @cached_property
    def paragraphs(self) -> list[str]:
        return [part for part in map(str.strip, re.split(r"\n{2,}", self.text)) if part]

    @cached_property
    def word_lengths(self) -> NDArray[np.int64]:
        return np.fromiter(map(len, self.words), dtype=np.int64, count=len(self.words))

    @property
    def mean_word_length(self) -> float:
        return int(self.word_lengths.sum()) / max(1, len(self.words))

    @cached_property
    def word_numbers(self) -> Hashes:
        """A number for each different word, the same wherever it is."""
        known: dict[str, int] = {}
        return np.array([known.setdefault(word, len(known) + 1) for word in self.words], dtype=np.uint64)

    @cached_property
    def repeated_fives(self) -> float:
        """Share of the characters in repeated 5-grams. Those in longer ones are among them."""
        return self.repeated_share(5)

    def repeated_share(self, n: int) -> float:
        """Share of the text's characters that are covered by n-grams which occurred before."""
        grams = ngram_hashes(self.word_numbers, n)
        is_repeat = np.ones(len(grams), dtype=bool)
        is_repeat[np.unique(grams, return_index=True)[1]] = False
        if not is_repeat.any():
            return 0.0
        changes = np.zeros(len(self.words) + 1, dtype=np.int64)
        changes[: len(grams)] += is_repeat
        changes[n : n + len(grams)] -= is_repeat
        return int(self.word_lengths[np.cumsum(changes[:-1]) > 0].sum()) / len(self.text)

    def line_share(self, count: Callable[[str], object]) -> float:
        return sum(map(bool, map(count, self.lines))) / max(1, len(self.lines))


@lru_cache(maxsize=4)
def page_of(text: str) -> Page:
    return Page(text)


def document_rules(thresholds: Mapping[str, Threshold] | None = None) -> dict[str, Rule]:
    """All rules by name. A threshold overrides the published one; None leaves the rule out."""
    return with_thresholds({name: (default, _of_page(check)) for name, (default, check) in CHECKS.items()}, thresholds)


PageCheck = Callable[[Page, float], float | str | None]


def _of_page(check: PageCheck) -> Excess:
    return lambda content, threshold: check(page_of(content.text), threshold)


def _above(measure: Callable[[Page], float]) -> PageCheck:
    """A check that the measure is not above the threshold."""

    def check(page: Page, threshold: float) -> float | None:
        value = measure(page)
        return round(value, 4) if value > threshold else None

    return check


def _below(measure: Callable[[Page], float]) -> PageCheck:
    def check(page: Page, threshold: float) -> float | None:
        value = measure(page)
        return round(value, 4) if value < threshold else None

    return check


def _for_words(check: PageCheck) -> PageCheck:
    """The check, where the text has words."""
    return lambda page, threshold: check(page, threshold) if page.has_words else None


def _symbols(page: Page) -> float:
    symbols = page.text.count("#") + sum(map(page.text.count, ELLIPSES))
    return symbols / max(1, len(page.words))


def _words_with_letter(page: Page) -> float:
    return sum(1 for word in page.words if word.isalpha() or _WORD_WITH_LETTER.search(word)) / max(1, len(page.words))


def _stop_words(page: Page) -> float:
    return len(STOP_WORDS.intersection(map(str.lower, page.words)))


def _duplicate_share(parts: Sequence[str]) -> float:
    """Share of the parts that repeat an earlier one."""
    return (len(parts) - len(set(parts))) / max(1, len(parts))


def _duplicate_characters(page: Page, parts: Iterable[str]) -> float:
    """Share of the text's characters in parts that repeat an earlier one."""
    repeated = sum((number - 1) * len(part) for part, number in Counter(parts).items())
    return repeated / max(1, len(page.text))


def _top_ngram(n: int) -> Callable[[Page], float]:
    """Share of the text's characters in the most frequent n-gram, which has to be there twice."""

    def measure(page: Page) -> float:
        values, first, counts = np.unique(ngram_hashes(page.word_numbers, n), return_index=True, return_counts=True)
        if not len(values) or counts.max() < 2:
            return 0.0
        most = first[counts == counts.max()].min()
        length = int(page.word_lengths[most : most + n].sum()) + n - 1
        return length * int(counts.max()) / len(page.text)

    return measure


def _repeated_ngrams(n: int) -> PageCheck:
    in_ngrams = _above(lambda page: page.repeated_share(n))
    return lambda page, threshold: in_ngrams(page, threshold) if page.repeated_fives > threshold else None


def _c4_sentences(page: Page) -> float:
    """Sentences in the lines that C4 keeps: with an end mark, with three words, without script and policy."""
    return sum(len(_SENTENCE_END.findall(line)) for line in page.lines if _is_kept_by_c4(line))


def _is_kept_by_c4(line: str) -> bool:
    if not line.endswith(LINE_ENDS) or line.endswith(ELLIPSES):
        return False
    if "javascript" in line.lower() or POLICY.search(line):
        return False
    return len(line.split()) >= WORDS_OF_LINE or bool(_UNSPACED.search(line))


def _contains(part: str) -> PageCheck:
    """A check that the text has the part at most as often as the threshold."""
    return _above(lambda page: page.text.lower().count(part))


CHECKS: dict[str, tuple[float, PageCheck]] = {
    "gopher_min_words": (THRESHOLDS["gopher_min_words"], _for_words(_below(lambda page: len(page.words)))),
    "gopher_max_words": (THRESHOLDS["gopher_max_words"], _above(lambda page: len(page.words))),
    "gopher_min_word_length": (
        THRESHOLDS["gopher_min_word_length"],
        _for_words(_below(lambda page: page.mean_word_length)),
    ),
    "gopher_max_word_length": (
        THRESHOLDS["gopher_max_word_length"],
        _for_words(_above(lambda page: page.mean_word_length)),
    ),
    "gopher_symbols": (0.1, _for_words(_above(_symbols))),
    "gopher_bullets": (0.9, _above(lambda page: page.line_share(lambda line: line.startswith(BULLETS)))),
    "gopher_ellipses": (0.3, _above(lambda page: page.line_share(lambda line: line.endswith(ELLIPSES)))),
    "gopher_min_words_with_letter": (0.8, _for_words(_below(_words_with_letter))),
    "gopher_min_stop_words": (2, _for_words(_below(_stop_words))),
    "gopher_duplicate_lines": (0.3, _above(lambda page: _duplicate_share(page.lines))),
    "gopher_duplicate_paragraphs": (0.3, _above(lambda page: _duplicate_share(page.paragraphs))),
    "gopher_duplicate_line_characters": (0.2, _above(lambda page: _duplicate_characters(page, page.lines))),
    "gopher_duplicate_paragraph_characters": (0.2, _above(lambda page: _duplicate_characters(page, page.paragraphs))),
    "gopher_top_2gram": (0.2, _above(_top_ngram(2))),
    "gopher_top_3gram": (0.18, _above(_top_ngram(3))),
    "gopher_top_4gram": (0.16, _above(_top_ngram(4))),
    "gopher_repeated_5grams": (0.15, _above(lambda page: page.repeated_fives)),
    "gopher_repeated_6grams": (0.14, _repeated_ngrams(6)),
    "gopher_repeated_7grams": (0.13, _repeated_ngrams(7)),
    "gopher_repeated_8grams": (0.12, _repeated_ngrams(8)),
    "gopher_repeated_9grams": (0.11, _repeated_ngrams(9)),
    "gopher_repeated_10grams": (0.1, _repeated_ngrams(10)),
    "c4_min_sentences": (5, _below(_c4_sentences)),
    "c4_max_word_length": (1000, _for_words(_above(lambda page: int(page.word_lengths.max(initial=0))))),
    "c4_lorem_ipsum": (0, _contains("lorem ipsum")),
    "c4_curly_brackets": (0, _contains("{")),
    "fineweb_min_line_ends": (0.12, _below(lambda page: page.line_share(lambda line: line.endswith(LINE_ENDS)))),
    "fineweb_short_lines": (0.67, _above(lambda page: page.line_share(lambda line: len(line) <= SHORT_LINE))),
    "fineweb_duplicate_line_characters": (0.01, _above(lambda page: _duplicate_characters(page, page.lines))),
    "fineweb_newlines": (0.3, _for_words(_above(lambda page: page.text.count("\n") / max(1, len(page.words))))),
}
