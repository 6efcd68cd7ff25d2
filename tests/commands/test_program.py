"""What the programs that take a model show while they work."""

import io
import logging
import time

import pytest
from rich.console import Console

from commands import program
from engine.runtime import progress
from tests.processes import within


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_with_the_time_left(is_terminal, monkeypatch):
    monkeypatch.setattr(program, "LINE_SECONDS", 0.01)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=100, color_system=None)
    monkeypatch.setenv("TERM", "xterm")
    with program.displayed(console), progress.activity("generating answers", total=8, unit="answers") as counter:
        counter.first = (time.monotonic() - 10, 0)
        counter.done, counter.last = 4, time.monotonic()
        shown = "generating answers 4/8 answers, 2.5 s per answer, 10 s left"
        assert within(60, lambda: shown in stream.getvalue())
    end = stream.getvalue()
    assert ("\x1b[?25h" in end) is is_terminal  # the cursor is shown again
    time.sleep(0.05)
    assert stream.getvalue() == end


def test_a_warning_is_one_escaped_line():
    console = Console(file=io.StringIO(), width=40)
    handler = program._ConsoleHandler(console)
    handler.handle(logging.LogRecord("a", logging.WARNING, "", 0, "column %s " + "x" * 60, ("\x1b[2J",), None))
    assert console.file.getvalue() == "warning: column \\x1b[2J " + "x" * 60 + "\n"  # pyright: ignore[reportAttributeAccessIssue]
