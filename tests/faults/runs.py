"""A short run of toy steps and a short training, and what a failed call printed."""

from pathlib import Path
from typing import Any

from tests.pipeline.toy_house import World
from tests.stage_runs import metrics_of, weights_of

NO_ROUND = ("run", "toy.yaml", "--set", "rounds=0")
STEPS = ["prepare_data", "prepare_base", "round-0.sft", "round-0.evaluate_policy"]


TRAINING = {"max_steps": 4, "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "learning_rate": 3e-3}


def training(tiny_model: Path, rows: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": tiny_model,
        "train_data": [rows / "conversations.jsonl"],
        "eval_data": [rows / "conversations_eval.jsonl"],
        **TRAINING,
    }


def assert_same_model(one: Path, other: Path) -> None:
    first, second = weights_of(one / "model"), weights_of(other / "model")
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)
    wanted = {key: value for key, value in metrics_of(other).items() if key[1] in ("loss", "eval_loss")}
    assert {key: metrics_of(one)[key] for key in wanted} == wanted


def states(world: World) -> set[str]:
    return set(world.states().values())


def assert_one_line(said: tuple[int, str, str], code: int, *parts: str) -> None:
    assert said[0] == code, said
    assert said[2].count("\n") == 1, said
    assert said[2].startswith("error: ")
    for part in parts:
        assert part in said[2]
