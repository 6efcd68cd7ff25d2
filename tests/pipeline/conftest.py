"""The plan of a toy recipe, and a run of toy stages."""

import pytest

from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from tests.pipeline.fake_stages import build_inputs
from tests.pipeline.toy_house import World


@pytest.fixture
def plan(tmp_path):
    recipe_file = build_inputs(tmp_path / "work")
    return lambda *overrides: {step.name: step for step in make_plan(load_recipe(recipe_file, overrides))}


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)
