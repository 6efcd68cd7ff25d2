"""Writes data_schemas/stage_keys.json from the stages' dataclasses; `make keys` after a key or recipe version changes.

python -m commands.describe_keys
"""

import importlib
import json

from data_schemas.files import write_atomically
from data_schemas.stage_keys import KEYS_FILE
from engine.runtime.keys import describe

STAGES = (
    "prepare_data",
    "pretrain",
    "prepare_base",
    "sft",
    "reward_model",
    "annotate",
    "rejection_sampling",
    "dpo",
    "average_models",
    "evaluate_policy",
)


def describe_all() -> str:
    """The content of stage_keys.json."""
    descriptions = {}
    for name in STAGES:
        module = importlib.import_module(f"stages.{name}")
        description = describe(module.RECIPE_VERSION, module.EXAMPLE, module.ARGUMENTS, getattr(module, "DEFAULTS", {}))
        descriptions[name] = description.model_dump(exclude_defaults=True)
    return json.dumps(descriptions, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_atomically(KEYS_FILE, describe_all())
