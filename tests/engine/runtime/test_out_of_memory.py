"""A device that runs out of memory, simulated in tiny models that refuse more rows than a limit."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaModel

from data_schemas.artifact import Artifact
from data_schemas.errors import RunAgain
from data_schemas.files import read_json
from engine.runtime.arguments import resolve_batch
from engine.runtime.out_of_memory import half_of, halve_on_out_of_memory, remembered
from engine.runtime.outcome import failed
from engine.runtime.preemption import Preempted
from tests.patience import PATIENCE
from tests.stage_runs import call_stage, metrics_of, run_here, stage_keys, weights_of
from tests.toy_rows import write_jsonl

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.2 GiB is free"
)
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
SGD = {"optim": "sgd", "learning_rate": 0.05, "max_steps": 3, "eval_steps": 3}
KINDS = {"sft": "conversations", "reward_model": "pairs", "dpo": "pairs"}


@pytest.fixture
def plant(monkeypatch) -> Callable[..., None]:
    """plant(4, in_training=True): more than 4 rows at a time fill the memory of every Llama, from a given pass on."""

    def plant_it(most: int, *, in_training: bool, error: Exception | None = None, after: int = 0) -> None:
        whole, passes = LlamaModel.forward, [0]

        def forward(self: Any, input_ids: Any = None, *args: Any, **keys: Any) -> Any:
            too_many = self.training == in_training and len(input_ids) > most
            passes[0] += too_many
            if too_many and passes[0] > after:
                raise error or torch.OutOfMemoryError(CUDA)
            return whole(self, input_ids, *args, **keys)

        monkeypatch.setattr(LlamaModel, "forward", forward)

    return plant_it


def data(rows: Path, stage: str) -> dict[str, Any]:
    kind = KINDS[stage]
    keys = {"train_data": [rows / f"{kind}.jsonl"], "eval_data": [rows / f"{kind}_eval.jsonl"]} | SGD
    return keys | {"padding_free" if stage == "sft" else "share_prompts": False}  # otherwise all rows form one batch


def outcome(folder: Path) -> dict[str, Any]:
    return read_json(folder / "outcome.json") or {}


def assert_close(one: Path, other: Path) -> None:
    first, second = weights_of(one / "model"), weights_of(other / "model")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=1e-5, rtol=0, msg=name)
    losses = [{key: value for key, value in metrics_of(folder).items() if "loss" in key[1]} for folder in (one, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "of", "half"), [(8, 8, 4), (8, None, 4), (3, 6, 1), (9, 9, 3), (7, 7, 1), (5, None, 2), (2, 2, 1)]
)
def test_half_of_the_rows_still_divides_the_step(rows, of, half):
    assert half_of(rows, of) == half


@pytest.mark.parametrize(
    ("given", "processes", "micro", "accumulation"),
    [({}, 1, 4, 6), ({}, 4, 3, 2), ({"per_device_train_batch_size": 2}, 1, 2, 12)],
)
def test_memory_limits_the_micro_batch_and_not_the_step(given, processes, micro, accumulation, monkeypatch):
    """24 rows a step, at most 5 at a time: 6 passes of 4; of four processes 2 passes of 3 each."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    values = resolve_batch({"global_batch_size": 24, **given}, default_global=32, at_most=5)
    assert values["per_device_train_batch_size"] == micro
    assert values["gradient_accumulation_steps"] == accumulation


@pytest.mark.parametrize("content", ["", "[]", "{", '{"per_device_train_batch_size": "4"}', '{"other": 1}', "null"])
def test_an_invalid_note_is_ignored(content, tmp_path):
    (tmp_path / "memory.json").write_text(content)
    assert remembered(tmp_path) == {}


def test_an_error_of_another_kind_is_passed_on(tmp_path):
    with (
        pytest.raises(RuntimeError, match=r"^shapes differ$"),
        halve_on_out_of_memory(tmp_path, "per_device_eval_batch_size", 8),
    ):
        raise RuntimeError("shapes differ")
    assert not list(tmp_path.iterdir())


