"""Easy data augmentation (Wei and Zou 2019, arXiv 1901.11196): variants of prompts by small random changes of words.

The four operations of the paper, each on a share alpha of the words: synonym replacement, random insertion of a
synonym, random swap, random deletion. Different from there, synonyms are those of a file of the user's and not
WordNet's, white space is kept, and a variant is a function of the prompt's id and a seed. Only for prompts, whose
answers are then sampled: changed answers would be wrong ones. The paper finds little gain for pretrained models.
Needs no torch.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

ALPHA = 0.1  # share of the words that an operation changes
Synonyms = Mapping[str, Sequence[str]]  # by the word in lower case
Words = list[str]  # with what is between them: word, space, word, space, ..., word
_PARTS = re.compile(r"(\s+)")
_CORE = re.compile(r"\w(?:.*\w)?")


@dataclass(frozen=True)
class Variant:
    """A changed prompt."""

    text: str
    operation: str
    original: str  # the id of the prompt that it is from


def variants(
    prompt: str, row_id: str, num_variants: int, *, synonyms: Synonyms, alpha: float = ALPHA, seed: int = 0
) -> Iterator[Variant]:
    """Up to this many variants of the prompt, all different, by the four operations in turn.

    Yields fewer where the operations find nothing to change: without synonyms two of them never do.
    """
    seen = {prompt}
    for number in range(num_variants):
        name, operation = OPERATIONS[number % len(OPERATIONS)]
        words = _PARTS.split(prompt)
        num_changes = max(1, int(alpha * (len(words) + 1) / 2))
        operation(words, num_changes, synonyms, random.Random(f"{seed} {row_id} {number}"))
        text = "".join(words)
        if text not in seen and text.strip():
            seen.add(text)
            yield Variant(text, name, row_id)


def _replace(words: Words, num_changes: int, synonyms: Synonyms, source: random.Random) -> None:
    """Replaces words by synonyms."""
    known = [place for place in range(0, len(words), 2) if _synonyms_of(words[place], synonyms)]
    for place in source.sample(known, min(num_changes, len(known))):
        other = source.choice(_synonyms_of(words[place], synonyms))
        words[place] = _CORE.sub(lambda found, other=other: _with_case(other, found[0]), words[place], count=1)


def _insert(words: Words, num_changes: int, synonyms: Synonyms, source: random.Random) -> None:
    """Inserts synonyms of words that are there at random places."""
    known = [words[place] for place in range(0, len(words), 2) if _synonyms_of(words[place], synonyms)]
    for _ in range(num_changes if known else 0):
        other = source.choice(_synonyms_of(source.choice(known), synonyms))
        place = 2 * source.randrange(len(words) // 2 + 1)
        words[place:place] = [other, " "]


def _swap(words: Words, num_changes: int, synonyms: Synonyms, source: random.Random) -> None:
    """Swaps two words at random places."""
    if len(words) < 3:
        return
    for _ in range(num_changes):
        one, other = source.sample(range(0, len(words), 2), 2)
        words[one], words[other] = words[other], words[one]


def _delete(words: Words, num_changes: int, synonyms: Synonyms, source: random.Random) -> None:
    """Deletes words, but for the last one."""
    for _ in range(min(num_changes, len(words) // 2)):
        place = 2 * source.randrange(len(words) // 2 + 1)
        start = min(place, len(words) - 2)
        del words[start : start + 2]


def _synonyms_of(word: str, synonyms: Synonyms) -> Sequence[str]:
    core = _CORE.search(word)
    return synonyms.get(core[0].lower(), ()) if core else ()


def _with_case(word: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


OPERATIONS: tuple[tuple[str, Callable[[Words, int, Synonyms, random.Random], None]], ...] = (
    ("synonym_replacement", _replace),
    ("random_insertion", _insert),
    ("random_swap", _swap),
    ("random_deletion", _delete),
)
