"""What steps need of the models that score their answers, which may have other sizes than the policy."""

import re

import pytest

from data_schemas.cost_request import RowLengths
from pipeline.planner.rows import RowsOfRun
from pipeline.planner.work import triangle, work_of
from pipeline.recipe.sections import Launch
from pipeline.steps import Output, Reference, Step
from tests.pipeline.planner.conftest import SHAPES

SMALL, LARGE = (SHAPES[name].parameters() for name in ("base", "large"))


def test_a_step_that_scores_with_a_larger_reward_model_needs_its_memory(estimated):
    alike, larger = (estimated(reward_model_from=name)[0] for name in ("base", "large"))
    small, large = alike["round-1.rejection_sampling"], larger["round-1.rejection_sampling"]
    assert small.memory.kv_cache > 0 and small.memory.weights == 4 * SMALL
    # The policy is freed before the reward model is loaded, so only the heavier of the two counts.
    assert (large.memory.weights, large.memory.kv_cache, large.base_parameters) == (4 * LARGE, 0, SMALL)


STAGES = [
    ("rejection_sampling", {"num_answers": 4, "max_new_tokens": 10}),
    ("rl", {"num_generations": 4, "max_completion_length": 10, "global_batch_size": 8, "max_steps": 4}),
]


@pytest.mark.parametrize(("stage", "keys"), STAGES)
def test_every_answer_is_scored_by_every_model_with_its_own_sizes(stage, keys):
    """8 prompts of 10 tokens, or 4 steps of 2 of them; of answers without data half of the longest is assumed."""
    prompts: RowLengths = {"count": 8, "samples": [{"shared": 0, "branches": [10], "trained": 0}], "problem": ""}
    given: list[Reference] = [Output("prepare_data", "prompts.train")]
    step = Step(stage, stage, None, stage, keys, {"prompts": given, "train_data": given}, Launch())

    class Steps:
        steps = (step,)

    rows = RowsOfRun(Steps(), {"prepare_data/prompts.train": prompts})  # pyright: ignore[reportArgumentType]
    both = [SHAPES["base"], SHAPES["large"]]
    alone, scored = (work_of(step, rows, SHAPES["base"], scorers) for scorers in ([], both))
    once = sum(shape.forward(tokens=15, logits=0, visible=triangle(15)) for shape in both)
    assert alone.answers == 32 and scored.flops - alone.flops == pytest.approx(32 * once)


def test_a_judge_from_outside_has_its_own_sizes_or_a_note_that_they_are_not_known(estimated):
    steps, notes = estimated(evaluate_policy={"judge_model": "large"})
    assert steps["round-0.evaluate_policy"].memory.weights == 4 * LARGE
    assert not [note for note in notes if "sizes" in note]
    steps, notes = estimated(evaluate_policy={"judge_model": "empty"})
    assert steps["round-0.evaluate_policy"].memory.weights == 4 * SMALL
    assert len([note for note in notes if re.match(r"evaluate_policy\.judge_model: the sizes of .*empty", note)]) == 1


def test_rl_holds_its_reward_model_and_its_reference_beside_the_policy(estimated):
    stages = ["annotate", "reward_model", "rl"]
    keys = {"round_stages": stages, "reward_model_from": "large"}
    memory = estimated(**keys)[0]["round-1.rl"].memory
    assert (memory.weights, memory.reference) == (4 * SMALL + 4 * LARGE, 4 * SMALL)
    # Without its adapters the policy is the reference, unless the recipe names another model.
    adapters = {"use_peft": True}
    assert estimated(**keys, rl=adapters)[0]["round-1.rl"].memory.reference == 0
    assert estimated(**keys, rl=adapters | {"reference_model": "base"})[0]["round-1.rl"].memory.reference > 0
