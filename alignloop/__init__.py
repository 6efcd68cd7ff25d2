"""alignloop from Python, as in a notebook: docs/python.md describes every name, docs/notebook.ipynb uses them.

    import alignloop

    recipe = alignloop.load_recipe("demo", {"dpo.beta": 0.2})
    alignloop.plan(recipe)                        # a table: step, round, action, why
    run = alignloop.run(recipe)                   # the folder of the run; as `alignloop run` does
    alignloop.rounds(run)                         # the table of rounds
    alignloop.metrics(run, "round-1.dpo")         # every logged number of a step
    model, tokenizer = alignloop.load_best_policy(run)

The import takes a tenth of a second and loads no torch; each function imports what it needs when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

from data_schemas.errors import AlignloopError, BusyError, ConfigError, DataError, UserError, WaitingForPeople

if TYPE_CHECKING:
    from alignloop.models import best_policy, load_best_policy
    from alignloop.recipes import LoadedRecipe, StageFailed, load_recipe, plan, run
    from alignloop.results import metrics, rounds, steps, summary
    from alignloop.table import Table

__all__ = [
    "AlignloopError",
    "BusyError",
    "ConfigError",
    "DataError",
    "LoadedRecipe",
    "StageFailed",
    "Table",
    "UserError",
    "WaitingForPeople",
    "best_policy",
    "load_best_policy",
    "load_recipe",
    "metrics",
    "plan",
    "rounds",
    "run",
    "steps",
    "summary",
]
_MODULES = {
    "models": ("best_policy", "load_best_policy"),
    "recipes": ("LoadedRecipe", "StageFailed", "load_recipe", "plan", "run"),
    "results": ("metrics", "rounds", "steps", "summary"),
    "table": ("Table",),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(importlib.import_module(f"alignloop.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'alignloop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
