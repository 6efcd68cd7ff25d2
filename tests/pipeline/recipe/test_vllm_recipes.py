"""vLLM in a recipe: by section, in the fingerprint, and which interpreter is used."""

from collections.abc import Callable
from typing import Any

import pytest

from data_schemas.errors import ConfigError
from pipeline.launch.machine import check_machine
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.state.fingerprint import FileHashes, identities
from tests.toy_rows import write_jsonl


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Callable[..., Any]:
    """recipe("key=value") loads a recipe beside an environment and returns it with its steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = tmp_path / "venv" / "bin" / "python"
    python.touch(0o755)
    (tmp_path / "scores.py").write_text("def score(prompt, answer, ended):\n    return 0\n")
    write_jsonl(tmp_path / "chats.jsonl", [{"prompt": "q", "completion": "a"}])
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nrounds: 1\nbase_model: acme/base\nlaunch: {device: cpu}\ndata: {instructions: chats.jsonl}\n"
        "annotate: {annotator_function: 'scores:score'}\nevaluate_policy: {judge_function: 'scores:score'}\n"
        "defaults: {vllm: {python: venv/bin/python}}\nrejection_sampling: {engine: vllm}\n"
    )

    def load(*settings: str) -> Any:
        loaded = load_recipe(tmp_path / "mine.yaml", settings)
        return loaded, {step.name: step for step in make_plan(loaded)}

    return load


def test_a_recipe_sets_vllm_by_section_and_finds_the_interpreter_beside_itself(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    _, steps = recipe()
    sampling, annotate = steps["round-1.rejection_sampling"], steps["round-1.annotate"]
    python = str(tmp_path / "venv" / "bin" / "python")
    assert sampling.keys["engine"] == "vllm" and sampling.keys["vllm"] == {"python": python}
    assert "engine" not in annotate.keys and annotate.keys["vllm"] == {"python": python}
    assert "vllm" not in steps["round-1.dpo"].keys
    _, steps = recipe("rejection_sampling.vllm={python: /x, tensor_parallel_size: 2}")
    assert steps["round-1.rejection_sampling"].keys["vllm"] == {"python": "/x", "tensor_parallel_size": 2}


def test_another_engine_is_another_step_and_another_interpreter_is_not(recipe, tmp_path):
    def fingerprints(*settings: str) -> dict[str, str | None]:
        _, steps = recipe(*settings)
        made = identities(list(steps.values()), hashes=FileHashes(tmp_path / "hashes"), function_folder=tmp_path)
        return {name: identity.fingerprint for name, identity in made.items()}

    plain = fingerprints("rejection_sampling.engine=transformers")
    by_vllm = fingerprints()
    changed = {name for name in plain if plain[name] != by_vllm[name]}
    assert "round-1.rejection_sampling" in changed and "round-1.sft" in changed
    assert not {"prepare_data", "round-0.sft", "round-1.annotate"} & changed
    assert fingerprints("rejection_sampling.vllm={python: /other, tensor_parallel_size: 4}") == by_vllm


def test_a_missing_interpreter_is_reported_before_anything_is_launched(recipe, tmp_path):
    check_machine(recipe()[0], list(recipe()[1].values()))
    loaded, steps = recipe("rejection_sampling.vllm={python: gone/python}")
    with pytest.raises(ConfigError) as error:
        check_machine(loaded, list(steps.values()))
    assert str(error.value) == (
        f"{tmp_path}/mine.yaml: rejection_sampling.vllm.python='gone/python' "
        "is not a program on this machine: give the interpreter "
        "of the environment in which vLLM is installed, as in /opt/vllm/bin/python"
    )
    loaded, steps = recipe("rejection_sampling.vllm={python: gone/python}", "rejection_sampling.launch.wrapper=sh")
    check_machine(loaded, list(steps.values()))
