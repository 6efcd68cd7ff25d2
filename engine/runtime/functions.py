"""Loading a user's own function, named `module:function` in a recipe."""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from data_schemas.errors import ConfigError
from data_schemas.functions import find_module, is_beside, package_of, source_hash


def find_function(reference: str) -> Callable[..., Any]:
    """The function of `module:function`, found by the planner's rule (data_schemas/functions.py) and imported.

    The recipe's folder is ALIGNLOOP_FUNCTION_PATH, else the working directory. Raises ConfigError where the function
    is missing or not callable, or where its module cannot be imported.
    """
    folder = _recipe_folder()
    path = find_module(reference, folder)
    module_name, _, function_name = reference.partition(":")
    try:
        if is_beside(module_name, folder):
            module = _load_beside_recipe(module_name, path, folder)
        else:
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{reference}: {path} cannot be imported: {error}") from None
    except SyntaxError as error:
        raise ConfigError(f"{reference}: {error.filename}:{error.lineno} is not Python: {error.msg}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{reference}: {function_name!r} in {path} is not a function")
    return function


def package_hash(reference: str) -> str | None:
    """The hash of the package that the function of `module:function` is in; None for a module outside of packages."""
    folder = _recipe_folder()
    is_in_package = package_of(find_module(reference, folder)) is not None
    return source_hash(reference, folder) if is_in_package else None


def function_hash(reference: str) -> str:
    """The hash of the module or package that the function of `module:function` is in."""
    return source_hash(reference, _recipe_folder())


def _recipe_folder() -> Path:
    return Path(os.environ.get("ALIGNLOOP_FUNCTION_PATH", ".")).absolute()


def _load_beside_recipe(module_name: str, path: Path, folder: Path) -> ModuleType:
    """Imports a file, or the package it is in, without putting the recipe's folder on sys.path.

    So nothing in that folder masks the standard library, an installed module, or one of ours. A package keeps its own
    name, by which its modules may import each other, unless another module has that name: then its name is private,
    and relative imports still work. A single file always has a private name.
    """
    package = package_of(path)
    if package is None or folder not in package.parents:
        return _import_file(_private(module_name), path)
    start = package / "__init__.py"
    parts = module_name.split(".")
    depth = len(package.relative_to(folder).parts)
    name = parts[0] if depth == 1 and _is_free(parts[0], start) else _private(".".join(parts[:depth]))
    if getattr(sys.modules.get(name), "__file__", None) != str(start):
        _forget(name)
        _import_file(name, start, search=[str(package)])
    return importlib.import_module(".".join([name, *parts[depth:]]))


def _private(module_name: str) -> str:
    return f"beside_recipe_{module_name.replace('.', '_')}"


def _is_free(name: str, start: Path) -> bool:
    """Whether no module but the package of this `__init__.py` has the name."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None) == str(start)
    spec = importlib.machinery.PathFinder.find_spec(name, sys.path)
    is_taken = spec is not None and spec.origin not in (None, str(start))
    return not is_taken and name not in sys.stdlib_module_names


def _import_file(name: str, path: Path, *, search: list[str] | None = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=search)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and relative imports look themselves up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        _forget(name)
        raise
    return module


def _forget(name: str) -> None:
    for loaded in [loaded for loaded in sys.modules if loaded == name or loaded.startswith(f"{name}.")]:
        del sys.modules[loaded]
