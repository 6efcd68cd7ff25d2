"""Every message that docs/troubleshooting.md quotes is one that the code produces."""

import ast
import re

import pytest

from pipeline.launch.command_line import ROOT
from tests.docs.pages import text_of

PACKAGES = ("data_schemas", "engine", "pipeline", "stages", "commands")
HOLE = "\0"  # a value in a message


def messages_of_the_code() -> set[str]:
    """Every text of the code that is no docstring, with holes for its values."""
    found: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = [str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values]
                    found.add("".join(parts))
    return found


def quotations() -> list[str]:
    """The code spans in the first column of the page's tables of messages; … stands for a value."""
    tables = re.findall(
        r"^\| the error[^|\n]*\|[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n)+)", text_of("docs/troubleshooting.md"), re.MULTILINE
    )
    cells = [row.split(" | ")[0] for table in tables for row in table.splitlines()]
    assert all("`" in cell for cell in cells), "a row without a quotation"
    return [quotation for cell in cells for quotation in re.findall(r"`([^`]+)`", cell)]


@pytest.fixture(scope="module")
def code() -> set[str]:
    return messages_of_the_code()


def is_produced(quotation: str, code: set[str]) -> bool:
    """Whether each fixed part of a quotation is in a message. A value may be a message itself, a key's name a value."""
    parts = [part.strip() for part in re.sub(r"\b\w+=…", "…", quotation).split("…")]
    return all(any(part in message for message in code) for part in parts)


@pytest.mark.parametrize("quotation", quotations())
def test_the_code_produces_the_message(quotation, code):
    assert is_produced(quotation, code)
    assert len(quotation.replace("…", "").strip()) > 5


def test_a_message_that_nothing_produces_is_found(code):
    assert len(quotations()) > 80
    assert not is_produced("… disk is full and tired", code)
    assert not is_produced("holds a finished stage … and a whale", code)
