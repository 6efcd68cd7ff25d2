"""Functions that a key names as `module:function`."""

import json

import pytest

from data_schemas.errors import ConfigError
from data_schemas.files import read_json
from engine.runtime.functions import find_function
from tests.stages_by_hand import by_hand, refusal


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere:make", "nowhere:make: No module named 'nowhere' (looked beside the recipe, then among installed"),
        ("makers:make", "makers:make: makers has no function 'make'"),
        ("makers:not_a_function", "makers:not_a_function: makers has no function 'not_a_function'"),
        ("makers", "'makers' is not of the form module:function"),
    ],
)
def test_a_function_that_is_not_found_is_one_line(reference, message, words, tmp_path):
    said = refusal(by_hand("prepare_data", *words, "--make_data", reference, cwd=tmp_path))
    assert said.startswith(f"error: {message}")
    outcome = read_json(tmp_path / "out" / "outcome.json")
    assert outcome["kind"] == "config" and outcome["cause"].startswith(message)


def test_a_function_is_looked_up_beside_the_recipe_first(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("def dumps(text):\n    return 'beside the recipe'\n")
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    assert find_function("json:dumps")("x") == "beside the recipe"
    assert find_function("base64:b64encode")(b"") == b""
    assert json.dumps("x") == '"x"', "the module of that name stays"
    (tmp_path / "needs.py").write_text("import no_such_library\n")
    with pytest.raises(ConfigError, match="needs:f: No module named 'no_such_library'"):
        find_function("needs:f")
