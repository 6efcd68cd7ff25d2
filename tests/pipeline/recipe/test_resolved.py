"""A recipe is typed once, when it is loaded."""

import pytest

from data_schemas.errors import ConfigError
from pipeline.plan import make_plan
from pipeline.recipe import schema, sections
from pipeline.recipe.names import all_sections
from pipeline.recipe.schema import load_recipe
from tests.pipeline.fake_stages import build_inputs

LAYERS = (
    "dpo.variants=[{beta: 0.2}, {beta: 0.3}]",
    "by_round.1.dpo.max_length=64",
    "by_round.2.dpo.variants=[{beta: 0.4}, {beta: 0.5, dpo_batches: 2}]",
    "by_round.0.sft.num_train_epochs=3",
)


def test_every_layer_of_a_section_is_typed_once_and_the_plan_types_nothing(tmp_path, monkeypatch):
    recipe_file, typed, checked = build_inputs(tmp_path / "work"), [], []
    type_section, check_keys = sections.type_section, sections.check_keys

    def counted_section(*arguments, where):
        typed.append(where.removeprefix(f"{recipe_file}: "))
        return type_section(*arguments, where=where)

    def counted_keys(*arguments, where):
        checked.append(where)
        return check_keys(*arguments, where=where)

    monkeypatch.setattr(schema, "type_section", counted_section)
    monkeypatch.setattr(sections, "check_keys", counted_keys)
    recipe = load_recipe(recipe_file, ("pretrain={}", *LAYERS))
    assert sorted(typed) == sorted([*all_sections(), "by_round.0.sft", "by_round.1.dpo", "by_round.2.dpo"])
    of_sections = [where for where in checked if not where.endswith(": defaults")]
    assert len(of_sections) == len(typed) + 4  # the variants
    assert len(make_plan(recipe)) > 16
    assert len(typed) == len(all_sections()) + 3 and len(of_sections) == len(typed) + 4
    assert [where for where in checked if not where.endswith(": defaults")] == of_sections


def test_a_section_has_its_keys_and_variants_in_every_round(tmp_path):
    recipe = load_recipe(build_inputs(tmp_path / "work"), ("dpo.beta=0.1", "dpo_batches=3", *LAYERS))
    first, second = recipe.section("dpo", 1), recipe.section("dpo", 2)
    assert (first.keys["beta"], first.keys["max_length"]) == (0.1, 64)
    assert [(v.keys["beta"], v.keys["max_length"], v.dpo_batches) for v in first.variants] == [
        (0.2, 64, 3),
        (0.3, 64, 3),
    ]
    assert [(v.keys["beta"], v.dpo_batches) for v in second.variants] == [(0.4, 3), (0.5, 2)]
    assert "max_length" not in second.keys
    (only,) = recipe.section("sft", 0).variants
    assert dict(only.keys) == {"seed": 0, "report_to": "none", "num_train_epochs": 3.0}


def test_resolved_values_cannot_be_changed(tmp_path):
    recipe = load_recipe(build_inputs(tmp_path / "work"))
    with pytest.raises(TypeError):
        recipe.section("dpo", 1).keys["beta"] = 1  # pyright: ignore[reportIndexIssue]
    with pytest.raises(AttributeError):
        recipe.section("dpo", 1).launch_ = None  # pyright: ignore[reportAttributeAccessIssue]


def test_an_average_is_checked_only_in_rounds_that_train_its_section(tmp_path):
    recipe_file = build_inputs(tmp_path / "work")
    by_round = ("rounds=1", "dpo.average={weights: greedy}", "by_round.1.dpo.variants=[{beta: 0.2}, {beta: 0.3}]")
    assert dict(load_recipe(recipe_file, by_round).section("dpo", 1).average) == {"weights": "greedy"}
    with pytest.raises(ConfigError, match=r"dpo\.average: there is nothing to average"):
        load_recipe(recipe_file, ("rounds=2", *by_round[1:]))


def test_reward_models_that_are_not_refitted_need_no_variants_in_later_rounds(tmp_path):
    overrides = ("reward_model.average={weights: greedy}", "by_round.1.reward_model.variants=[{seed: 1}, {seed: 2}]")
    recipe_file = build_inputs(tmp_path / "work")
    steps = {step.name for step in make_plan(load_recipe(recipe_file, ("refit_reward_model=false", *overrides)))}
    assert {"round-1.reward_model.1", "round-1.reward_model"} <= steps
    with pytest.raises(ConfigError, match=r"reward_model\.average: there is nothing to average"):
        load_recipe(recipe_file, overrides)
