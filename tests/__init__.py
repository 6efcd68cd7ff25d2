"""Tests, in folders that mirror the packages.

Only this folder is a Python package: a `tests/engine/__init__.py` would mask our `engine` for a script in that folder.
"""

import pytest

# The helpers that contain asserts: pytest shows the compared values only for modules that it rewrites.
pytest.register_assert_rewrite(
    "tests.bad_inputs.cases",
    "tests.engine.training.training_runs",
    "tests.faults.runs",
    "tests.loop_fixtures",
    "tests.loop_recipes",
    "tests.pipeline.toy_house",
    "tests.stage_runs",
    "tests.stages_by_hand",
)
