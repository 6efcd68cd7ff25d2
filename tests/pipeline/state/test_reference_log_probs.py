"""The plan knows which reference log-probs a step left for others."""

import json
import shutil
from typing import Any

from data_schemas.reference_log_probs import FOLDER, Passes
from pipeline.recipe.sections import Launch
from pipeline.state.reference_log_probs import are_there
from pipeline.steps import File, Model, Step


def step_of(num_processes: int = 1, **keys: Any) -> tuple[Step, dict[str, Any]]:
    """A DPO step and the values that its fingerprint is computed from."""
    launch = Launch(profile="single" if num_processes == 1 else "ddp", num_processes=num_processes, device="cpu")
    inputs = {"model_name_or_path": [Model("m")], "train_data": [File("t")]}
    step = Step("round-1.dpo", "dpo", 1, "dpo", keys, inputs, launch)  # pyright: ignore[reportArgumentType]
    identity = {
        "stage": "dpo",
        "recipe_version": 4,
        "keys": {"beta": 0.1, "max_length": 1024} | keys,
        "inputs": {"model_name_or_path": [["aa"]], "train_data": [["bb"]]},
    }
    return step, identity


def test_the_plan_knows_which_log_probs_a_step_left_for_others(tmp_path):
    def known(num_processes: int = 1, inputs: dict[str, Any] | None = None, **keys: Any) -> bool:
        step, identity = step_of(num_processes, **keys)
        return are_there(
            tmp_path, step, identity | {"inputs": identity["inputs"] | (inputs or {})}, identity_file="fingerprint.json"
        )

    assert not known()
    left = tmp_path / "round-1.dpo-12345678"
    left.mkdir()
    (left / "fingerprint.json").write_text(json.dumps(step_of()[1]))
    assert not known()
    note = tmp_path / FOLDER / "0123456789abcdef" / f"{left.name}.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps(Passes(8, 8, 1).as_note()))
    assert known() and known(beta=0.5, seed=3, learning_rate=1e-3, loss_type=["ipo"])
    assert known(inputs={"model_name_or_path": [["cc"]], "reference_model": [["aa"]]})
    assert not known(inputs={"model_name_or_path": [["cc"]]})
    assert not known(inputs={"train_data": [["bb"], ["dd"]]})
    assert not known(max_length=512) and not known(bf16=True)
    assert not known(2) and not known(per_device_eval_batch_size=4) and known(precompute_ref_batch_size=8)
    note.write_text("{")
    assert not known()
    note.write_text(json.dumps(Passes(8, 8, 1).as_note()))
    shutil.rmtree(left)
    assert not known()
