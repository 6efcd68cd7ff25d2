"""Functions that a key names as `module:function`."""

import json
import sys

import pytest

from data_schemas.errors import ConfigError
from data_schemas.files import read_json
from data_schemas.functions import find_module
from engine.runtime.functions import find_function, package_hash
from tests.stages_by_hand import by_hand, refusal


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere:make", "'nowhere:make': no module 'nowhere' beside the recipe ("),
        ("makers:make", "makers:make: HERE/makers.py defines no function 'make'"),
        ("makers:not_a_function", "makers:not_a_function: 'not_a_function' in HERE/makers.py is not a function"),
        ("makers", "'makers' is no function: expected module:function, as in my_scores:score"),
    ],
)
def test_a_function_that_is_not_found_is_one_line(reference, message, words, tmp_path):
    said = refusal(by_hand("prepare_data", *words, "--make_data", reference, cwd=tmp_path))
    message = message.replace("HERE", str(tmp_path))
    assert said.startswith(f"error: {message}")
    outcome = read_json(tmp_path / "out" / "outcome.json")
    assert outcome["kind"] == "config" and outcome["cause"].startswith(message)


def test_a_function_is_looked_up_beside_the_recipe_first(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("def dumps(text):\n    return 'beside the recipe'\n")
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    assert find_function("json:dumps")("x") == "beside the recipe"
    assert find_function("base64:b64encode")(b"") == b""
    assert json.dumps("x") == '"x"', "the module of that name stays"
    (tmp_path / "needs.py").write_text("import no_such_library\n\ndef f(): ...\n")
    with pytest.raises(ConfigError, match=r"needs:f: .*needs.py cannot be imported: No module named 'no_such_library'"):
        find_function("needs:f")


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """The folder is a recipe's, and is not on sys.path; modules that a test loads from it are forgotten."""
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        del sys.modules[name]


def found_by_both(reference, folder):
    """The function that a stage calls, from the file that the planner hashes."""
    function = find_function(reference)
    assert function.__code__.co_filename == str(find_module(reference, folder))
    return function


def test_a_package_beside_the_recipe_is_found_by_planner_and_stage(beside, tmp_path):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "__init__.py").write_text("def score(text):\n    return len(text)\n")
    assert found_by_both("scores:score", tmp_path)("four") == 4
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("imported", ["from .words import count", "from scores.words import count"])
def test_a_submodule_imports_its_siblings(imported, beside, tmp_path):
    (tmp_path / "scores" / "inner").mkdir(parents=True)
    (tmp_path / "scores" / "__init__.py").write_text("")
    (tmp_path / "scores" / "words.py").write_text("def count(text):\n    return len(text.split())\n")
    (tmp_path / "scores" / "rules.py").write_text(f"{imported}\n\ndef score(text):\n    return count(text)\n")
    (tmp_path / "scores" / "inner" / "__init__.py").write_text("")
    (tmp_path / "scores" / "inner" / "deep.py").write_text(
        "from ..rules import score as rule\n\ndef score(text):\n    return -rule(text)\n"
    )
    assert found_by_both("scores.rules:score", tmp_path)("two words") == 2
    assert found_by_both("scores.inner.deep:score", tmp_path)("two words") == -2


def test_a_package_with_the_name_of_an_installed_one_masks_nothing(beside, tmp_path):
    for name in ("json", "engine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("from .own import score\n")
        (tmp_path / name / "own.py").write_text("def score():\n    return 'beside the recipe'\n")
        assert find_function(f"{name}:score")() == "beside the recipe"
    import engine.runtime.world

    assert json.dumps("x") == '"x"' and engine.runtime.world.rank() == 0
    assert sys.modules["json"] is json


def test_a_module_in_a_folder_without_init_and_one_with_conditional_definitions_are_found(beside, tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "scores.py").write_text(
        "try:\n    import no_such_library\nexcept ImportError:\n    def score():\n        return 1\n"
    )
    assert found_by_both("plain.scores:score", tmp_path)() == 1


def test_the_hash_of_a_package_changes_with_every_module_in_it(beside, tmp_path):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "__init__.py").write_text("from .words import score\n")
    (tmp_path / "scores" / "words.py").write_text("def score(): ...\n")
    (tmp_path / "single.py").write_text("def score(): ...\n")
    before = package_hash("scores:score")
    (tmp_path / "scores" / "words.py").write_text("def score(): return 1\n")
    assert before is not None and package_hash("scores:score") not in (None, before)
    assert package_hash("single:score") is None
