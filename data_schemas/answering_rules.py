"""Which values are valid together in the stages that answer prompts and compare the answers."""

import re

from data_schemas.errors import ConfigError
from data_schemas.stage_keys import Values, with_defaults
from data_schemas.text import shown


def one_of(values: Values, *names: str) -> None:
    """Raises ConfigError where not exactly one of these keys has a value."""
    given = [name for name in names if values[name]]
    if len(given) > 1:
        raise ConfigError(f"{given[0]} and {given[1]} are both given; set one of them to null")
    if not given:
        raise ConfigError(f"{', '.join(names[:-1])} or {names[-1]} is missing")


def check_people(stage: str, values: Values) -> None:
    """Rules of the stages in which people compare answers."""
    names = values["people"] or []
    defaults = with_defaults(stage, {})
    if not names and any(values[key] != defaults[key] for key in ("people_budget", "people_overlap")):
        raise ConfigError("people is missing: the names of those who compare answers, as in people: [ana, ben]")
    for name in names:  # a page and a file bear it
        if not re.fullmatch("[A-Za-z0-9_-]{1,40}", name):
            raise ConfigError(f"people={shown(name)}: expected a name of at most 40 letters, digits, - and _")
    if len({name.lower() for name in names}) < len(names):
        raise ConfigError(f"people={shown(names)}: two of the names are the same; give each person a separate one")


def _prompt_order(values: Values) -> None:
    """Rules of the stages that draw a round's prompts."""
    if values["earlier_candidates"] and values["prompt_order"] == "random":
        raise ConfigError("earlier_candidates is for prompt_order: hardest_first; set both or neither")
    if values["prompt_order"] == "hardest_first" and values["num_prompts"] is None:
        raise ConfigError(
            "prompt_order: hardest_first has nothing to choose where all prompts are drawn; set num_prompts"
        )


def check_annotation(values: Values) -> None:
    """Raises ConfigError where keys of annotate are not valid together."""
    _prompt_order(values)
    models = ("annotator_function", "annotator_models", "annotator_llm")
    check_people("annotate", values)
    if values["people"] and not values["people_budget"]:
        if named := [name for name in models if values[name]]:
            raise ConfigError(
                f"people and {named[0]} are both given; set people_budget, how many comparisons go to people after "
                f"{named[0]} has judged, or leave one of them out"
            )
        if values["num_answers"] != 2:
            raise ConfigError(f"people compare two answers to each prompt; num_answers={values['num_answers']}: set 2")
    else:
        one_of(values, *models)
    if values["second_opinion"] and not values["people_budget"]:
        raise ConfigError("second_opinion chooses what people compare; set people and people_budget, or leave it out")
    number, policies, margins = values["num_answers"], _num_policies(values), values["strength_margins"]
    if number < max(2, policies):
        raise ConfigError(
            f"num_answers={number} is too few to compare answers of {policies} policies; try {max(2, policies)}"
        )
    if len(margins) != 3 or sorted(margins, reverse=True) != margins:
        raise ConfigError(f"strength_margins={margins}: expected three falling score differences")
    if values["keep_rankings"] and values["rejected"] == "random":
        raise ConfigError("keep_rankings: true keeps all answers in order; it does not support rejected: random")


def _num_policies(values: Values) -> int:
    return len(values["policies"] or []) + len(values["other_policies"] or [])


def check_rejection_sampling(values: Values) -> None:
    """Raises ConfigError where keys of rejection_sampling are not valid together."""
    _prompt_order(values)
    number, least = values["num_answers"], max(2, _num_policies(values))
    if number < least:
        raise ConfigError(f"num_answers={number} is too few to choose the best answer among them; try {least}")
    if (values["keep_by"] == "min_score") != (values["min_score"] is not None):
        raise ConfigError("min_score and keep_by: min_score need each other; set both or neither")
    if bool(values["other_reward_models"]) != (values["vote"] is not None):
        raise ConfigError(
            "vote and other_reward_models need each other; set both or neither"
            if values["other_reward_models"]
            else f"vote={values['vote']} has one reward model to ask; list several, which differ, as variants of the "
            "section reward_model in every round, or as other_reward_models"
        )
    limits = values["temperature_range"]
    if limits is not None and not (len(limits) == 2 and 0 <= limits[0] <= limits[1]):
        raise ConfigError(f"temperature_range={limits}: expected [lowest, highest]")
