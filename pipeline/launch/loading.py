"""A recipe and its plan, both checked. What a `--set` got wrong is reported as a mistake of this setting."""

from collections.abc import Sequence
from pathlib import Path

from data_schemas.errors import UserError
from pipeline.launch.checks import check_recipe
from pipeline.plan import Step, make_plan
from pipeline.recipe.schema import Recipe, load_recipe, shown_setting


def load_checked(path: Path, overrides: Sequence[str]) -> tuple[Recipe, list[Step]]:
    """Raises UserError, which begins with the setting that causes it, or with the file."""
    try:
        return _load(path, overrides)
    except UserError as error:
        override = _cause(path, overrides, str(error))
        if override is None or str(error).startswith("--set"):
            raise
        raise type(error)(f"--set {shown_setting(override)}: {str(error).removeprefix(f'{path}: ')}") from None


def _load(path: Path, overrides: Sequence[str]) -> tuple[Recipe, list[Step]]:
    recipe = load_recipe(path, overrides)
    steps = make_plan(recipe)
    check_recipe(recipe, steps)
    return recipe, steps


def _cause(path: Path, overrides: Sequence[str], message: str) -> str | None:
    """The override that the error names, if the error is another one without it. Else the one without which nothing is
    wrong, or else the only one without which the error is another one."""

    def is_named(override: str) -> bool:
        key = override.partition("=")[0]
        return message.removeprefix(f"{path}: ").startswith((f"{key}:", f"{key}="))

    changing: list[str] = []
    for place, override in sorted(enumerate(overrides), key=lambda item: not is_named(item[1])):
        try:
            _load(path, [*overrides[:place], *overrides[place + 1 :]])
        except UserError as error:
            if str(error) != message:
                if is_named(override):
                    return override
                changing.append(override)
        else:
            return override
    return changing[0] if len(changing) == 1 else None
