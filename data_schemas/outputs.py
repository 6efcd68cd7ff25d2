"""The file that a command writes: its name is checked before any work, and nothing is overwritten."""

from collections.abc import Callable
from pathlib import Path

from data_schemas.errors import ConfigError
from data_schemas.files import check_name, exists
from data_schemas.formats import compression_of, format_of
from data_schemas.stage_keys import path_problem


def check_new_file(path: Path, *, what: str = "the output", may_replace: Callable[[Path], bool] | None = None) -> None:
    """Raises ConfigError where the path names no file, exists already, or is in a folder that does not exist.

    `may_replace` recognises a file that the same command wrote before.
    """
    check_name(path)
    if problem := path_problem(str(path)):
        raise ConfigError(f"{what} {path} {problem}")
    if not path.name or path.is_dir():
        raise ConfigError(f"{what} {path} is a folder; expected the name of a file")
    if exists(path) and not (may_replace is not None and may_replace(path)):
        raise ConfigError(f"{what} {path} exists already; move it away, or give another name")
    if not path.parent.is_dir():
        remedy = (
            "is a file; give another name" if exists(path.parent) else "does not exist; create it, or give another name"
        )
        raise ConfigError(f"{what}'s folder {path.parent} {remedy}")


def check_is_json_lines(path: Path) -> None:
    """Raises ConfigError where a name says another format than JSON lines, which are written."""
    ending = format_of(path) + compression_of(path)
    if ending not in ("", ".jsonl"):
        raise ConfigError(f"the output {path} is written as JSON lines, and its name ends in {ending}; expected .jsonl")
