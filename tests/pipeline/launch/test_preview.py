"""Which choices of precision `alignloop check` measures for a recipe."""

import json
import shutil
from typing import Any

from data_schemas import bfloat16
from pipeline.launch import preview
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.state.run import Run

RECIPE = """
name: mine
rounds: 1
base_model: {model}
launch: {{device: cpu}}
prepare_base: {{chat_template: chatml}}
data: {{preferences: [pairs.jsonl], judge_share: 0.4, chosen_as_instructions: 0.4, validation_share: 0.3}}
"""


def precisions(folder: Any, model: Any, *overrides: str) -> list[tuple[Any, ...]]:
    (folder / "pairs.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    (folder / "recipe.yaml").write_text(RECIPE.format(model=model))
    recipe = load_recipe(folder / "recipe.yaml", list(overrides))
    found = preview._precisions(Run.of(recipe, make_plan(recipe)))
    return [(one["key"], one["chosen"], one["by_default"], one["tokens"], sorted(one["stages"])) for one in found]


def test_each_choice_of_a_recipe_is_measured_once(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(bfloat16, "cpu_has_bfloat16", lambda: False)
    training, generating = ["dpo", "reward_model", "sft"], ["evaluate_policy", "rejection_sampling"]
    assert sorted(precisions(tmp_path, tiny_base)) == [
        ("bf16", "float32", True, 512, training),
        ("dtype", "float32", False, 32, generating),
    ]
    assert sorted(
        precisions(
            tmp_path,
            tiny_base,
            "defaults.bf16=false",
            "dpo.bf16=true",
            "sft.dtype=bfloat16",
            "defaults.generation_batch_size=8",
            "evaluate_policy.dtype=bfloat16",
        )
    ) == [
        ("bf16", "bfloat16", False, 512, ["dpo"]),
        ("bf16", "float32", False, 512, ["reward_model"]),
        ("dtype", "bfloat16", False, 8, ["evaluate_policy"]),
    ]


def test_generation_follows_the_precision_of_the_base(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(bfloat16, "cpu_has_bfloat16", lambda: False)
    generating = ["evaluate_policy", "rejection_sampling"]
    expected = ("dtype", "bfloat16", False, 32, generating)
    assert expected in precisions(tmp_path, tiny_base, "prepare_base.dtype=bfloat16")
    base = tmp_path / "in bfloat16"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert expected in precisions(tmp_path, base)
    assert expected not in precisions(tmp_path, base, "prepare_base.dtype=float32")
