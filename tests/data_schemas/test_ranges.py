"""Values with two ends: every pair of keys and of thresholds, whose least value must not be above the most."""

import pytest

from data_schemas.errors import ConfigError
from data_schemas.key_rules import check_values
from data_schemas.ranges import OTHERS, THRESHOLDS, pairs_of
from data_schemas.stage_keys import stages, with_defaults
from engine.curation.dialog_rules import ANSWER_CHECKS, PROMPT_CHECKS
from engine.curation.document_rules import CHECKS

OF_KEYS = [(stage, *pair) for stage, description in stages().items() for pair in pairs_of(list(description.keys))]
RULES = {**ANSWER_CHECKS, **PROMPT_CHECKS, **CHECKS}
OF_RULES = list(pairs_of(list(RULES)))


def test_these_are_the_pairs_that_there_are():
    """A new pair is found by its name, and is then tried below as well."""
    assert OF_KEYS == [
        ("rejection_sampling", "min_answer_tokens", "max_answer_tokens"),
        ("rejection_sampling", "min_answer_tokens", "max_new_tokens"),
    ]
    assert {name for pair in OF_RULES for name in pair} == set(THRESHOLDS)
    assert len(OF_RULES) == 4 and OTHERS == (("min_answer_tokens", "max_new_tokens"),)
    assert {name: RULES[name][0] for name in THRESHOLDS} == THRESHOLDS


REQUIRED = {"rejection_sampling": {"prompts": ["p"], "policies": ["m"], "reward_model": "m"}}


@pytest.mark.parametrize(("stage", "least", "most"), OF_KEYS)
def test_a_least_key_above_the_most_is_refused_and_one_that_equals_it_is_not(stage, least, most):
    for high in {with_defaults(stage, {})[most], 40} - {None}:
        given = REQUIRED[stage] | ({} if high == with_defaults(stage, {})[most] else {most: high})
        check_values(stage, given | {least: high}, where="here")
        with pytest.raises(ConfigError, match=f"here: {least}={high + 1} is above {most}={high}"):
            check_values(stage, given | {least: high + 1}, where="here")


@pytest.mark.parametrize(("least", "most"), OF_RULES)
def test_a_threshold_beyond_the_default_of_the_other_end_is_refused_where_that_rule_is_on(least, most):
    on = {"document_rules": ["gopher"]}
    low, high = THRESHOLDS[least], THRESHOLDS[most]
    for changed, expected in (
        ({most: low - 0.5}, rf"{least}={low:g} \(its default\) is above {most}={low - 0.5:g},"),
        ({least: high + 1}, rf"{least}={high + 1:g} is above {most}={high:g} \(its default\),"),
    ):
        with pytest.raises(ConfigError, match=f"here: thresholds: {expected}"):
            check_values("curate", on | {"thresholds": changed}, where="here")
    check_values("curate", on | {"thresholds": {most: low}}, where="here")
    check_values("curate", on | {"thresholds": {most: low - 0.5, least: None}}, where="here")
    check_values("curate", {"dialog_rules": [], "thresholds": {most: low - 0.5}}, where="here")  # the other is off
