"""What README and docs/models.md show can be pasted: the example's recipe, and how a reward model is read."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_schemas.rows import Message
from pipeline.launch.checks import check_recipe
from pipeline.launch.command_line import ROOT
from pipeline.launch.machine import check_machine
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.unused import check_unused
from tests.loop_recipes import COMMAND, clean_environment
from tests.toy_rows import conversation, pair, write_jsonl


@pytest.fixture
def pasted(tmp_path, tiny_base, monkeypatch) -> Path:
    """The example in a folder with the two files and the model's folder that it names."""
    (text,) = re.findall(r"```yaml\n(# mine\.yaml.*?)```", (ROOT / "README.md").read_text(), re.S)
    shutil.copytree(tiny_base, tmp_path / "my-base")
    write_jsonl(tmp_path / "instructions.jsonl", [conversation(number) for number in range(100)])
    write_jsonl(tmp_path / "pairs.jsonl", [pair(number) for number in range(100)])
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.yaml"


def test_the_readmes_example_plans_as_pasted_on_any_machine(pasted):
    recipe = load_recipe(pasted)
    steps = make_plan(recipe)
    check_recipe(recipe, steps)
    check_machine(recipe, steps)
    assert check_unused(recipe, steps) == []
    assert (len(steps), steps[-1].name) == (16, "round-2.evaluate_policy")


@pytest.mark.long
def test_the_readmes_example_runs_as_pasted(pasted):
    import subprocess

    done = subprocess.run(
        [str(COMMAND), "run", "mine.yaml"], env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "best policy: round-" in done.stdout


def test_a_reward_model_scores_in_python_as_the_docs_show(tiny_reward_model):
    import torch

    from engine.models.loading import load_reward, load_tokenizer
    from engine.tokens.template import encode_answer

    text = (ROOT / "docs" / "models.md").read_text()
    (code,) = re.findall(r"```python\n(import torch\nfrom transformers import AutoModelForSeq.*?)```", text, re.S)
    shown = "runs/reward_model/steps/reward_model/model"
    assert shown in code
    names: dict[str, Any] = {}
    exec(code.replace(shown, str(tiny_reward_model)), names)
    tokenizer, model = load_tokenizer(str(tiny_reward_model)), load_reward(str(tiny_reward_model), dtype="float32")
    assert len(names["scores"]) == 2
    for dialog, score in zip(names["dialogs"], names["scores"], strict=True):
        prompt, answer = (Message(**message) for message in dialog)
        ids = [token for part in encode_answer(tokenizer, [prompt], [answer]) for token in part]
        with torch.no_grad():
            ours = model.eval()(input_ids=torch.tensor([ids])).logits[0, 0].item()  # pyright: ignore
        assert score == pytest.approx(ours, abs=1e-5)
