"""Errors that are no user's mistake: one line, and the traceback where it was asked for."""

import errno
import re
from pathlib import Path

import pytest

from data_schemas.files import DISK_FULL
from data_schemas.unexpected import TRACEBACKS, guarded


def fail() -> int:
    raise KeyError("a\x1b[31m\nb")


def full() -> int:
    raise OSError(errno.EDQUOT, "Disk quota exceeded", "x\x1b.json")


@pytest.mark.parametrize("is_verbose", [False, True])
def test_an_unexpected_error_is_one_line_and_its_traceback_is_in_a_file(is_verbose, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(TRACEBACKS, "1" if is_verbose else "")
    assert guarded(fail) == 1
    *traceback, line = capsys.readouterr().err.splitlines()
    (named,) = re.findall(r"^error: unexpected KeyError: .*; its traceback is in (.*); this is a bug: please", line)
    assert "raise KeyError" in Path(named).read_text()
    assert "\x1b" not in line
    assert bool(traceback) == is_verbose


def test_a_full_disk_is_no_bug(monkeypatch, capsys):
    monkeypatch.delenv(TRACEBACKS, raising=False)
    assert guarded(full) == 1
    assert capsys.readouterr().err == f"error: x\\x1b.json: Disk quota exceeded; {DISK_FULL}\n"


def test_the_result_of_a_program_is_its_own():
    assert guarded(lambda: 2) == 2
