"""A saved model is loaded back before the record is written, and its outputs are compared: damage is found."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_schemas.artifact import Artifact
from data_schemas.errors import StageError
from data_schemas.files import read_json
from engine.models import verification
from engine.models.loading import load_causal
from engine.models.verification import PROBE, Comparison, as_tensors, check_saved, check_weights, outputs_of
from engine.training import checkpoints
from tests.stage_runs import call_stage

ROWS = [[5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15]]
PLAIN = Comparison(is_reward_model=False, device="cpu", autocast=None, tolerance=0.0)


def keys_of(stage: str, tiny_model: Path, rows: Path) -> dict[str, Any]:
    kind = "conversations" if stage == "sft" else "pairs"
    data = {"train_data": [rows / f"{kind}.jsonl"], "eval_data": [rows / f"{kind}_eval.jsonl"]}
    return {"model_name_or_path": tiny_model, "max_steps": 1, "learning_rate": 3e-3, **data}


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def nudge(tensors: dict[str, torch.Tensor]) -> None:
    name = min(name for name in tensors if name.endswith("down_proj.weight"))
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] += 0.1


def forget_head(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["score.weight"]


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    tensors[min(tensors)] = tensors[min(tensors)] * float("nan")


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("sft", nudge, "the saved model is not the trained one: after row 1 of the held-out rows"),
        ("dpo", nudge, "the saved model is not the trained one"),
        ("reward_model", nudge, "the saved model is not the trained one"),
        ("reward_model", forget_head, 'the saved model is not complete: {"missing_keys": ["score.weight"]}'),
        ("sft", spoil, "is nan or infinite"),
    ],
)
def test_a_model_that_is_damaged_when_it_is_saved_gets_no_record(
    stage, change, message, tiny_model, rows, tmp_path, monkeypatch
):
    own = checkpoints.link

    def link(source: Path, target: Path, **kwargs: Any) -> None:
        own(source, target, **kwargs)
        (target / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
        edit(target, change)

    monkeypatch.setattr(checkpoints, "link", link)
    assert call_stage(stage, tmp_path / stage, **keys_of(stage, tiny_model, rows)) == 1
    assert message in read_json(tmp_path / stage / "outcome.json")["cause"]
    assert Artifact.read(tmp_path / stage) is None


def test_a_model_of_bf16_weights_is_checked_in_its_own_precision(tiny_model, tmp_path):
    model = load_causal(str(tiny_model), dtype="bfloat16")
    model.save_pretrained(tmp_path / "model")
    save_file(as_tensors(ROWS, outputs_of(model, ROWS, device=torch.device("cpu"))), tmp_path / PROBE)
    check_saved(tmp_path / "model", tmp_path / PROBE, PLAIN)
    edit(tmp_path / "model", nudge)
    with pytest.raises(ValueError, match="the saved model is not the trained one"):
        check_saved(tmp_path / "model", tmp_path / PROBE, PLAIN)


def test_a_tolerance_is_of_the_largest_output(tiny_model, tmp_path):
    model = load_causal(str(tiny_model), dtype="float32")
    model.save_pretrained(tmp_path / "model")
    outputs = outputs_of(model, ROWS, device=torch.device("cpu"))
    outputs[1] = outputs[1] + 1e-5 * outputs[1].abs().max()
    save_file(as_tensors(ROWS, outputs), tmp_path / PROBE)
    check_saved(tmp_path / "model", tmp_path / PROBE, replace(PLAIN, tolerance=1.1e-5))
    with pytest.raises(ValueError, match="after row 2 of the held-out rows"):
        check_saved(tmp_path / "model", tmp_path / PROBE, replace(PLAIN, tolerance=0.9e-5))
    with pytest.raises(StageError, match=r"^the saved model is not the trained one: after row 2 of the held-out rows"):
        verification.check_in_own_process(tmp_path / "model", tmp_path / PROBE, replace(PLAIN, tolerance=0.9e-5))
    verification.check_in_own_process(tmp_path / "model", tmp_path / PROBE, replace(PLAIN, tolerance=1.1e-5))


def test_a_model_over_the_limit_is_not_loaded_back(tiny_model, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(verification, "LIMIT_BYTES", 10)
    check_saved(tiny_model, tmp_path / "no probe", PLAIN)
    assert "it was not loaded back" in caplog.text
    check_weights(tiny_model)


@pytest.mark.parametrize("padding", range(0, 64, 8))
def test_the_offset_of_the_weights_in_their_file_changes_no_bit(padding, tiny_model, tmp_path):
    """With a header of another length: safetensors maps the file, and kernels differ by the alignment of its memory."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    metadata = {"format": "pt", "note": "x" * padding}
    save_file(load_file(tiny_model / "model.safetensors"), folder / "model.safetensors", metadata=metadata)
    model, plain = (load_causal(str(path), dtype="float32") for path in (folder, tiny_model))
    assert {weight.data_ptr() % 64 for weight in model.parameters()} == {0}
    both = [outputs_of(one, ROWS, device=torch.device("cpu")) for one in (model, plain)]
    assert all(torch.equal(one, other) for one, other in zip(*both, strict=True))
