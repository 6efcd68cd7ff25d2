"""The command that a message shows can be copied into the shell."""

import sys
from pathlib import Path

import pytest

from pipeline.report.errors import command_name

PYTHON = Path(sys.executable)


@pytest.mark.parametrize(
    ("called", "shown"),
    [
        (PYTHON.with_name("alignloop"), str(PYTHON.with_name("alignloop"))),
        (Path("pipeline/cli/__main__.py"), f"{PYTHON} -m pipeline.cli"),
        (Path("notebook.py"), str(PYTHON.with_name("alignloop"))),
    ],
)
def test_the_command_is_shown_as_it_can_be_typed(called, shown, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # paths outside the working directory are complete
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(called)])
    assert command_name() == shown
