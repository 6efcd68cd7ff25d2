"""Shipped recipes: found by their names, and copied by `alignloop init`."""

import json
import re
from pathlib import Path

import pytest
import yaml

from data_schemas.errors import ConfigError
from pipeline.launch.checks import check_recipe
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.recipe.shipped import CONFIGS, STARTER, copy_recipe, find_recipe, shipped_recipes

PLACEHOLDER = re.compile(r"\b[A-Z]{2,}(?:_[A-Z]+)*$")


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "configs/demo.yaml"])
def test_a_shipped_recipe_is_found_by_its_name_in_any_folder(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(Path(name)) == CONFIGS / "demo.yaml"
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"using the recipe demo that ships with alignloop: {CONFIGS / 'demo.yaml'}\n")


def test_a_file_of_the_working_directory_comes_first_and_a_folder_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert find_recipe(Path("demo")) == CONFIGS / "demo.yaml"
    capsys.readouterr()
    (tmp_path / "demo.yaml").write_text("name: own\n")
    assert find_recipe(Path("demo.yaml")) == Path("demo.yaml")
    assert capsys.readouterr().err == ""


def test_an_unknown_recipe_names_the_nearest_and_all_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"lama3_8b\.yaml does not exist.* did you mean 'llama3_8b'\?.* demo, dpo, llama3_70b"
    ):
        find_recipe(Path("lama3_8b.yaml"))


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_can_be_copied(name, tmp_path):
    recipe, *others = copy_recipe(name, tmp_path)
    assert recipe == tmp_path / f"{name}.yaml"
    shipped = shipped_recipes()[name]
    assert yaml.safe_load(recipe.read_text()) == yaml.safe_load(shipped.read_text())
    template = (yaml.safe_load(recipe.read_text()).get("prepare_base") or {}).get("chat_template", "")
    assert others == ([tmp_path / template] if template.endswith(".jinja") else [])
    for path in others:
        assert path.read_text() == (CONFIGS / path.relative_to(tmp_path)).read_text()
    assert "configs/" not in recipe.read_text()  # its comments name the copy
    before = recipe.read_text()
    with pytest.raises(ConfigError, match=f"{name}.yaml exists already"):
        copy_recipe(f"{name}.yaml", tmp_path)
    assert recipe.read_text() == before


def test_a_template_of_another_content_is_not_overwritten_and_nothing_is_written(tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "llama3.jinja").write_text("mine")
    with pytest.raises(ConfigError, match=r"templates/llama3\.jinja exists already"):
        copy_recipe("llama3_8b", tmp_path)
    assert not (tmp_path / "llama3_8b.yaml").exists()
    (tmp_path / "templates" / "llama3.jinja").write_text((CONFIGS / "templates" / "llama3.jinja").read_text())
    assert copy_recipe("llama3_8b", tmp_path) == [tmp_path / "llama3_8b.yaml"]


@pytest.mark.parametrize("on_cpu", [False, True])
def test_the_starter_plans_once_its_placeholders_are_replaced(on_cpu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (recipe,) = copy_recipe(None, tmp_path, on_cpu=on_cpu)
    assert recipe.name == f"{STARTER}.yaml"
    values = yaml.safe_load(recipe.read_text())
    assert (values["launch"]["device"], values["defaults"]["bf16"]) == (("cpu", False) if on_cpu else ("gpu", True))
    assert ("No GPU. One GPU:" in recipe.read_text()) == on_cpu
    placeholders = [str(value) for value in (values["base_model"], *values["data"].values())]
    placeholders = [value for value in placeholders if PLACEHOLDER.fullmatch(value)]
    assert placeholders == ["BASE_MODEL", "INSTRUCTIONS", "PREFERENCES"]
    with pytest.raises(ConfigError, match=r"='[A-Z_]+' does not exist"):
        loaded = load_recipe(recipe)
        check_recipe(loaded, make_plan(loaded))

    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": []}))
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}))
    lines = recipe.read_text().splitlines(keepends=True)
    filled = "".join(line for line in lines if not line.startswith("#"))
    for placeholder, value in zip(placeholders, ("base", "chats.jsonl", "pairs.jsonl"), strict=True):
        assert placeholder in filled
        filled = filled.replace(placeholder, value, 1)
    recipe.write_text(filled)
    loaded = load_recipe(recipe)
    steps = make_plan(loaded)
    check_recipe(loaded, steps)
    assert (loaded.name, len([step for step in steps if step.stage == "evaluate_policy"])) == (STARTER, 3)
    assert len(lines) < 60
