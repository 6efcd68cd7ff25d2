"""What the stage paraphrase will need: by the sizes of the model that writes, which is not the run's."""

import json
import re

import pytest
import yaml

from data_schemas.cost_request import RowLengths
from pipeline.plan import make_plan
from pipeline.planner.estimate import Planner
from pipeline.planner.memory import memory_of
from pipeline.planner.rows import RowsOfRun
from pipeline.planner.shapes import Shape
from pipeline.planner.work import work_of
from pipeline.recipe.schema import load_recipe
from pipeline.recipe.sections import Launch
from pipeline.state.run import Run
from pipeline.steps import Model, Output, Step
from tests.toy_rows import pair, write_jsonl

SHAPE = Shape(hidden=8, layers=2, heads=2, key_heads=2, head_size=4, feed_forward=16, vocabulary=100)
PROMPTS: RowLengths = {
    "count": 100,
    "samples": [{"shared": 0, "branches": [length], "trained": 0} for length in (4, 16)],
    "problem": "",
}
KEYS = {"num_paraphrases": 2, "back_translations": ["German"], "max_new_tokens": 8, "generation_batch_size": 4}
INPUTS = {"prompts": [Output("prepare_data", "prompts.train")], "paraphrase_llm": [Model("writer")]}
STEP = Step("paraphrase", "paraphrase", None, "paraphrase", KEYS, INPUTS, Launch())  # pyright: ignore[reportArgumentType]


class FakeRun:
    steps = (STEP,)


def work(shape: Shape | None):
    return work_of(STEP, RowsOfRun(FakeRun(), {"prepare_data/prompts.train": PROMPTS}), shape)  # pyright: ignore[reportArgumentType]


def test_a_prompt_has_its_paraphrases_and_two_texts_for_each_back_translation():
    """Prompts of 10 tokens on average; texts as long, at most 8 tokens: 6 on average."""
    found = work(SHAPE)
    assert (found.rows, found.answers, found.new_tokens) == (100, 400, 2400)
    question = 60 + 10
    assert found.tokens == 300 * question + 2400  # both paraphrases share their question
    prefill = SHAPE.forward(tokens=70, logits=1, visible=70 * 71 / 2)
    decode = SHAPE.forward(tokens=6, logits=6, visible=6 * 70 + 6 * 7 / 2)
    assert found.flops == pytest.approx(300 * prefill + 400 * decode)


def test_its_memory_is_the_model_and_the_cache_of_a_batch():
    found = memory_of(STEP, {}, SHAPE, work(SHAPE), parameters=1000, saved_width=2, probe=None)
    assert found is not None and found.weights == 2000
    assert found.kv_cache == SHAPE.cache(4 * (70 + 6), width=2)


def test_an_endpoint_has_texts_and_tokens_and_no_arithmetic_here():
    found = work(None)
    assert (found.answers, found.new_tokens, found.flops) == (400, 2400, 0)


@pytest.fixture
def estimated(tmp_path, monkeypatch):
    """-> the estimate of the step paraphrase and the notes, for a recipe with this section."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pairs.jsonl", [pair(number) for number in range(20)])
    sizes = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 100}
    for name, hidden in (("base", 8), ("writer", 16)):
        (tmp_path / name).mkdir()
        config = sizes | {"hidden_size": hidden, "intermediate_size": 2 * hidden}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "empty").mkdir()

    def estimate(paraphrase, **sections):
        recipe = {"name": "mine", "rounds": 1, "base_model": "base", "launch": {"device": "cpu"}}
        recipe |= {"data": {"preferences": ["pairs.jsonl"], "chosen_as_instructions": 0.5}, "paraphrase": paraphrase}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | sections))
        loaded = load_recipe(tmp_path / "recipe.yaml")
        found = Planner(Run.of(loaded, make_plan(loaded)), None).estimate()
        return {step.step.name: step for step in found.steps}, found.notes

    return estimate


def test_the_sizes_are_those_of_the_model_that_writes(estimated):
    steps, _ = estimated({"paraphrase_llm": "writer"})
    base, writer = steps["round-1.rejection_sampling"], steps["paraphrase"]
    assert base.base_parameters == Shape(8, 2, 2, 2, 4, 16, 100).parameters()
    assert writer.base_parameters == Shape(16, 2, 2, 2, 8, 32, 100).parameters() != base.base_parameters
    assert writer.memory is not None and writer.memory.weights == 4 * writer.base_parameters


def test_an_endpoint_needs_no_memory_and_an_unknown_folder_is_noted(estimated):
    endpoints = {"teacher": {"base_url": "http://127.0.0.1:1/v1", "model": "t"}}
    steps, notes = estimated({"paraphrase_llm": "teacher"}, endpoints=endpoints)
    assert (steps["paraphrase"].memory, steps["paraphrase"].fits, steps["paraphrase"].parameters) == (None, None, 0)
    assert not [note for note in notes if "paraphrase" in note]
    steps, notes = estimated({"paraphrase_llm": "empty"})
    assert steps["paraphrase"].memory is None and steps["round-1.rejection_sampling"].memory is not None
    assert [
        note for note in notes if re.match(r"paraphrase\.paraphrase_llm: the sizes of .*empty are not known: ", note)
    ]
