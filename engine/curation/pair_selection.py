"""Selects the preference rows that train, by strength and similarity. Dropped rows are counted by reason and kept in a
file."""

import itertools
import json
import logging
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from data_schemas.errors import DataError
from data_schemas.files import write_atomically
from data_schemas.rows import Dropped, Message, PreferencePair
from engine.curation.dropped_rows import count_reasons, keep_or_drop
from engine.runtime import notices
from engine.runtime.arguments import PreferenceArguments
from engine.runtime.stage import Stage, format_counts

log = logging.getLogger(__name__)


def select_pairs(
    stage: Stage, arguments: PreferenceArguments, pairs: Sequence[PreferencePair]
) -> tuple[list[PreferencePair], dict[str, int]]:
    """The pairs that train, and metrics with the number of dropped pairs by reason.

    Writes the dropped pairs into dropped_rows.jsonl. Raises DataError where no pair is left.
    """

    def select(pair: PreferencePair) -> PreferencePair | Dropped:
        if pair.strength and arguments.strengths is not None and pair.strength not in arguments.strengths:
            return Dropped("strength")
        return without_similar(pair, arguments.max_similarity)

    kept, dropped = keep_or_drop(pairs, select)
    counts = count_reasons(dropped)
    if dropped and stage.is_main:
        lines = [
            json.dumps({"reason": decision.reason, "row": json.loads(pair.to_json())}) + "\n"
            for decision, pair in dropped
        ]
        write_atomically(stage.folder / "dropped_rows.jsonl", "".join(lines))
        notices.warn(
            log,
            "%d of %d training pairs are dropped (%s); they are in dropped_rows.jsonl",
            len(dropped),
            len(pairs),
            format_counts(counts),
        )
    if not kept:
        raise DataError(
            f"{stage.name}: all {len(pairs)} training pairs are dropped ({format_counts(counts)}); "
            "see strengths and max_similarity"
        )
    return kept, {f"dropped_{reason}": count for reason, count in counts.items()}


def without_similar(pair: PreferencePair, max_similarity: float | None) -> PreferencePair | Dropped:
    """The ranking without the answers that are too similar to a better one; dropped where fewer than two are left."""
    if max_similarity is None:
        return pair
    kept: list[list[Message]] = []
    for answer in pair.ranking:
        if all(similarity(_text(answer), _text(better)) <= max_similarity for better in kept):
            kept.append(answer)
    if len(kept) < 2:
        return Dropped("too_similar")
    return pair if len(kept) == len(pair.ranking) else reranked(pair, kept)


def similarity(one: str, other: str) -> float:
    """1 - edit distance / length of the longer text, ignoring case and the amount of white space; 1 for equal texts."""
    return Levenshtein.normalized_similarity(" ".join(one.casefold().split()), " ".join(other.casefold().split()))


def reranked(pair: PreferencePair, answers: Sequence[list[Message]]) -> PreferencePair:
    """The pair with these answers, best first. The score and source of an answer that is replaced are removed."""
    content = pair.model_dump(exclude_unset=True, exclude={"chosen", "rejected", "between"})
    for side, before, now in (("chosen", pair.chosen, answers[0]), ("rejected", pair.rejected, answers[-1])):
        if before != now:
            for name in (f"{side}_from", f"{side}_score"):
                content.pop(name, None)
    if len(answers) > 2:
        content["between"] = list(answers[1:-1])
    return PreferencePair.model_validate(content | {"chosen": answers[0], "rejected": answers[-1]})


def all_pairs(pair: PreferencePair) -> list[PreferencePair]:
    """Every two answers of a ranking as a separate pair: n (n - 1) / 2 pairs for n answers."""
    if not pair.between:
        return [pair]
    return [reranked(pair, both) for both in itertools.combinations(pair.ranking, 2)]


def _text(answer: Sequence[Message]) -> str:
    return "\n".join(message.content for message in answer)
