"""What the stage paraphrase will need: by the sizes of the model that writes, which is not the run's."""

import re

import pytest

from data_schemas.cost_request import RowLengths
from pipeline.planner.memory import memory_of
from pipeline.planner.rows import RowsOfRun
from pipeline.planner.shapes import Shape
from pipeline.planner.work import work_of
from pipeline.recipe.sections import Launch
from pipeline.steps import Model, Output, Step
from tests.pipeline.planner.conftest import SHAPES

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


def test_the_sizes_are_those_of_the_model_that_writes(estimated):
    steps, _ = estimated(paraphrase={"paraphrase_llm": "writer"})
    base, writer = steps["round-1.rejection_sampling"], steps["paraphrase"]
    assert base.base_parameters == SHAPES["base"].parameters()
    assert writer.base_parameters == SHAPES["writer"].parameters() != base.base_parameters
    assert writer.memory is not None and writer.memory.weights == 4 * writer.base_parameters


def test_an_endpoint_needs_no_memory_and_an_unknown_folder_is_noted(estimated):
    endpoints = {"teacher": {"base_url": "http://127.0.0.1:1/v1", "model": "t"}}
    steps, notes = estimated(paraphrase={"paraphrase_llm": "teacher"}, endpoints=endpoints)
    assert (steps["paraphrase"].memory, steps["paraphrase"].fits, steps["paraphrase"].parameters) == (None, None, 0)
    assert not [note for note in notes if "paraphrase" in note]
    steps, notes = estimated(paraphrase={"paraphrase_llm": "empty"})
    assert steps["paraphrase"].memory is None and steps["round-1.rejection_sampling"].memory is not None
    assert [
        note for note in notes if re.match(r"paraphrase\.paraphrase_llm: the sizes of .*empty are not known: ", note)
    ]
