"""Values that are the least and the most of one measure: a least value above the most leaves nothing, and is refused.

The pairs are found by their names, as min_x and max_x, so a new pair is checked without a new rule. Needs no torch.
"""

from collections.abc import Collection, Iterator

from data_schemas.errors import ConfigError
from data_schemas.stage_keys import Values

ENDS = {"min": "max", "short": "long"}  # words in the names of the least and the most
# Pairs that differ in more than these words: an answer that is cut off at the one never has as many as the other.
OTHERS = (("min_answer_tokens", "max_new_tokens"),)
# The defaults of curation's rules that have two ends, in words; of documents they are Gopher's (arXiv 2112.11446, A1).
THRESHOLDS: dict[str, float] = {
    "short_answer": 1,
    "long_answer": 8192,
    "short_prompt": 1,
    "long_prompt": 16_384,
    "gopher_min_words": 50,
    "gopher_max_words": 100_000,
    "gopher_min_word_length": 3,  # characters
    "gopher_max_word_length": 10,
}


def pairs_of(names: Collection[str]) -> Iterator[tuple[str, str]]:
    """The names (least, most) that belong together, among these."""
    for least in names:
        words = least.split("_")
        most = "_".join(ENDS.get(word, word) for word in words)
        if most != least and most in names:
            yield least, most
    yield from (pair for pair in OTHERS if set(pair) <= set(names))


def check_ranges(values: Values, *, given: Collection[str], where: str = "") -> None:
    """Raises ConfigError for a least value above the most. `values` include the defaults, `given` are the names that
    the user gave, and None is no limit. `where` begins the message."""
    for least, most in pairs_of(list(values)):
        low, high = values[least], values[most]
        if low is not None and high is not None and low > high:
            ends = [
                f"{name}={value:g}{'' if name in given else ' (its default)'}"
                for name, value in ((least, low), (most, high))
            ]
            raise ConfigError(f"{where}{ends[0]} is above {ends[1]}, so that nothing would be kept; change one of them")
