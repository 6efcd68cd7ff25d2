"""Conversions of preferences: pairs and their ratings, rankings, and dialogs that are compared at every turn.

dialects.py has the list of dialects, and labels.py the rows of KTO, of which pairs are made.
"""

from collections.abc import Callable

from data_schemas.errors import WrongValue
from data_schemas.formats import describe, is_number
from data_schemas.messages import Fields, messages_of, unpacked
from data_schemas.questions import Question, after_system, answers, question, spoken_dialog, system_of, text_of

RATING_NAMES = ("score", "rating", "reward")
# Columns with the numbers of chosen and of rejected.
RATINGS = tuple(
    columns
    for name in RATING_NAMES
    for columns in (
        (f"chosen_{name}", f"rejected_{name}"),
        (f"{name}_chosen", f"{name}_rejected"),
        (f"chosen-{name}", f"rejected-{name}"),
    )
)
BOTH_RATINGS = ("score", "scores", "rating", "ratings")  # one column with both numbers as a list
PAIR_COLUMNS = ("system", "edited", "between", *(column for columns in RATINGS for column in columns), *BOTH_RATINGS)


def pair(raw: Fields, asked: Question) -> Fields:
    """The fields of a pair; of a ranking where the row has an edited answer, or answers between the two."""
    listed = raw.get("between") or []
    if not isinstance(listed, list):
        raise WrongValue("between", describe(listed), "a list of answers")
    edited = [("edited", raw["edited"])] if raw.get("edited") else []
    between = [("between", answer) for answer in listed]
    best_first = answers(asked, [*edited, ("chosen", raw["chosen"]), *between, ("rejected", raw["rejected"])])
    if edited and best_first[0] == best_first[1]:  # the edit changed nothing
        best_first = best_first[1:]
    rated = _rated(raw)
    return _ranking(asked.messages, best_first, "chosen, rejected") | ({} if edited else rated)


def two_dialogs(raw: Fields) -> Fields:
    """The fields of a pair of complete dialogs, which differ in their last answer."""
    chosen, rejected = _complete_dialog(raw, "chosen"), _complete_dialog(raw, "rejected")
    if chosen[:-1] != rejected[:-1]:
        same = 0
        while chosen[same : same + 1] == rejected[same : same + 1]:
            same += 1
        raise WrongValue(
            "chosen, rejected",
            f"two different prompts (they differ from message {same + 1} on)",
            "dialogs that differ only in their last answer",
        )
    return {"prompt": after_system(raw, chosen[:-1]), "chosen": chosen[-1:], "rejected": rejected[-1:]} | _rated(raw)


def compared_turns(raw: Fields, carried: Callable[[Fields], Fields]) -> list[Fields]:
    """A dialog with a comparison at every turn; each turn continues from the best answer of the one before.

    `carried` gives the columns of a turn that are fields of its row.
    """
    if not isinstance(raw["turns"], list) or not raw["turns"]:
        raise WrongValue("turns", describe(raw["turns"]), "a list of turns with prompt, chosen and rejected")
    dialog = system_of(raw)
    rows: list[Fields] = []
    for place, turn in enumerate(raw["turns"]):
        if not isinstance(turn, dict) or any(not turn.get(name) for name in ("prompt", "chosen", "rejected")):
            raise WrongValue(f"turns.{place}", describe(turn), "a turn with prompt, chosen and rejected")
        asked = question(turn)
        fields = pair(turn, Question(dialog + asked.messages, *asked[1:]))
        dialog = fields["prompt"] + fields["chosen"]
        rows.append(carried(turn) | fields)
    return rows


def ranked(raw: Fields, column: str, asked: Question) -> Fields:
    """The fields of a ranking from a list of answers, the best first."""
    listed = raw[column]
    if not isinstance(listed, list) or len(listed) < 2:
        raise WrongValue(column, describe(listed), "a list of at least two answers, the best first")
    return _ranking(asked.messages, answers(asked, [(column, answer) for answer in listed]), column)


