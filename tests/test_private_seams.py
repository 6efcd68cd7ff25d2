"""docs/private-seams.md: its names exist in the installed libraries, its files use them, its tests exist, and it lists
every private name of a library that the product reads."""

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "private-seams.md"
PACKAGES = ("commands", "data_schemas", "engine", "pipeline", "stages")
LINE = re.compile(r"^\| `([\w.]+:[\w.]+)` \| (`[^|]+`) \| ([^|]+) \| `([^|]+)::(\w+)` \|$")


def seams() -> list[tuple[str, list[str], str, str]]:
    """(name, files, test file, test) of every line of the page's tables."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if match := LINE.match(line):
            name, files, _, test_file, test = match.groups()
            found.append((name, re.findall(r"`([^`]+)`", files), test_file, test))
    return found


def resolve(name: str) -> Any:
    """The object that `module:a.b` names. `module:Class.self.attribute` is an attribute that only instances have: the
    class is returned, and its source, or that of a base class, has to set the attribute."""
    module, _, path = name.partition(":")
    value: Any = importlib.import_module(module)
    before, _, attribute = path.partition(".self.")
    for part in before.split("."):
        value = getattr(value, part)
    if attribute:
        sources = [inspect.getsource(base) for base in value.__mro__ if base is not object]
        pattern = rf"\bself\.{attribute}\b|\"{attribute}\"|\b{attribute}:|super\(\)\.__setattr__\(\"{attribute}\""
        if not any(re.search(pattern, source) for source in sources):
            raise AttributeError(f"{value.__name__} does not set {attribute}")
    return value


def test_every_line_of_the_tables_is_read():
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(lines) == len(seams()) > 30
    assert len({name for name, *_ in seams()}) == len(lines)


@pytest.mark.parametrize("name", [name for name, *_ in seams()])
def test_the_name_exists_in_the_installed_library(name):
    module, _, path = name.partition(":")
    owner, _, last = path.partition(".self.")[0].rpartition(".")
    assert hasattr(resolve(f"{module}:{owner}") if owner else importlib.import_module(module), last)
    resolve(name)


@pytest.mark.parametrize("name", ["trl.trainer.dpo_trainer:DPOTrainer._gone", "torch.nn:Module.self._gone"])
def test_a_name_that_is_gone_is_noticed(name):
    with pytest.raises(AttributeError):
        resolve(name)


def test_every_file_uses_the_name_and_every_test_exists():
    for name, files, test_file, test in seams():
        for file in files:
            assert re.search(rf"\b{name.rpartition('.')[2].rpartition(':')[2]}\b", (ROOT / file).read_text()), (
                name,
                file,
            )
        assert re.search(rf"^def {test}\(", (ROOT / test_file).read_text(), re.MULTILINE), (name, test)


def private_names_of_libraries() -> dict[str, Path]:
    """Attributes with a leading underscore that the product reads of anything but `self`, and defines nowhere."""
    read: dict[str, Path] = {}
    own: set[str] = set()
    for file in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute) and re.match(r"_[a-zA-Z]", node.attr):
                base = node.value.id if isinstance(node.value, ast.Name) else ""
                if base == "self" and isinstance(node.ctx, ast.Store):
                    own.add(node.attr)
                elif base not in ("self", "cls", "os"):
                    read[node.attr] = file
    return {name: file for name, file in read.items() if name not in own}


def test_no_private_name_of_a_library_is_missing_from_the_page():
    found = private_names_of_libraries()
    assert {"_attn_implementation", "_reorder_linear_weight"} <= found.keys()
    listed = {name.rpartition(".")[2].rpartition(":")[2] for name, *_ in seams()}
    assert not {name: file for name, file in found.items() if name not in listed}
    assert "trl" in sys.modules  # the names above were looked up in the real library
