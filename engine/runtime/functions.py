"""A user's own function, named `module:function` in a recipe."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_schemas.errors import ConfigError


def find_function(reference: str) -> Callable[..., Any]:
    """`module:function`, looked up beside the recipe (ALIGNLOOP_FUNCTION_PATH) first, then as an installed module.

    Raises ConfigError where it can't be found.
    """
    module_name, _, function_name = reference.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
        raise ConfigError(f"{reference!r} is not of the form module:function")
    beside = Path(os.environ.get("ALIGNLOOP_FUNCTION_PATH", ".")) / (module_name.replace(".", "/") + ".py")
    try:
        if beside.is_file():
            spec = importlib.util.spec_from_file_location(f"beside_recipe_{module_name.replace('.', '_')}", beside)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{reference}: {error} (looked beside the recipe, then among installed modules)") from None
    except SyntaxError as error:
        raise ConfigError(f"{reference}: {error.filename}:{error.lineno} is not Python: {error.msg}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{reference}: {module_name} has no function {function_name!r}")
    return function
