"""The direction of imports: data_schemas <- pipeline, engine <- stages. Only engine and stages import torch."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# package -> which of our packages it may import
ALLOWED = {
    "data_schemas": {"data_schemas"},
    "engine": {"engine", "data_schemas"},
    "stages": {"stages", "engine", "data_schemas"},
    "commands": {"commands", "stages", "engine", "data_schemas"},
    "pipeline": {"pipeline", "data_schemas"},
    "alignloop": {"alignloop", "pipeline", "data_schemas"},
    "toy_world": {"toy_world"},
}
# The wings of engine and pipeline, in order: each may import those before it, and itself.
WINGS = {
    "engine": (
        "runtime",
        "endpoints",
        "tokens",
        "curation",
        "models",
        "packing",
        "sampling",
        "judging",
        "tasks",
        "training",
        "reinforcement",
    ),
    "pipeline": (
        "recipe",
        "steps",
        "averages",
        "builder",
        "foundation",
        "plan",
        "unused",
        "state",
        "launch",
        "planner",
        "scaling",
        "submit",
        "report",
        "export",
        "cli",
        "entry",
    ),
}
# Wings of engine that never import each other, in either direction.
APART = {("sampling", "packing"), ("training", "sampling"), ("training", "judging"), ("models", "curation")}
HEAVY = {"torch", "transformers", "trl", "accelerate", "datasets", "deepspeed", "peft", "wandb"}
WITHOUT_HEAVY = ("data_schemas", "pipeline", "toy_world")


def imported(source: str) -> set[str]:
    """Top-level names of everything that a file imports, also inside functions. A relative import is `.`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else str(node.module).partition(".")[0])
    return names


def test_imports_inside_functions_and_relative_ones_are_seen():
    assert imported("import a.b\ndef f():\n    from c.d import e\n    from . import g\n") == {"a", "c", "."}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_go_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) >= 4
    # `datasets` is imported only when a hub name is read: the test below checks that it is not imported before.
    heavy = HEAVY - {"datasets"} if package in WITHOUT_HEAVY else set()
    forbidden = set(ALLOWED) - ALLOWED[package] | {"."} | heavy
    for file in files:
        assert not imported(file.read_text(encoding="utf-8")) & forbidden, file


def wing_imports(package: str) -> set[tuple[str, str]]:
    """(importing wing, imported wing) of every import inside a package, also in functions."""
    found: set[tuple[str, str]] = set()
    for file in (ROOT / package).rglob("*.py"):
        wing = file.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module == package:
                modules = [f"{package}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [str(node.module)]
            found |= {(wing, name.split(".")[1]) for name in modules if name.startswith(f"{package}.")}
    return found


@pytest.mark.parametrize("package", sorted(WINGS))
def test_a_wing_imports_only_wings_before_it(package):
    order = WINGS[package]
    found = wing_imports(package)
    assert {wing for pair in found for wing in pair} == set(order)  # every wing is listed, and every listed wing exists
    assert not {(wing, other) for wing, other in found if order.index(other) > order.index(wing)}
    if package == "engine":
        assert not {pair for pair in found if pair in APART or pair[::-1] in APART}


def test_no_modules_import_each_other():
    files = [file for package in ALLOWED for file in (ROOT / package).rglob("*.py")]
    modules = {str(file.relative_to(ROOT).with_suffix("")).replace("/", "."): file for file in files}
    imports: dict[str, set[str]] = {}
    for module, file in modules.items():
        imports[module] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imports[module] |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                imports[module] |= {alias.name for alias in node.names}
        imports[module] &= modules.keys()
    assert sum(map(len, imports.values())) > 100
    while removable := {module for module, needed in imports.items() if not needed}:
        imports = {module: needed - removable for module, needed in imports.items() if module not in removable}
    assert not imports  # the remaining modules import themselves, directly or through others


@pytest.mark.parametrize(
    "module", ["pipeline.cli", "alignloop.recipes", "alignloop.models", "data_schemas.reading", "stages.prepare_data"]
)
def test_planning_and_reading_load_no_torch(module):
    """Neither does the stage that only reads and splits rows."""
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_importing_alignloop_loads_only_the_errors():
    """A notebook imports it in a tenth of a second: each function imports what it needs at its first use."""
    code = (
        "import sys, alignloop; print(*sorted(name for name in sys.modules if name.partition('.')[0] in sys.argv[1:]))"
    )
    slow = (*HEAVY, "alignloop", "pipeline", "data_schemas", "pydantic", "rich", "yaml", "pandas")
    done = subprocess.run([sys.executable, "-c", code, *slow], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["alignloop", "data_schemas", "data_schemas.errors"]


def test_no_stage_or_package_bears_the_name_of_an_installed_library():
    """A script's own folder comes first on sys.path: stages/evaluate.py would mask a library of that name."""
    installed = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names) | {"evaluate"}
    stages = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert len(stages) >= 9
    assert not stages & installed
    ours = {name for name, by in importlib.metadata.packages_distributions().items() if set(by) == {"alignloop"}}
    assert not set(ALLOWED) & (installed - ours)
