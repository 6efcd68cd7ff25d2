"""A table of toy keys, the plan of a toy recipe, and a run of toy stages."""

import pytest

from data_schemas import stage_keys
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from tests.pipeline.fake_stages import build_inputs, write_keys
from tests.pipeline.toy_house import World


@pytest.fixture
def plan(tmp_path):
    recipe_file = build_inputs(tmp_path / "work")
    return lambda *overrides: {step.name: step for step in make_plan(load_recipe(recipe_file, overrides))}


@pytest.fixture
def toy_keys(tmp_path, monkeypatch):
    """The stages have the keys of `fake_stages.STAGES`."""
    monkeypatch.setattr(stage_keys, "KEYS_FILE", write_keys(tmp_path / "keys.json"))
    stage_keys.stages.cache_clear()
    yield
    stage_keys.stages.cache_clear()


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)