def test_errors_of_the_other_processes_do_not_hide_the_cause(tmp_path):
    assert failed(tmp_path, RunAgain("8 rows are too much: 4 from now on"), is_main=False) == 1
    failed(tmp_path, RuntimeError("Connection closed by peer"), is_main=True)
    failed(tmp_path, Preempted(), is_main=True)
    assert outcome(tmp_path)["cause"] == "8 rows are too much: 4 from now on"


# -- training and evaluation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", KINDS)
def test_the_micro_batch_is_halved_once_logged_remembered_and_changes_no_number(
    stage, plant, tiny_model, rows, tmp_path, capfd
):
    keys = {"model_name_or_path": tiny_model, **data(rows, stage)}
    run_here(stage, tmp_path / "whole", **keys)
    run_here(stage, tmp_path / "by 4", per_device_train_batch_size=4, **keys)
    plant(4 if stage == "sft" else 8, in_training=True)  # a pair is two rows
    capfd.readouterr()
    assert call_stage(stage, tmp_path / "halved", **keys) == 1
    said = capfd.readouterr().err
    cause = "out of memory with per_device_train_batch_size=8: it is 4 from now on, the result stays the same"
    assert f"error: {cause}; run the same command again" in said and "Traceback" not in said
    assert outcome(tmp_path / "halved") == {
        "state": "interrupted",
        "cause": cause,
        "hint": "run the same command again",
        "kind": "halved",
    }
    note = json.loads((tmp_path / "halved" / "checkpoints" / "memory.json").read_text())
    assert note == {"per_device_train_batch_size": 4}

    run_here(stage, tmp_path / "halved", **keys)
    assert (
        "per_device_train_batch_size=4, since more rows ran out of memory"
        in (tmp_path / "halved" / "log.txt").read_text()
    )
    assert_close(tmp_path / "halved", tmp_path / "whole")
    for name, tensor in weights_of(tmp_path / "halved" / "model").items():
        assert torch.equal(tensor, weights_of(tmp_path / "by 4" / "model")[name]), name
    assert outcome(tmp_path / "halved")["state"] == "done"


def test_a_checkpoint_of_the_larger_micro_batch_is_resumed_from(plant, tiny_model, rows, tmp_path):
    keys = {"model_name_or_path": tiny_model, **data(rows, "sft"), "save_strategy": "steps", "save_steps": 1}
    run_here("sft", tmp_path / "whole", **keys)
    plant(4, in_training=True, after=2, error=RuntimeError(CPU))  # the third step needs too much
    assert call_stage("sft", tmp_path / "halved", **keys) == 1
    assert outcome(tmp_path / "halved")["kind"] == "halved"
    run_here("sft", tmp_path / "halved", **keys)
    assert "resuming from step 2" in (tmp_path / "halved" / "log.txt").read_text()
    assert_close(tmp_path / "halved", tmp_path / "whole")


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_batches_of_evaluation_are_halved_likewise(stage, plant, tiny_model, rows, tmp_path):
    # DPO's reference is in evaluation mode while the policy trains.
    keys = {"model_name_or_path": tiny_model, "per_device_train_batch_size": 4, **data(rows, stage)}
    run_here(stage, tmp_path / "whole", **keys)
    plant(4 if stage == "sft" else 8, in_training=False)
    assert call_stage(stage, tmp_path / "halved", **keys) == 1
    assert outcome(tmp_path / "halved")["cause"].startswith(
        "out of memory with per_device_eval_batch_size=8: it is 4 from"
    )
    run_here(stage, tmp_path / "halved", **keys)
    assert_close(tmp_path / "halved", tmp_path / "whole")


def test_a_reference_that_fills_the_memory_gets_half_the_batch(plant, tiny_model, rows, tmp_path, capfd):
    keys = {"model_name_or_path": tiny_model, "per_device_train_batch_size": 4, **data(rows, "dpo")}
    run_here("dpo", tmp_path / "one" / "whole", **keys)
    plant(8, in_training=False)  # two rows a pair
    own = tmp_path / "other" / "own"
    assert call_stage("dpo", own, precompute_ref_batch_size=6, **keys) == 1
    assert "out of memory with precompute_ref_batch_size=6: lower precompute_ref_batch_size" in outcome(own)["cause"]
    assert call_stage("dpo", tmp_path / "other" / "halved", **keys) == 1
    said = outcome(tmp_path / "other" / "halved")["cause"]
    assert said.startswith("out of memory with per_device_eval_batch_size=8: it is 4 from now on")
    run_here("dpo", tmp_path / "other" / "halved", **keys)
    assert_close(tmp_path / "other" / "halved", tmp_path / "one" / "whole")


