"""A stage's time by part: the time of a nested part does not count for the outer part, and
that of the launch and of interrupted starts does."""

import socket

import pytest

from data_schemas.progress import LAUNCHED, TIMING
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


def test_the_launch_and_the_starts_before_this_one_count(clock, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLOOP_RUNNER_HOST", socket.gethostname())
    monkeypatch.setenv(LAUNCHED, "93.5")
    (tmp_path / TIMING).write_text('{"train": 30.0, "start": 5.0, "unknown": 7}')
    timing.start(tmp_path)
    clock(2)
    assert timing.by_part() == {"train": 30, "start": 11.5, "other": 2}


@pytest.mark.parametrize("host, launched", [("elsewhere", "93.5"), ("", "soon"), ("", "nan")])
def test_the_launch_counts_only_where_its_clock_is_this_machines(host, launched, clock, monkeypatch):
    monkeypatch.setenv("ALIGNLOOP_RUNNER_HOST", host or socket.gethostname())
    monkeypatch.setenv(LAUNCHED, launched)
    timing.start()
    assert timing.by_part() == {"other": 0}


def test_a_launch_in_the_future_counts_nothing(clock, monkeypatch):
    monkeypatch.setenv("ALIGNLOOP_RUNNER_HOST", socket.gethostname())
    monkeypatch.setenv(LAUNCHED, "1e9")
    timing.start()
    assert timing.by_part() == {"start": 0, "other": 0}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"train": "x"}',
        '{"train": -3}',
        '{"train": NaN}',
        '{"train": 1e308}',
        f'{{"train": 1{"0" * 400}}}',
        "\xff",
    ],
)
def test_a_damaged_file_of_earlier_starts_counts_nothing(content, clock, tmp_path):
    (tmp_path / TIMING).write_bytes(content.encode("latin-1"))
    timing.start(tmp_path)
    clock(1)
    assert timing.by_part() == {"other": 1}
