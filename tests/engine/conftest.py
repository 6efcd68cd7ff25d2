"""A stage for functions that only need its folder and its log."""

import pytest

from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage("test", tmp_path, {}, Tracker(tmp_path, active=False), is_main=True)