def test_if_half_is_too_much_as_well_a_hint_is_given_and_nothing_is_halved_again(
    plant, tiny_model, rows, tmp_path, capfd
):
    keys = {"model_name_or_path": tiny_model, **data(rows, "sft")}
    plant(1, in_training=True)
    assert [call_stage("sft", tmp_path / "sft", **keys) for _ in range(3)] == [1, 1, 1]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert [line.partition(":")[2].partition(":")[0] for line in said] == [
        " out of memory with per_device_train_batch_size=8",
        " out of memory with per_device_train_batch_size=4, which was halved before",
        " out of memory with per_device_train_batch_size=4, which was halved before",
    ]
    assert "lower max_length, set activation_checkpointing: true or use_peft: true" in said[1]
    assert outcome(tmp_path / "sft")["kind"] == "error"
    assert remembered(tmp_path / "sft" / "checkpoints") == {"per_device_train_batch_size": 4}
    run_here("sft", tmp_path / "sft", per_device_train_batch_size=1, **keys)  # as few as the user has set


# -- generation and scoring -------------------------------------------------------------------------------------------


def test_answers_that_fill_the_memory_name_the_key_to_lower(
    plant, tiny_model, tiny_reward_model, rows, tmp_path, capfd
):
    plant(2, in_training=False)
    keys: dict[str, Any] = {
        "prompts": [rows / "prompts.jsonl"],
        "policies": [tiny_model],
        "reward_model": tiny_reward_model,
        "num_answers": 2,
        "max_new_tokens": 4,
    }
    assert call_stage("rejection_sampling", tmp_path / "rs", **keys) == 1
    said = outcome(tmp_path / "rs")
    assert said["cause"] == (
        "out of memory with generation_batch_size=32: lower generation_batch_size, which is part "
        "of the step's identity, or max_new_tokens"
    )
    assert said["kind"] == "error" and "Traceback" not in capfd.readouterr().err


# -- several processes ------------------------------------------------------------------------------------------------


OF_RANK_1 = f"""
import os, runpy, sys, torch
from transformers import LlamaModel
whole = LlamaModel.forward
def forward(self, input_ids=None, *args, **keys):
    if self.training and len(input_ids) > 2 and os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError({CUDA!r})
    return whole(self, input_ids, *args, **keys)
LlamaModel.forward = forward
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.long
def test_two_processes_agree_on_the_half_that_one_of_them_needs(tiny_model, rows, tmp_path):
    from pipeline.launch import command_line
    from pipeline.plan import Step
    from pipeline.recipe.sections import Launch

    folder, script = tmp_path / "sft", tmp_path / "script.py"
    folder.mkdir()
    script.write_text(OF_RANK_1)
    values = stage_keys("sft", model_name_or_path=tiny_model, output_dir=folder, **data(rows, "sft"))
    config = write_jsonl(folder / "config.yaml", [values])  # JSON is YAML
    step = Step(
        name="sft",
        stage="sft",
        round=None,
        section="",
        keys={},
        inputs={},  # pyright: ignore[reportArgumentType]
        launch=Launch(profile="ddp", num_processes=2, device="cpu"),
    )
    command = command_line.launch_command(step, folder)
    place = next(number for number, word in enumerate(command) if word.endswith("sft.py"))
    command.insert(place, str(script))
    assert command[-1] == str(config)

    def run() -> str:
        env = command_line.environment(step, folder, folder)
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False).stderr

    said = run()
    assert outcome(folder)["kind"] == "halved", said[-3000:]
    assert outcome(folder)["cause"].startswith("out of memory with per_device_train_batch_size=4: it is 2 from now on")
    said = run()
    record = Artifact.read(folder)
    assert record is not None and record.metrics["steps"] == 3, said[-3000:]
    run_here("sft", tmp_path / "alone", model_name_or_path=tiny_model, **data(rows, "sft"))
    assert_close(folder, tmp_path / "alone")
