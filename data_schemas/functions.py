"""Where a user's `module:function` is found, and the hash of its source, without importing it.

The planner and the stages use one rule: a module file or a package beside the recipe first, then installed modules.
"""

import ast
import hashlib
import importlib
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_schemas.errors import ConfigError
from data_schemas.files import digest
from data_schemas.text import shown


def source_hash(function: str, folder: Path) -> str:
    """The hash of the function's module, or of the complete package that the module is in."""
    path = find_module(function, folder)
    package = package_of(path)
    if package is None:
        return digest({path.name: hashlib.sha256(path.read_bytes()).hexdigest()})
    sources = sorted(package.rglob("*.py"))
    return digest({str(file.relative_to(package)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sources})


def package_of(path: Path) -> Path | None:
    """The folder of the outermost package that a module's file is in; None for a module outside of packages."""
    package = None
    for folder in path.parents:
        if not (folder / "__init__.py").is_file():
            break
        package = folder
    return package


def find_module(function: str, folder: Path) -> Path:
    """The source file of the module of `module:function`; nothing is imported.

    Looks in `folder`, the recipe's, for `module.py`, for a package `module/__init__.py`, and for the submodules of a
    dotted name; then among installed modules. Raises ConfigError where the module, or the function in it, is missing.
    """
    module, _, name = function.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise ConfigError(f"{shown(function)} is no function: expected module:function, as in my_scores:score")
    path = _find_source(module, [str(folder)]) or _find_source(module, sys.path)
    if path is None:
        raise ConfigError(f"{shown(function)}: no module {shown(module)} beside the recipe ({folder}) or installed")
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:  # the second for null bytes, before Python 3.11.4
        line, why = (f":{error.lineno}", error.msg) if isinstance(error, SyntaxError) else ("", error)
        raise ConfigError(f"{function}: {path}{line} is not Python: {why}") from None
    if not _defines(tree, name, folder):
        raise ConfigError(f"{function}: {path} defines no function {name!r}")
    return path


def is_beside(module: str, folder: Path) -> bool:
    """Whether the module is found in the recipe's folder, and not among installed modules."""
    return _find_source(module, [str(folder)]) is not None


def _find_source(module: str, search: Sequence[str]) -> Path | None:
    parts = module.split(".")
    folders: Sequence[str] | None = search
    spec = None
    for end in range(1, len(parts) + 1):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:end]), folders) if folders else None
        folders = spec.submodule_search_locations if spec else None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _defines(tree: ast.Module, name: str, folder: Path) -> bool:
    """Whether a module may define the function. From modules that are not read, all of whose names it imports, it may;
    those built into Python are asked."""
    names = set(_names_defined(tree.body))
    if name in names:
        return True
    modules = [star.removeprefix("* from ") for star in names if star.startswith("* from ")]
    return any(_may_have(module, name, folder) for module in modules)


def _may_have(module: str, name: str, folder: Path) -> bool:
    """Whether a module of which everything is imported may have the name: not where there is none, as `nt` on Linux."""
    if module in sys.builtin_module_names:
        return hasattr(importlib.import_module(module), name)
    first = module.partition(".")[0]
    return not first or importlib.machinery.PathFinder.find_spec(first, [str(folder), *sys.path]) is not None


def _names_defined(body: Sequence[ast.stmt]) -> Iterator[str]:
    """The names that a module's statements define and that may be functions, also inside `if` and `try`. `* from
    module` for an import of all its names. `import x` defines a module, and `x = 3` no function."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            everything = f"* from {'.' * node.level}{node.module or ''}"
            yield from (everything if alias.name == "*" else alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not isinstance(node.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.If):
            yield from _names_defined([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _names_defined([*node.body, *node.orelse, *node.finalbody])
            yield from _names_defined([line for handler in node.handlers for line in handler.body])
