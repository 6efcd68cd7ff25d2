"""Rules for dialogs: answers that are empty, refused, repeated, cut off or of broken markup, and lengths.

The rules for web documents don't fit dialogs, in which an answer of one word can be right. Of a preference row only the
best answer is judged, as the others are there for what is wrong with them. Needs no torch.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from html.parser import HTMLParser

import numpy as np
from numpy.typing import NDArray

from data_schemas.ranges import THRESHOLDS
from engine.curation.content import Content, Kind, Rule
from engine.curation.thresholds import Excess, Threshold, with_thresholds
from engine.curation.words import ngram_hashes, word_hashes

PERIODS = 64  # words of the longest part that is looked for again and again
MIN_LOOP = 24  # words of the repetition
NGRAM = 8  # words of the n-grams that repeat earlier ones
MIN_WORDS = 50  # of an answer whose share of repeated n-grams says something
PLACEHOLDERS = frozenset(["n/a", "nan", "null", "undefined", "tbd", "todo", "noinput", "<noinput>", "no output"])
# Words with which no sentence ends, so an answer that ends with one is cut off.
OPEN_WORDS = frozenset(
    "a an and as because but by during from if into my nor of or our than the their to whereas which while whose with"
    " your".split()
)
MIN_SENTENCES = 3  # with an end mark, after which the last one should have it too
CLOSING_WORDS = 6  # of a letter, as "Looking forward to seeing you,"
_ADDRESS = re.compile(r"\w[./@_]\w")
_MEANS_SOMETHING = re.compile(r"[^\W_]|[^\w\s!-$&-*,-/:;?@\[-`{-~…–—“”‘’•·]")
_CHARACTER_LOOP = re.compile(r"([^\W\d_])\1{23,}")
_CODE = re.compile(r"^[ \t]*(```+|~~~+).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^[ \t]*(?:[-*+>] |\d+[.)] )?[ \t]*(```+|~~~+)([^\n`]*)$", re.MULTILINE)
_JSON_BLOCK = re.compile(r"^[ \t]*```json[ \t]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
_ABRIDGED = re.compile(r"\.\.\.|…|//|/\*|^\s*#|<[a-zA-Z_ ]+>", re.MULTILINE)  # JSON that is only an outline
_HTML_DOCUMENT = re.compile(r"<(?:!doctype html|html)\b.*", re.IGNORECASE | re.DOTALL)
_HTML_BLOCK = re.compile(r"^[ \t]*```html?[ \t]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL | re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?。！？][\"'”’)\]*]*(?:\s|$)")
_NO_PROSE = re.compile(r"\s*(?:[-*+•|#>]|\d+[.)]|\w[.)]\s|\S+:\s|\S*://)")
_HELP = "assist|help|provide|create|write|generate|fulfil|comply|support|answer|discuss|engage|do (?:that|this)"
_LACKS = "(?:do not|don['’]t) have (?:the|access)"
_UNABLE_TO = f"cannot|can not|can['’]t|won['’]t|will not|(?:['’]m| am) (?:unable|not able)|{_LACKS}"
_MODEL = "an? (?:ai|a\\.i\\.|artificial intelligence|(?:large )?language model)"
# At the start of a sentence or after "but": "I promise that I won't share it" is no refusal, nor is "I can't help but".
_UNABLE = re.compile(
    rf"(?:^|[.!?:,;]\s+|\b(?:but|however|unfortunately|sorry) )(?P<words>"
    rf"as {_MODEL}[\w ]*,? i ?(?:{_UNABLE_TO})\b"
    rf"|i(?:['’]m| am) (?:sorry|afraid),? (?:but |that )?i ?(?:{_UNABLE_TO})\b"
    rf"|i(?:['’]m| am) (?:not able|unable|not programmed|not going) to (?:\w+ )?(?:{_HELP})\b"
    rf"|i (?:cannot|can not|can['’]t|won['’]t|will not) (?:\w+ )?(?:{_HELP})\b(?! but))",
    re.IGNORECASE,
)
_VOID = frozenset("area base br col embed hr img input link meta param source track wbr".split())
_END_IS_OPTIONAL = frozenset("p li dt dd option tr td th thead tbody tfoot colgroup html head body".split())


def dialog_rules(thresholds: Mapping[str, Threshold] | None = None, kind: Kind = "instructions") -> dict[str, Rule]:
    """All rules for rows of a kind by name. A threshold overrides the default; None leaves the rule out."""
    checks = dict(PROMPT_CHECKS)
    if kind != "prompts":
        checks |= {name: (default, _of_answers(check, kind)) for name, (default, check) in ANSWER_CHECKS.items()}
    return with_thresholds(checks, thresholds)


TextCheck = Callable[[str, float], float | str | None]


def _of_answers(check: TextCheck, kind: Kind) -> Excess:
    """The check of every answer, or of the best one of a preference row. An answer without text calls a tool."""

    def of_row(content: Content, threshold: float) -> float | str | None:
        for answer in content.answers[:1] if kind == "preferences" else content.answers:
            if answer.strip() and (value := check(answer, threshold)) is not None:
                return value
        return None

    return of_row


def num_words(text: str) -> int:
    """The words of a text, as characters in scripts without spaces; a text of other signs is one."""
    return len(word_hashes(text)) or bool(text.strip())


@lru_cache(maxsize=4)
def prose_of(text: str) -> str:
    """The text without blocks of code."""
    return _CODE.sub("", text) if "```" in text or "~~~" in text else text


def _empty(answer: str, threshold: float) -> str | None:
    """The answer where less than this number of its characters means something, or where it is a placeholder."""
    text = answer.strip()
    if len(text) > 100:
        return None
    return text if len(_MEANS_SOMETHING.findall(text)) < threshold or text.lower() in PLACEHOLDERS else None


def _refusal(answer: str, threshold: float) -> str | None:
    """The words of a refusal that begin within this number of characters."""
    found = _UNABLE.search(answer, 0, int(threshold) + 60)
    return found["words"] if found and found.start("words") < threshold else None


@lru_cache(maxsize=4)
def _distances(answer: str) -> NDArray[np.intp] | None:
    """For each 8-gram outside code, how many words ago it occurred before, or 0; None where none did."""
    grams = ngram_hashes(word_hashes(prose_of(answer)), NGRAM)
    order = np.argsort(grams, kind="stable")
    is_repeat = grams[order[1:]] == grams[order[:-1]]
    if not is_repeat.any():
        return None
    distances = np.zeros(len(grams), dtype=np.intp)
    distances[order[1:]] = np.where(is_repeat, order[1:] - order[:-1], 0)
    return distances


def _loop(answer: str, threshold: float) -> float | None:
    """How often some words follow upon themselves, where that is more than the threshold."""
    if len(answer) < MIN_LOOP:
        return None
    letters = _CHARACTER_LOOP.search(answer)
    if letters:
        return float(len(letters[0]))
    distances = _distances(answer)
    if distances is None:
        return None
    words = word_hashes(prose_of(answer))
    for period in np.unique(distances[(distances > 0) & (distances <= PERIODS)]).tolist():
        longest = _longest_run(words[period:] == words[:-period]) + period
        if longest >= MIN_LOOP and longest / period > threshold:
            return round(longest / period, 1)
    return None


def _longest_run(values: NDArray[np.bool_]) -> int:
    """The most true values in a row."""
    ends = np.flatnonzero(np.concatenate([[True], ~values, [True]]))
    return int(np.diff(ends).max()) - 1


def _repeated(answer: str, threshold: float) -> float | None:
    """Share of the words outside code that are in 8-grams which occurred before."""
    distances = _distances(answer) if len(answer) >= MIN_WORDS else None
    if distances is None or len(distances) + NGRAM - 1 < MIN_WORDS:
        return None
    is_covered = np.convolve(distances > 0, np.ones(NGRAM, dtype=int)) > 0
    share = float(is_covered.mean())
    return round(share, 4) if share > threshold else None


def _truncated(answer: str, threshold: float) -> str | None:
    """The end of an answer of at least this many words that is cut off."""
    text = answer.rstrip()
    if not text[-1].isalnum() and text[-1] not in ",([{":
        return None
    if num_words(text) < threshold or prose_of(text).rstrip()[-20:] != text[-20:]:
        return None
    last = text[text.rfind("\n") + 1 :]
    word = last.split()[-1]
    if _ADDRESS.search(word) or (text[-1] == "," and len(last.split()) <= CLOSING_WORDS):
        return None
    is_open = text[-1] in ",([{" or word in OPEN_WORDS
    return last[-40:] if is_open or _lacks_end_mark(text, last) else None


def _lacks_end_mark(text: str, last: str) -> bool:
    """Whether only the last of several sentences has no end mark, in the middle of a paragraph."""
    if _NO_PROSE.match(last) or not text.isascii() or not last[-1].islower():
        return False
    ends = list(_SENTENCE_END.finditer(last))
    return len(ends) >= MIN_SENTENCES and len(last[ends[-1].end() :].split()) >= MIN_SENTENCES


def _open_fences(answer: str, threshold: float) -> int | None:
    """How many blocks of code are not closed."""
    if "```" not in answer and "~~~" not in answer:
        return None
    opened = ""
    for fence in _FENCE.finditer(answer):
        marks, language = fence[1], fence[2].strip()
        if not opened:
            opened = marks
        elif marks[0] == opened[0] and len(marks) >= len(opened) and not language:
            opened = ""
    return 1 if opened and threshold < 1 else None


def _broken_json(answer: str, threshold: float) -> int | None:
    """How many blocks of JSON can't be read; or an answer that is only JSON."""
    blocks = _JSON_BLOCK.findall(answer) if "```json" in answer else []
    text = answer.strip()
    if re.match(r'\{\s*"|\[\s*\{\s*"', text):
        blocks.append(text)
    number = sum(not _is_json(block) for block in blocks)
    return number if number > threshold else None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        return bool(_ABRIDGED.search(text)) or (len(lines) > 1 and all(map(_is_json_line, lines)))
    return True


