"""Calls the programs that take a model in this process, which saves the imports."""

import importlib
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from data_schemas.rows import Row
from engine.runtime import process


def call(program: str, *words: Any) -> int:
    """The exit code of a program of commands/ with these words, on the CPU."""
    module = importlib.import_module(f"commands.{program}")
    root = logging.getLogger()
    handlers = list(root.handlers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "use_all_cores", lambda: None)  # threads would only wait for each other
        patch.setattr(sys, "argv", [program, *map(str, words), "--use_cpu"])
        try:
            return module.main()
        finally:
            root.handlers = handlers


def jsonl(path: Path, *rows: Row) -> Path:
    path.write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")
    return path
