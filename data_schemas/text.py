"""Text from users and files: normalised for comparison, and escaped or shortened for printing."""

import difflib
import io
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence

# Control characters can move a terminal's cursor, and those of writing direction reorder what is displayed.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST_SHOWN = 200  # characters of a value in a message


def printable(text: str) -> str:
    """The text with every character that is unsafe in a terminal escaped, as in `\\x1b`."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def listed(names: Iterable[str]) -> str:
    """Names with commas between them; one that is empty, or has a comma or a space at an end, in quotes."""
    plain = re.compile(r"[^\s,]([^,]*[^\s,])?")
    return ", ".join(printable(name if plain.fullmatch(name) else repr(name)) for name in names)


def escape_what_the_terminal_lacks() -> None:
    """From now on, standard output and error show a character that their encoding does not have as its escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def nearest(name: str, valid: Sequence[str]) -> str:
    """`; did you mean 'x'?` where some valid name is near, else the empty string."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def normalise(text: str) -> str:
    """The text without case, width, punctuation and repeated spaces. Prompts that agree in it count as the same."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", " ", folded).strip() or folded.strip()


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: JSON can escape half a character, which neither a file nor a tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


MIN_WORDS, MIN_COLUMNS = 4, 20


def is_distinctive(text: str) -> bool:
    """Whether a text is long enough that one which contains it repeats it: 4 words, or 20 columns of a terminal.

    "Continue." is not, and "What is the capital?" is. A Chinese or Japanese character is two columns wide.
    """
    words = normalise(text)
    num_columns = sum(2 if unicodedata.east_asian_width(character) == "W" else 1 for character in words)
    return len(words.split()) >= MIN_WORDS or num_columns >= MIN_COLUMNS


def shown(value: object) -> str:
    """The value for a message: in one line, and shortened where it is long."""
    try:
        text = repr(value).replace("\n", " ")
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return f"a very long {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN // 2]}… ({len(text)} characters)"
