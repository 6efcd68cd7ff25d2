"""Paths of a recipe: environment variables, home folders, globs, and mappings with a path."""

from pathlib import Path

import pytest

from data_schemas.errors import ConfigError
from pipeline.launch.checks import check_recipe
from pipeline.plan import make_plan
from pipeline.recipe.locations import locate, locate_rows
from pipeline.recipe.schema import load_recipe
from pipeline.state.run import Run
from pipeline.steps import File
from tests.pipeline.fake_stages import build_inputs

ROW = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'


@pytest.fixture
def work(tmp_path, monkeypatch):
    recipe = build_inputs(tmp_path / "work")
    monkeypatch.chdir(tmp_path)
    return recipe.parent


def instructions(work, given):
    return load_recipe(work / "toy.yaml", [f"data.instructions={given}"]).section("data").keys["instructions"]


def refused(work, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_recipe(work / "toy.yaml", overrides)
    return str(caught.value).removeprefix(f"{work / 'toy.yaml'}: ")


def test_variables_and_home_are_expanded_in_paths_of_rows_and_models(work, monkeypatch):
    monkeypatch.setenv("MINE", str(work))
    monkeypatch.setenv("HOME", str(work))
    for given in ("$MINE/chats.jsonl", "${MINE}/chats.jsonl", "~/chats.jsonl"):
        assert instructions(work, given) == [str(work / "chats.jsonl")]
    assert load_recipe(work / "toy.yaml", ["base_model=$MINE/base"]).base_model == str(work / "base")
    assert locate("$MINE/gone", work, where="x") == f"{work}/gone"  # so that an error shows what was looked for


def test_the_folder_of_the_runs_is_expanded_too(work, monkeypatch):
    """Otherwise a folder named `~` is made in the working directory."""
    monkeypatch.setenv("HOME", str(work))
    for given, expected in (("~/runs", work / "runs"), ("$HOME/r", work / "r"), ("runs", Path.cwd() / "runs")):
        assert load_recipe(work / "toy.yaml", [f"output_dir={given}"]).folder == expected / "toy"
    Path("~").mkdir()
    assert load_recipe(work / "toy.yaml", ["output_dir='~'"]).folder == Path.cwd() / "~" / "toy"


def test_a_name_that_exists_as_written_is_not_expanded(work):
    (work / "$x[1].jsonl").write_text(ROW)
    assert locate_rows("$x[1].jsonl", work, where="x") == [str(work / "$x[1].jsonl")]
    (work / "a:test").write_text(ROW)
    assert locate_rows("a:test", work, where="x") == [str(work / "a:test")]


def test_an_unset_variable_and_an_unknown_user_are_one_line(work, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.setenv("EMPTY", "")
    assert refused(work, "base_model=$NOWHERE/base") == (
        "base_model='$NOWHERE/base': the environment variable NOWHERE is not set"
    )
    assert refused(work, "data.prompts=[a, '${EMPTY}/x']") == (
        "data: prompts='${EMPTY}/x': the environment variable EMPTY is not set"
    )
    for key in ("output_dir", "base_model", "evaluate_policy.judge_model", "annotate.vllm.python"):
        assert "~nosuchuser9 is no home folder: this machine knows no such user" in refused(
            work, f"{key}=~nosuchuser9/x"
        )


def test_a_glob_is_its_files_sorted(work):
    for name in ("b.jsonl", "a.jsonl", "c.csv", ".hidden.jsonl"):
        (work / "parts" / name).parent.mkdir(exist_ok=True)
        (work / "parts" / name).write_text(ROW)
    a, b = (str(work / "parts" / name) for name in ("a.jsonl", "b.jsonl"))
    assert instructions(work, "parts/*.jsonl") == [a, b]
    assert instructions(work, f"{work}/parts/[ab].jsonl") == [a, b]
    assert instructions(work, "{path: 'parts/?.jsonl', share: 0.5}") == [
        {"path": a, "share": 0.5},
        {"path": b, "share": 0.5},
    ]
    assert refused(work, "data.instructions=parts/*.tsv") == (
        f"data: instructions: 'parts/*.tsv' matches no file, neither in {Path.cwd()} nor beside the recipe"
    )


def test_a_mapping_becomes_an_input_with_its_options_and_reaches_the_stage(work):
    (work / "qa.csv").write_text("Q,A\nhi,yo\n")
    override = "data.instructions={path: qa.csv, columns: {prompt: Q, answer: A}, share: 0.5}"
    recipe = load_recipe(work / "toy.yaml", [override])
    steps = make_plan(recipe)
    check_recipe(recipe, steps)
    (given,) = steps[0].inputs["instructions"]
    options = {"columns": {"prompt": "Q", "answer": "A"}, "share": 0.5}
    assert given == File(str(work / "qa.csv"), options)
    run = Run.of(recipe, steps)
    assert run.stage_config(steps[0])["instructions"] == [{"path": str(work / "qa.csv")} | options]


def test_a_split_in_the_path_becomes_a_key(work):
    (work / "sets" / "test").mkdir(parents=True)
    (work / "sets" / "test" / "a.jsonl").write_text(ROW)
    assert instructions(work, "sets:test") == [{"path": str(work / "sets"), "split": "test"}]
    assert instructions(work, "owner/name@v2:test") == [{"path": "owner/name", "split": "test", "revision": "v2"}]
    assert refused(work, "data.instructions={path: a, spilt: test}") == (
        "data: instructions: unknown key 'spilt' of a file; did you mean 'split'?"
    )
