"""FSDP2 on two CPU processes against one plain process: the same numbers, the same saved model, a resumed run.

accelerate itself gives FSDP to GPUs only; tests/fsdp2_on_cpu.py lets two CPU processes have it.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.models.verification import check_weights
from tests.stage_runs import ROOT, launch, metrics_of, run_here, weights_of

KEYS: dict[str, Any] = {"max_steps": 2, "eval_steps": 1, "per_device_eval_batch_size": 4, "global_batch_size": 8}
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 3, "keep_checkpoints": True}
ON_CPU = ROOT / "tests" / "fsdp2_on_cpu.py"
long = pytest.mark.long


def keys_of(stage: str, tiny_model: Path, rows: Path) -> dict[str, Any]:
    kind = "conversations" if stage == "sft" else "pairs"
    data = {"train_data": [rows / f"{kind}.jsonl"], "eval_data": [rows / f"{kind}_eval.jsonl"]}
    return {"model_name_or_path": tiny_model, **KEYS, **data}


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("sft", {}),
        pytest.param("dpo", {}, marks=long),
        pytest.param("reward_model", {}, marks=long),
        # Each process draws its own dropout.
        pytest.param("sft", {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0}, marks=long, id="sft-lora"),
    ],
)
def test_two_processes_give_the_result_of_one_and_resume(stage, more, run_stage, tiny_model, rows, tmp_path):
    one, two, resumed = tmp_path / "one", tmp_path / "two", tmp_path / "resumed"
    keys = keys_of(stage, tiny_model, rows) | more
    assert run_here(stage, one, **keys).engine == "none"
    record = run_stage(stage, two, profile="fsdp2", processes=2, program=ON_CPU, **SAVING, **keys)
    assert record.engine == "FSDP2"
    log = (two / "log.txt").read_text()
    assert "the engine that wraps the model: FSDP2" in log
    assert "2 processes on cpu with FSDP; global_batch_size 8 = 2 processes x 4 rows x 1 accumulation step" in log
    wanted, found = metrics_of(one), metrics_of(two)
    names = {key for key in wanted if key[1].startswith("eval_") or key[1] == "loss"}
    assert {key: found[key] for key in names} == pytest.approx({key: wanted[key] for key in names}, abs=2e-5)

    check_weights(two / "model")
    first, second = weights_of(one / "model"), weights_of(two / "model")
    assert first.keys() == second.keys()
    for name, tensor in first.items():  # gathered: complete and plain
        torch.testing.assert_close(second[name], tensor, atol=1e-4, rtol=0)

    shutil.copytree(two, resumed)
    (resumed / "artifact.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / "checkpoint-2")
    run_stage(stage, resumed, profile="fsdp2", processes=2, program=ON_CPU, **SAVING, **keys)
    assert "resuming from step 1" in (resumed / "log.txt").read_text()
    again = weights_of(resumed / "model")
    assert all(torch.equal(again[name], tensor) for name, tensor in second.items())


def test_accelerate_runs_it_as_ddp_on_a_cpu_which_is_refused_in_one_line(tiny_model, rows, tmp_path):
    done = launch("sft", tmp_path, profile="fsdp2", processes=2, **keys_of("sft", tiny_model, rows))
    assert done.returncode != 0
    assert (
        "error: the profile asks for FSDP, and the engine that wraps the model is DDP, since FSDP needs two "
        "processes on GPUs or more; use profile ddp or zero3"
    ) in done.stdout + done.stderr
    assert not (tmp_path / "artifact.json").exists()
