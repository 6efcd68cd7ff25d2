"""The progress of a running stage as one line, with speeds and the time left."""

import pytest

from data_schemas.progress import PROGRESS, Activity, StageProgress, describe_progress, duration, speed
from tests.progress_files import EVALUATING, TRAINING, write_progress


def test_the_progress_of_a_stage_is_one_line(tmp_path):
    assert describe_progress(StageProgress.read(tmp_path)) == "starting"
    write_progress(tmp_path)
    assert describe_progress(StageProgress.read(tmp_path)) == "working"
    write_progress(tmp_path, {"name": "loading the model\x1b[2J"})
    assert describe_progress(StageProgress.read(tmp_path)) == "loading the model\\x1b[2J"
    write_progress(tmp_path, TRAINING, {"name": "saving"}, EVALUATING)
    assert describe_progress(StageProgress.read(tmp_path)) == (
        "training 40/200 steps, loss 0.5123, 1.6 steps/s, 2 min left; evaluating 64/300 rows, 81 rows/s, 2.9 s left"
    )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"activities": 3, "started": 1}',
        '{"activities": [{"name": 3}], "started": 1}',
        '{"activities": [{"name": "a", "total": "x"}], "started": 1}',
        '{"activities": [{"nam": "a"}], "started": 1}',
        '{"activities": [{"name": "a", "per_second": NaN}], "started": 1}',
        '{"activities": [], "started": [1]}',
    ],
)
def test_a_damaged_file_is_no_progress(tmp_path, content):
    (tmp_path / PROGRESS).write_text(content)
    assert StageProgress.read(tmp_path) == StageProgress()


def test_the_time_left_is_that_of_the_activitys_own_speed():
    assert Activity("a", 40, 200, "steps", per_second=1.6).seconds_left == 100
    assert Activity("a", 0, 200, "steps").seconds_left is None
    assert Activity("a", 7, None, "steps", per_second=1.6).seconds_left is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.26, "0.3 s"),
        (9.96, "10 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5900, "98 min"),
        (6000, "1 h 40 min"),
        (3 * 86400 + 7300, "3 days 2 h"),
    ],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_a_speed_below_one_a_second_is_the_time_of_one():
    assert [speed(value, "answers") for value in (1234.5, 2.34, 0.25)] == [
        "1,234 answers/s",
        "2.3 answers/s",
        "4.0 s per answer",
    ]
