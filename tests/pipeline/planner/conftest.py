"""Estimates of a small recipe whose models have known sizes."""

import json

import pytest
import yaml

from pipeline.plan import make_plan
from pipeline.planner.estimate import Planner
from pipeline.planner.shapes import Shape
from pipeline.recipe.schema import load_recipe
from pipeline.state.run import Run
from tests.toy_rows import pair, write_jsonl

SHAPES = {
    name: Shape(hidden, layers=2, heads=2, key_heads=2, head_size=hidden // 2, feed_forward=2 * hidden, vocabulary=100)
    for name, hidden in (("base", 8), ("writer", 16), ("large", 64))
}


@pytest.fixture
def estimated(tmp_path, monkeypatch):
    """-> the estimates of the steps by name and the notes, for a recipe with these keys on the model `base`. Beside it
    are the other models of SHAPES, and the folder `empty`."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pairs.jsonl", [pair(number) for number in range(20)])
    for name, shape in SHAPES.items():
        (tmp_path / name).mkdir()
        config = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 100}
        config |= {"hidden_size": shape.hidden, "intermediate_size": shape.feed_forward}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "empty").mkdir()

    def estimate(**keys):
        recipe = {"name": "mine", "rounds": 1, "base_model": "base", "launch": {"device": "cpu"}}
        recipe |= {"data": {"preferences": ["pairs.jsonl"], "chosen_as_instructions": 0.5}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | keys))
        loaded = load_recipe(tmp_path / "recipe.yaml")
        found = Planner(Run.of(loaded, make_plan(loaded)), None).estimate()
        return {step.step.name: step for step in found.steps}, found.notes

    return estimate
