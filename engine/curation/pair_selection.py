"""Which preference rows train: by strength and similarity, each drop for a counted reason and kept in a file."""

import itertools
import json
import logging
from collections import Counter
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from data_schemas.errors import ConfigError
from data_schemas.files import write_atomically
from data_schemas.rows import Message, PreferencePair
from engine.runtime.arguments import PreferenceArguments
from engine.runtime.stage import Stage, format_counts

log = logging.getLogger(__name__)


def select_pairs(
    stage: Stage, arguments: PreferenceArguments, pairs: Sequence[PreferencePair]
) -> tuple[list[PreferencePair], dict[str, int]]:
    """The pairs that train, and how many were dropped for which reason; those go into dropped_rows.jsonl.

    Raises ConfigError where none is left.
    """
    kept: list[PreferencePair] = []
    dropped: list[tuple[str, PreferencePair]] = []
    for pair in pairs:
        if pair.strength and arguments.strengths is not None and pair.strength not in arguments.strengths:
            dropped.append(("strength", pair))
            continue
        distinct = without_similar(pair, arguments.max_similarity)
        if distinct is None:
            dropped.append(("too_similar", pair))
        else:
            kept.append(distinct)
    counts = Counter(reason for reason, _ in dropped)
    if dropped and stage.is_main:
        lines = [json.dumps({"reason": reason, "row": json.loads(pair.to_json())}) + "\n" for reason, pair in dropped]
        write_atomically(stage.folder / "dropped_rows.jsonl", "".join(lines))
        log.info("%d of %d training pairs dropped: %s", len(dropped), len(pairs), dict(counts))
    if not kept:
        raise ConfigError(
            f"{stage.name}: all {len(pairs)} training pairs are dropped ({format_counts(counts)}); "
            "see strengths and max_similarity"
        )
    return kept, {f"dropped_{reason}": count for reason, count in counts.items()}


def without_similar(pair: PreferencePair, max_similarity: float | None) -> PreferencePair | None:
    """The ranking without answers too alike to a better one; None where fewer than two are left."""
    if max_similarity is None:
        return pair
    kept: list[list[Message]] = []
    for answer in pair.ranking:
        if all(similarity(_text(answer), _text(better)) <= max_similarity for better in kept):
            kept.append(answer)
    if len(kept) < 2:
        return None
    return pair if len(kept) == len(pair.ranking) else reranked(pair, kept)


def similarity(one: str, other: str) -> float:
    """1 - edits / characters of the longer text, case and white space levelled: 1 for equal texts."""
    return Levenshtein.normalized_similarity(" ".join(one.casefold().split()), " ".join(other.casefold().split()))


def reranked(pair: PreferencePair, answers: Sequence[list[Message]]) -> PreferencePair:
    """The pair with these answers, best first. Scores and sources stay with the answers they belong to."""
    content = pair.model_dump(exclude_unset=True, exclude={"chosen", "rejected", "between"})
    for side, before, now in (("chosen", pair.chosen, answers[0]), ("rejected", pair.rejected, answers[-1])):
        if before != now:
            for name in (f"{side}_from", f"{side}_score"):
                content.pop(name, None)
    if len(answers) > 2:
        content["between"] = list(answers[1:-1])
    return PreferencePair.model_validate(content | {"chosen": answers[0], "rejected": answers[-1]})


def all_pairs(pair: PreferencePair) -> list[PreferencePair]:
    """Every two answers of a ranking as a pair of their own: n (n - 1) / 2."""
    if not pair.between:
        return [pair]
    return [reranked(pair, both) for both in itertools.combinations(pair.ranking, 2)]


def _text(answer: Sequence[Message]) -> str:
    return "\n".join(message.content for message in answer)
