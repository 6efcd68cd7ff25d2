"""Windows: their prompts, their steps, and how a step is divided among processes."""

import pytest

from data_schemas.errors import ConfigError
from engine.reinforcement.schedule import Schedule


def schedule(**keys: int) -> Schedule:
    values = {
        "num_prompts": 7,
        "num_generations": 2,
        "global_batch_size": 4,
        "steps_per_window": 1,
        "num_iterations": 1,
        "seed": 3,
        "round": 1,
    }
    return Schedule(**values | keys)


def test_an_epoch_takes_each_prompt_once_in_an_order_of_its_own():
    plan = schedule()
    assert (plan.prompts_per_window, plan.windows_per_epoch, plan.rows_per_epoch) == (2, 3, 12)
    epochs = [[number for window in range(e * 3, e * 3 + 3) for number in plan.prompts_of(window)] for e in range(3)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert plan.prompts_of(4) == plan.prompts_of(4)
    assert schedule(round=2).prompts_of(0) != plan.prompts_of(0) or schedule(round=2).prompts_of(1) != plan.prompts_of(
        1
    )


def test_a_window_ends_after_its_steps_times_iterations():
    plan = schedule(steps_per_window=2, num_iterations=3, num_prompts=8)
    assert (plan.steps_of_window, plan.prompts_per_window, plan.windows_per_epoch) == (6, 4, 2)
    assert [plan.window_of(step) for step in (0, 5, 6, 11)] == [0, 0, 1, 1]
    assert [step for step in range(13) if plan.is_boundary(step)] == [0, 6, 12]


def test_micro_batches_are_dealt_to_the_processes_in_turn():
    plan = schedule(steps_per_window=2, num_prompts=8)  # 8 answers a window
    own = [[list(batch) for batch in plan.micro_batches(size=2, rank=rank, processes=2)] for rank in range(2)]
    assert own == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


def test_fewer_prompts_than_one_window_are_an_error():
    with pytest.raises(ConfigError, match="7 training prompts are fewer than the 8 of one window"):
        schedule(global_batch_size=16)
