"""Text from outside: normalised for comparison, made safe to print."""

import re
import unicodedata

# Control characters move a terminal's cursor or more, those of writing direction reorder what is shown.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text as it may be shown in a terminal: what is unsafe there stands as `\\x1b`."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def normalise(text: str) -> str:
    """Case, width and everything but letters and digits levelled out: what counts as the same prompt."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", " ", folded).strip() or folded.strip()
