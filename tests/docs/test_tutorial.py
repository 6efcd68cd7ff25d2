"""docs/tutorial.md: its commands run as written, in order, and print what it shows, apart from numbers and answers."""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.pages import BLOCK, text_of
from tests.loop_recipes import COMMAND, clean_environment
from tests.patience import PATIENCE

PAGE = text_of("docs/tutorial.md")
CHEAP = ("python make_files.py", "head ", "alignloop data ", "alignloop plan shop.yaml")
LEFT_OUT = "..."
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]\d+)?%?")


class Step(NamedTuple):
    command: str
    shown: list[str]


def steps() -> list[Step]:
    """The commands that the page marks with `$`, each with the lines that it shows."""
    found: list[Step] = []
    for block in BLOCK.finditer(PAGE):
        lines = block[2].splitlines()
        for line in lines if not block[1] and any(line.startswith("$ ") for line in lines) else []:
            if line.startswith("$ "):
                found.append(Step(line[2:], []))
            elif line.strip() not in ("", LEFT_OUT):
                found[-1].shown.append(line)
    return found


def shape(line: str) -> str:
    """A line without its numbers, its answers, the digits of folders and the widths of columns."""
    line = re.sub(r"(round-\d\.\w+: ).*", r"\1answer", line)  # also with a score before the answer
    line = re.sub(r"^[-+]\d+\.\d+  .*", "difference  prompt", line)
    line = re.sub(r"-[0-9a-f]{8}\b", "-digits", line)
    return " ".join(NUMBER.sub("N", line).split())


def missing(shown: list[str], printed: str) -> list[str]:
    """The shown lines that were not printed, in this order."""
    lines = iter([shape(line) for line in printed.splitlines()])
    return [line for line in shown if not any(shape(line) == other for other in lines)]


@pytest.fixture
def shop(tmp_path) -> Path:
    for name in ("make_files.py", "shop.yaml"):
        (text,) = (block[2] for block in BLOCK.finditer(PAGE) if block[2].startswith(f"# {name}\n"))
        (tmp_path / name).write_text(text)
    return tmp_path


def follow(step: Step, folder: Path) -> None:
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", step.command],
        cwd=folder,
        env=clean_environment() | {"PATH": path, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    printed = f"{done.stderr}\n{done.stdout}"
    assert done.returncode == 0, printed
    assert missing(step.shown, printed) == [], printed


def test_the_commands_before_the_first_step_print_what_the_tutorial_shows(shop):
    before = [step for step in steps() if step.command.startswith(CHEAP) and "--set" not in step.command]
    assert len(before) == 6
    for step in before:
        follow(step, shop)


@pytest.mark.long
def test_every_command_of_the_tutorial_runs_in_order(shop):
    assert len(steps()) > 14
    for step in steps():
        follow(step, shop)
    assert (shop / "runs" / "shop" / "report.html").is_file() and (shop / "my-model" / "config.json").is_file()


def test_a_line_that_is_not_printed_is_found():
    assert missing(["a  1.5", "b-0123abcd"], "a 2.25\nother\nb-00000000\n") == []
    assert missing(["b", "a"], "a\nb\n") == ["a"]
    assert missing(["rows 3 valid"], "rows 3 bad") == ["rows 3 valid"]
