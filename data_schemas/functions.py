"""Where a user's `module:function` is found, and the hash of its source, without importing it."""

import ast
import hashlib
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path

from data_schemas.errors import ConfigError
from data_schemas.files import digest


def source_hash(function: str, folder: Path) -> str:
    """The hash of the function's module, or of its whole package where it lies in one."""
    path = find_module(function, folder)
    package = path.parent
    if not (package / "__init__.py").is_file():
        return digest({path.name: hashlib.sha256(path.read_bytes()).hexdigest()})
    while (package.parent / "__init__.py").is_file():
        package = package.parent
    sources = sorted(package.rglob("*.py"))
    return digest({str(file.relative_to(package)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sources})


def find_module(function: str, folder: Path) -> Path:
    """The source of the module of `module:function`, looked up beside the recipe first; nothing is imported.

    Raises ConfigError where the module or the function in it is not found.
    """
    module, _, name = function.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise ConfigError(f"{function!r} is no function: expected module:function, as in my_scores:score")
    search: Sequence[str] | None = [str(folder), *sys.path]
    spec = None
    for part in range(1, module.count(".") + 2):
        spec = importlib.machinery.PathFinder.find_spec(".".join(module.split(".")[:part]), search)
        search = spec.submodule_search_locations if spec else None
        if spec is None:
            break
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise ConfigError(f"{function}: no module {module!r} beside the recipe ({folder}) or installed")
    path = Path(spec.origin)
    try:
        defined = _names_defined(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError) as error:  # the second for null bytes, before Python 3.11.4
        line, why = (f":{error.lineno}", error.msg) if isinstance(error, SyntaxError) else ("", error)
        raise ConfigError(f"{function}: {path}{line} is not Python: {why}") from None
    if name not in defined:
        raise ConfigError(f"{function}: {path} defines no {name!r}")
    return path


def _names_defined(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names
