"""What the shell completes: the names of steps, and the folders of runs. A mistake on the command line completes to
nothing.
"""

import contextlib
import io
from pathlib import Path

import typer

from data_schemas.errors import UserError
from pipeline.launch.loading import load_checked
from pipeline.recipe.shipped import find_recipe
from pipeline.state.selection import names_of
from pipeline.state.summary import SUMMARY, read, trained_models


def complete_step(context: typer.Context, incomplete: str) -> list[str]:
    """The steps, sections and rounds of the recipe on the command line."""
    recipe, settings = _argument(context, "recipe"), context.params.get("overrides")
    with contextlib.suppress(UserError, OSError), contextlib.redirect_stderr(io.StringIO()):
        _, steps = load_checked(find_recipe(recipe), settings or [])
        return [name for name in names_of(steps) if name.startswith(incomplete)]
    return []


def complete_run(incomplete: str) -> list[str]:
    """The runs in the folder that is typed, or in `runs`."""
    typed = Path(incomplete)
    folder = Path("runs") if "/" not in incomplete else typed if incomplete.endswith("/") else typed.parent
    names = sorted(str(path.parent) for path in folder.glob(f"*/{SUMMARY}"))
    return [name for name in names if name.startswith(incomplete)]


def complete_model(context: typer.Context, incomplete: str) -> list[str]:
    """The steps with a trained model of the run on the command line."""
    with contextlib.suppress(UserError, OSError):
        names = [model["step"] for model in trained_models(read(_argument(context, "run")))]
        return [name for name in names if name.startswith(incomplete)]
    return []


def _argument(context: typer.Context, name: str) -> Path:
    """The command's first argument. While an option has no value yet, the parser leaves it among the rest."""
    return Path(str(context.params.get(name) or next(iter(context.args), "")))
