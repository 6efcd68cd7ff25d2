"""A stage's time by part: the time of a nested part does not count for the outer part."""

import pytest

from engine.runtime import timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves on."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    timing.start()
    return wait


def test_a_nested_part_stops_the_outer_parts_clock(clock):
    clock(1)
    with timing.part("train"):
        clock(10)
        with timing.part("evaluate"):
            clock(3)
            with timing.part("save"):
                clock(2)
            clock(4)
        clock(20)
    clock(5)
    assert timing.by_part() == {"other": 6, "train": 30, "evaluate": 7, "save": 2}


def test_a_part_ends_where_it_raises_and_a_new_stage_starts_at_zero(clock):
    @timing.part("load")
    def fails() -> None:
        clock(2)
        raise ValueError

    with pytest.raises(ValueError):
        fails()
    with pytest.raises(ValueError):
        fails()
    clock(1)
    assert timing.by_part() == {"load": 4, "other": 1}
    timing.start()
    clock(1)
    assert timing.by_part() == {"other": 1}
