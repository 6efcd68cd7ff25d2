"""Writes data_schemas/stage_keys.json from the stages' dataclasses; `make keys` after a key or recipe version changes.

python -m commands.describe_keys
"""

import importlib
import json
from pathlib import Path

from data_schemas.files import write_atomically
from data_schemas.stage_keys import KEYS_FILE, StageDescription
from engine.runtime import trl_limits
from engine.runtime.keys import Library, describe

STAGES = Path(__file__).absolute().parents[1] / "stages"
LIBRARY = Library(trl_limits.LIMITS, trl_limits.CHOICES, trl_limits.MAY_BE_EMPTY)


def describe_all() -> str:
    """The content of stage_keys.json: every program in stages/, in the order of the loop."""
    found: dict[str, StageDescription] = {}
    for path in STAGES.glob("[!_]*.py"):
        stage = importlib.import_module(f"stages.{path.stem}")
        keys = describe(stage.ARGUMENTS, getattr(stage, "DEFAULTS", {}), LIBRARY)
        found[path.stem] = StageDescription(
            recipe_version=stage.RECIPE_VERSION, example=stage.EXAMPLE, traits=stage.TRAITS, keys=keys
        )
    in_order = sorted(found.items(), key=lambda item: item[1].traits.position)
    content = {name: description.model_dump(exclude_defaults=True) for name, description in in_order}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_atomically(KEYS_FILE, describe_all())
