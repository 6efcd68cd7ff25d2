"""Paths of a recipe as its stages get them: absolute, with environment variables and `~` expanded, globs as files.

    base_model: $MODELS/llama-3-8b
    data: {instructions: ["~/chats.jsonl", "${DATA}/part-*.jsonl"]}

A path is looked up in the working directory, then in the recipe's folder. A name that exists as it is written is not
expanded, so files whose names contain `$` or `[` can be used too.
"""

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_schemas.errors import ConfigError
from data_schemas.files import check_name, exists
from data_schemas.sources import Source, SourceValue

VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")


def locate(value: str, folder: Path, *, where: str) -> str:
    """The absolute path of `value` in the working directory, else in `folder`; the expanded `value` if neither exists.

    Raises ConfigError, which begins with `where`, for a variable that is not set, the home folder of a user that does
    not exist, and a path that is not UTF-8.
    """
    expanded = expand(value, folder, where=where)
    path = _existing(expanded, folder)
    if path is not None:
        check_name(path)
    return str(path) if path else expanded


def locate_rows(value: SourceValue, folder: Path, *, where: str) -> list[str | dict[str, Any]]:
    """The sources that one entry of a list of files means, with absolute paths; a glob may mean several, sorted.

    Raises ConfigError as `locate` does, and for a glob that matches nothing.
    """
    text = str(value["path"] if isinstance(value, Mapping) else value)
    if literal := _existing(text, folder):  # also a name that could be read as path:split
        check_name(literal)
        return [Source.of({**value, "path": str(literal)} if isinstance(value, Mapping) else literal).value()]
    source = Source.of(value, where=where)
    path = locate(source.path, folder, where=where)
    if exists(Path(path)) or not glob.has_magic(path):
        return [replace(source, path=path).value()]
    for base in (Path.cwd(), folder):
        # Not Path.glob, which refuses absolute patterns.
        if names := sorted(glob.glob(path, root_dir=base, recursive=True)):  # noqa: PTH207
            return [replace(source, path=str((base / name).absolute())).value() for name in names]
    raise ConfigError(f"{where}: {path!r} matches no file, neither in {Path.cwd()} nor beside the recipe")


def _existing(value: str, folder: Path) -> Path | None:
    candidates = ((base / value).absolute() for base in (Path.cwd(), folder))
    return next((path for path in candidates if exists(path)), None)


def expand(value: str, folder: Path, *, where: str) -> str:
    """`value` with environment variables and `~` expanded; unchanged where it exists as it is written, in the working
    directory or in `folder`. Raises ConfigError as `locate` does."""
    if _existing(value, folder):
        return value

    def value_of(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise ConfigError(f"{where}={value!r}: the environment variable {name} is not set")
        return os.environ[name]

    expanded = VARIABLE.sub(value_of, value)
    try:
        return str(Path(expanded).expanduser()) if expanded.startswith("~") else expanded
    except RuntimeError:
        home = expanded.partition("/")[0]
        raise ConfigError(f"{where}={value!r}: {home} is no home folder: this machine knows no such user") from None
