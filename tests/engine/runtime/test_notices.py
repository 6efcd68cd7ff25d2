"""Warnings that get into the record, also those of an earlier attempt."""

import logging

from engine.runtime import notices

log = logging.getLogger("test")


def test_a_warning_is_logged_and_kept_once(tmp_path, caplog):
    notices.start(tmp_path)
    for _ in range(2):
        notices.warn(log, "%d rows of %s", 3, "a")
    notices.warn(log, "100% of the rows")
    assert notices.kept() == ["3 rows of a", "100% of the rows"]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3


def test_a_resumed_stage_keeps_the_warnings_of_earlier_attempts_and_another_one_does_not(tmp_path):
    notices.start(tmp_path)
    notices.keep("padded")
    notices.start(tmp_path)
    notices.keep("emulated")
    assert notices.kept() == ["padded", "emulated"]
    notices.start(tmp_path / "other")
    assert notices.kept() == []
    notices.start(None)
    notices.keep("no folder")
    assert notices.kept() == ["no folder"] and not list(tmp_path.glob("*.json"))
