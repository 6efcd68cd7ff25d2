"""Every YAML block of README.md and docs/ is a recipe, or a part of one, that `plan` accepts."""

import copy
import gzip
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_schemas.assessment import load_assessment
from data_schemas.errors import ConfigError
from pipeline.launch.checks import check_recipe
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.unused import check_unused
from tests.docs.pages import Block, model_folder, text_of, yaml_blocks
from tests.toy_rows import conversation, pair, write_jsonl

# Blocks that are not planned here, with the reason.
UNTRIED = {
    "# configs/filtered.yaml": "names a stage that its page adds; tests/test_adding_a_stage.py runs it",
    "# assess.yaml": "is no recipe; it is loaded below",
    "# site.yaml of Kubernetes": "is no recipe; tests/pipeline/submit/test_kubernetes.py has one",
    "# site.yaml of SkyPilot": "is no recipe; tests/pipeline/submit/test_skypilot.py has one",
    "# shop.yaml": "needs the tutorial's files; test_tutorial.py plans and runs it",
}
# A part of a recipe is planned as a part of this one.
BASE: dict[str, Any] = {
    "name": "part",
    "rounds": 2,
    "base_model": "my-base",
    "defaults": {"global_batch_size": 64},
    "data": {"instructions": "instructions.jsonl", "preferences": "pairs.jsonl", "judge_share": 0.2},
    "prepare_base": {"chat_template": "chatml"},
}
# What a page names outside of a reader's own folder -> the name in the test's folder.
ELSEWHERE = {"/models/": "models/", "/opt/vllm/bin/": "bin/"}


def is_untried(block: Block) -> bool:
    return block.text.startswith(tuple(UNTRIED))


BLOCKS = [block for block in yaml_blocks() if not is_untried(block)]


def merged(base: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the part's values; of mappings in both, the base's keys that the part lacks stay."""
    both = {key for key in base if isinstance(base[key], Mapping) and isinstance(part.get(key), Mapping)}
    return {**base, **part, **{key: merged(base[key], part[key]) for key in both}}


def recipe_of(block: Block, text: str) -> dict[str, Any]:
    """The block if it is a complete recipe, else the base with its keys."""
    content = yaml.safe_load(text)
    return content if "name" in content else merged(copy.deepcopy(BASE), content)


def plan(folder: Path, content: Mapping[str, Any]) -> int:
    """Plans a recipe as `alignloop plan` does; the number of its steps."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False))
    recipe = load_recipe(path)
    steps = make_plan(recipe)
    check_recipe(recipe, steps)
    check_unused(recipe, steps)
    return len(steps)


@pytest.fixture
def reader(tmp_path, monkeypatch) -> Path:
    """The folder of somebody who tries the pages: rows, models and functions under the names that the pages give."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", str(tmp_path / "large"))
    dialogs = [conversation(number) for number in range(40)]
    for name in (
        "chats",
        "math",
        "gsm8k_test",
        "ifeval",
        "instructions",
        "more_chats/chats",
        "large/part-1",
        "large/part-2",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / f"{name}.jsonl", dialogs)
    (tmp_path / "pairs").mkdir()
    for name in ("pairs.jsonl", "pairs/train.jsonl"):
        write_jsonl(tmp_path / name, [pair(number) for number in range(40)])
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress((tmp_path / "pairs.jsonl").read_bytes()))
    (tmp_path / "faq.csv").write_text("Q,A\nWhat is 2+2?,4\n")
    (tmp_path / "texts.txt").write_text("A text.\n")
    (tmp_path / "checks.py").write_text("def follows(prompt, answer, ended):\n    return 0.0\n")
    (tmp_path / "my_scores.py").write_text(code_of("docs/rounds.md", "my_scores.py"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    for name in ("my-base", "base", "models/my-base", "models/another-reward-model"):
        model_folder(tmp_path / name)
    return tmp_path


def code_of(page: str, name: str) -> str:
    (code,) = re.findall(rf"^```python\n# {re.escape(name)}[^\n]*\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return code


def as_in_the_folder(text: str) -> str:
    for elsewhere, here in ELSEWHERE.items():
        text = text.replace(elsewhere, here)
    return text


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_planned(block, reader):
    assert plan(reader, recipe_of(block, as_in_the_folder(block.text))) >= 3


def test_the_file_of_an_assessment_is_loaded(reader):
    (block,) = (block for block in yaml_blocks() if block.text.startswith("# assess.yaml"))
    (reader / "assess.yaml").write_text(block.text)
    assert len(load_assessment(reader / "assess.yaml").candidates) == 5


def test_there_are_complete_recipes_and_parts_and_every_reason_has_a_block():
    assert len([block for block in yaml_blocks() if is_untried(block)]) == len(UNTRIED)
    complete = [block for block in BLOCKS if "name" in yaml.safe_load(block.text)]
    assert len(complete) == 4 and len(BLOCKS) - len(complete) >= 10


def test_an_unknown_key_of_a_part_is_refused(reader):
    with pytest.raises(ConfigError, match="unknown key 'betta'"):
        plan(reader, merged(BASE, {"dpo": {"betta": 0.1}}))
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}
