"""Activities of a stage, their speed, and the file that shows them."""

import json
import threading
import time

import pytest

from data_schemas.artifact import RECORD
from data_schemas.progress import PROGRESS, TIMING, StageProgress
from engine.runtime import progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_speed_leaves_out_the_first_count_and_what_was_done_before(clock):
    with progress.activity("training", total=20, unit="steps") as counter:
        counter.skip(4)
        assert counter.per_second is None
        clock[0] += 50  # the first step compiles
        counter.advance()
        assert counter.per_second == 1 / 50
        clock[0] += 10
        counter.advance(5)
        assert (counter.done, counter.per_second) == (10, 0.5)
        assert counter.report().seconds_left == 20
        counter.skip(3)
        assert (counter.done, counter.per_second) == (13, 0.5)
        clock[0] += 10
        counter.advance_to(12)
        assert counter.done == 13


def test_a_training_of_one_step_has_no_speed(clock):
    with progress.activity("training", total=1, unit="steps") as counter:
        clock[0] += 50  # the evaluation before it
        counter.advance()
        assert counter.per_second is None


def test_counts_go_to_the_innermost_activity_that_is_counted():
    progress.advance()
    with progress.activity("training", total=9) as outer, progress.activity("evaluating", total=5) as inner:
        with progress.activity("loading"):
            progress.advance(2)
        assert list(progress.each("ab", "reading", total=2, unit="rows")) == ["a", "b"]
    assert (outer.done, inner.done) == (0, 2)


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_file_shows_what_goes_on_and_is_gone_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_WRITES", 0.01)
    with progress.published(tmp_path, is_main=True):
        with progress.activity("training", total=9, unit="steps") as counter:
            counter.advance(3)
            counter.loss = 2.5

            @progress.activity("saving")
            def save():
                wait_for(lambda: [a.name for a in StageProgress.read(tmp_path).activities] == ["training", "saving"])

            save()
            shown = StageProgress.read(tmp_path)
        wait_for(lambda: StageProgress.read(tmp_path).activities == ())
    assert (shown.activities[0].done, shown.activities[0].total, shown.activities[0].loss) == (3, 9, 2.5)
    assert shown.started == pytest.approx(time.time(), abs=30)
    assert [path.name for path in tmp_path.iterdir()] == [TIMING]  # for the next start, since there is no record
    (tmp_path / TIMING).write_text('{"train": 5000}')
    with progress.published(tmp_path, is_main=True):
        wait_for(lambda: StageProgress.read(tmp_path).started)
        assert StageProgress.read(tmp_path).started == pytest.approx(time.time() - 5000, abs=30)
        (tmp_path / RECORD).touch()
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_a_process_other_than_the_first_writes_nothing(tmp_path):
    with progress.published(tmp_path, is_main=False), progress.activity("training", total=9) as counter:
        counter.advance()
        time.sleep(0.05)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    with progress.published(tmp_path / "gone", is_main=True):
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_a_loss_that_is_not_a_number_is_shown(tmp_path):
    activity = {"name": "training", "total": 2, "loss": float("nan")}
    (tmp_path / PROGRESS).write_text(json.dumps({"started": 1.0, "activities": [activity]}))
    assert str(StageProgress.read(tmp_path).activities[0].loss) == "nan"


def test_counting_costs_less_than_ten_microseconds():
    with progress.activity("reading", total=10**6, unit="rows") as counter:
        best = min(_seconds_of(counter) for _ in range(5))
    assert best < 10e-6


def _seconds_of(counter):
    started = time.thread_time()
    for _ in range(1000):
        counter.advance()
    return (time.thread_time() - started) / 1000
