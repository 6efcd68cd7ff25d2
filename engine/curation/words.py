"""The words of a text in the form in which texts are compared: hashed, and in n-grams. Needs no torch.

Case, width, punctuation and white space are ignored, as by `data_schemas.text.normalise`. A character of a script
without spaces between words (Chinese, Japanese, Thai, ...) counts as a word, and so does one of Korean, whose words
carry their endings: a word n-gram of such a text would be a sentence, or the text itself. Deciding by character and
not by text has no threshold at which two nearly equal texts would be cut differently.

The hashes are polynomials of the characters' codes, computed by numpy for a complete text: a fifth of the time that
splitting it into strings takes, and equal in all processes.
"""

import unicodedata
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]  # one of each word or n-gram of a text, in order
# first and last character: Thai and Lao, Burmese, Khmer, kana, Chinese characters, Hangul, rare Chinese characters
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7AF),
    (0x20000, 0x3FFFF),
)
SIGNS = "+-*/=<>^%"  # "3 + 4" and "3 - 4" are different texts
NUM_CODES = 0x110000
Marks = Literal["none", "signs", "all"]  # the characters besides letters and digits that count, each as a word
_LETTER, _ALONE = 1, 2  # part of a word, and a word by itself
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_FACTOR, _HALF = np.uint64(0xD6E8FEB86659FD93), np.uint64(32)


@lru_cache(maxsize=8)  # several rules see the same text in turn
def word_hashes(text: str, marks: Marks = "none") -> Hashes:
    """A 64-bit hash of each word of the text, and of each of these marks. A text without any has none. Do not change
    the array."""
    if text.isascii():
        codes = np.frombuffer(text.lower().encode(), dtype=np.uint8)
    else:
        folded = unicodedata.normalize("NFKC", text).casefold()
        codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    classes = np.zeros(len(codes) + 2, dtype=np.uint8)
    np.take(_classes(marks), codes, out=classes[1:-1])
    inside = classes == _LETTER
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    alone = np.flatnonzero(classes[1:-1] == _ALONE)
    if len(alone):
        starts = np.concatenate([starts, alone])
        order = np.argsort(starts)
        starts, ends = starts[order], np.concatenate([ends, alone + 1])[order]
    return _hashes_between(codes, starts, ends)


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """A hash of every n consecutive words: max(0, len(hashes) - n + 1) of them."""
    if len(hashes) < n:
        return np.empty(0, dtype=np.uint64)
    found, width = hashes, 1
    for bit in f"{n:b}"[1:]:  # as in exponentiation by squaring: 8 words in 3 steps
        found = found[:-width] * _power(width) + found[width:]
        width *= 2
        if bit == "1":
            found = found[:-1] * _power(1) + hashes[width:]
            width += 1
    return found ^ found >> np.uint64(31)


def _hashes_between(
    codes: NDArray[np.uint8] | NDArray[np.uint32], starts: NDArray[np.intp], ends: NDArray[np.intp]
) -> Hashes:
    """The hash of the characters of each stretch: the sum of code * BASE^place, divided by BASE^start."""
    powers, inverses = _powers(1 << max(10, len(codes).bit_length()))
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    sums[1:] = codes
    sums[1:] *= powers[: len(codes)]
    np.cumsum(sums, out=sums)
    found = (sums[ends] - sums[starts]) * inverses[starts]
    found ^= found >> _HALF  # n-grams sum the words' hashes again, with the same base
    found *= _FACTOR
    return found ^ found >> _HALF


@cache
def _classes(marks: Marks) -> NDArray[np.uint8]:
    """The class of every character: 0 between words, a letter or digit, or a word by itself. Takes 0.3 s once."""
    characters = map(chr, range(NUM_CODES))
    # Vowels and accents of many scripts are characters of their own, which combine with the letter before.
    letters = (character.isalnum() or unicodedata.category(character)[0] == "M" for character in characters)
    classes = np.fromiter(letters, dtype=np.uint8, count=NUM_CODES)
    for start, end in UNSPACED:
        classes[start : end + 1] *= _ALONE
    if marks == "signs":
        classes[[ord(sign) for sign in SIGNS]] = _ALONE
    if marks == "all":
        classes[[code for code in range(NUM_CODES) if not classes[code] and chr(code).isprintable()]] = _ALONE
        classes[[ord(" "), ord("_")]] = 0
    return classes


@cache
def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(_BASE, exponent, 1 << 64))


@cache
def _powers(length: int) -> tuple[Hashes, Hashes]:
    """BASE^0, BASE^1, ... modulo 2^64, and their inverses."""
    both = (_BASE, pow(_BASE, -1, 1 << 64))
    powers, inverses = (np.full(length, base, dtype=np.uint64) for base in both)
    for values in (powers, inverses):
        values[0] = 1
        np.multiply.accumulate(values, out=values)
    return powers, inverses