def _is_json_line(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _broken_html(answer: str, threshold: float) -> int | None:
    """How many elements of the HTML documents in the answer are not closed."""
    if "<html" not in answer.lower():
        return None
    blocks = _HTML_BLOCK.findall(answer) or [answer]
    number = sum(_Elements.not_closed(found[0]) for block in blocks if (found := _HTML_DOCUMENT.search(block)))
    return number if number > threshold else None


class _Elements(HTMLParser):
    """Counts elements that are opened and not closed, but for those that need no end."""

    def __init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self.num_wrong = 0

    @classmethod
    def not_closed(cls, document: str) -> int:
        parser = cls()
        parser.feed(document)
        is_cut = "</html" not in document.lower()
        return parser.num_wrong + len(parser._open) + is_cut

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in _VOID and tag not in _END_IS_OPTIONAL:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """An element that is closed where it opens."""

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                self.num_wrong += 1


def _many_words(text: str, threshold: float) -> int | None:
    if len(text) <= threshold:  # a word has a character
        return None
    number = num_words(text)
    return number if number > threshold else None


def _few_words(text: str, threshold: float) -> int | None:
    number = num_words(text) if threshold > 1 else int(bool(text.strip()))
    return number if number < threshold else None


ANSWER_CHECKS: dict[str, tuple[float, TextCheck]] = {
    "empty_answer": (1, _empty),  # characters
    "refusal": (120, _refusal),  # characters
    "looping_answer": (4, _loop),  # times
    "repetitive_answer": (0.6, _repeated),  # share of the words
    "truncated_answer": (20, _truncated),  # words
    "broken_code_fence": (0, _open_fences),
    "broken_json": (0, _broken_json),  # blocks
    "broken_html": (0, _broken_html),  # elements
    "short_answer": (THRESHOLDS["short_answer"], _few_words),
    "long_answer": (THRESHOLDS["long_answer"], _many_words),
}
PROMPT_CHECKS: dict[str, tuple[float, Excess]] = {
    "short_prompt": (THRESHOLDS["short_prompt"], lambda content, threshold: _few_words(content.prompt, threshold)),
    "long_prompt": (THRESHOLDS["long_prompt"], lambda content, threshold: _many_words(content.prompt, threshold)),
}