def scored(raw: Fields, column: str = "scores", *, lowest_is_best: bool = False) -> Fields:
    """The fields of a ranking from responses with a number each: scores, or ranks with 1 for the best.

    Of answers with the same number the first is kept: a ranking has no ties.
    """
    responses, numbers = raw["responses"], raw[column]
    if not isinstance(responses, list) or not isinstance(numbers, list) or len(responses) != len(numbers):
        raise WrongValue(column, describe(numbers), f"a number for each response of {describe(responses)}")
    for number in numbers:
        if not is_number(number):
            raise WrongValue(column, describe(number), "finite numbers")
    best = {number: response for response, number in zip(reversed(responses), reversed(numbers), strict=True)}
    if len(best) < 2:
        raise WrongValue(column, f"{len(best)} different {column}", "at least two, or nothing is better than anything")
    order = sorted(best, reverse=not lowest_is_best)
    ranking = ranked({"responses": [best[number] for number in order]}, "responses", question(raw))
    if lowest_is_best:
        return ranking
    return ranking | {"chosen_score": float(order[0]), "rejected_score": float(order[-1])}


def _ranking(prompt: list[Fields], best_first: list[list[Fields]], columns: str) -> Fields:
    """The fields of a ranking that compares one turn.

    Messages that all answers share up to a user turn belong to the prompt. Raises WrongValue where a user turn follows
    the turn in which the answers differ: what comes after it no longer answers the same prompt.
    """
    best, same = best_first[0], 0
    while all(len(answer) > same and answer[same] == best[same] for answer in best_first):
        same += 1
    shared = [place for place, turn in enumerate(best[:same]) if turn.get("role") == "user"]
    start = shared[-1] + 1 if shared else 0
    turns = [answer[start:] for answer in best_first]
    if any(turn.get("role") == "user" for answer in turns for turn in answer):
        found = f"answers of several turns, which differ from message {same + 1} on"
        raise WrongValue(columns, found, "answers that differ only after the last turn of the user")
    fields = {"prompt": prompt + best[:start], "chosen": turns[0], "rejected": turns[-1]}
    return fields | ({"between": turns[1:-1]} if turns[1:-1] else {})


def _complete_dialog(raw: Fields, column: str) -> list[Fields]:
    value = unpacked(raw[column])
    if not isinstance(value, str):
        return messages_of(value, column)
    messages = spoken_dialog(text_of(raw, column))
    if messages is None:
        expected = "a dialog of '\\n\\nHuman: …\\n\\nAssistant: …' (or a prompt column beside it)"
        raise WrongValue(column, describe(raw[column]), expected)
    return messages


def _rated(raw: Fields) -> Fields:
    """The scores of chosen and rejected by the row's ratings.

    Where the row has no field `strength`, equal ratings make it the weakest, and ratings that say the opposite of
    the order raise WrongValue.
    """
    fields: Fields = {}
    for columns, values in _ratings(raw):
        numbers = [_number(value, column) for column, value in zip(columns, values, strict=True)]
        for side, number in zip(("chosen_score", "rejected_score"), numbers, strict=True):
            if number is not None and raw.get(side) is None:
                fields.setdefault(side, number)
        chosen, rejected = numbers
        if chosen is None or rejected is None or raw.get("strength") is not None:
            continue
        if rejected > chosen:
            raise WrongValue(
                ", ".join(dict.fromkeys(columns)),
                f"{chosen:g} for chosen and {rejected:g} for rejected",
                "chosen to be rated at least as high as rejected",
            )
        if rejected == chosen:
            fields["strength"] = "marginally_better"
    return fields


def _ratings(raw: Fields) -> list[tuple[tuple[str, str], tuple[object, object]]]:
    """The columns with the ratings of chosen and rejected, and their values."""
    found: list[tuple[tuple[str, str], tuple[object, object]]] = [
        ((chosen, rejected), (raw.get(chosen), raw.get(rejected)))
        for chosen, rejected in RATINGS
        if raw.get(chosen) is not None or raw.get(rejected) is not None
    ]
    for column in BOTH_RATINGS:
        if isinstance(listed := raw.get(column), list):
            if len(listed) != 2:
                raise WrongValue(column, describe(listed), "two numbers, of chosen and of rejected")
            found.append(((column, column), (listed[0], listed[1])))
    return found


def _number(value: object, column: str) -> float | None:
    """The number of a rating, which CSV has as text; None for none."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise WrongValue(column, describe(value), "a number") from None
    if not isinstance(value, int | float) or not is_number(value):
        raise WrongValue(column, describe(value), "a finite number")
    return float(value)
