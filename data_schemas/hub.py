"""Reads data sets of the Hugging Face hub, by name."""

import re
from pathlib import Path
from typing import Any

from data_schemas.errors import ConfigError
from data_schemas.files import exists
from data_schemas.formats import Line, format_of, shorten
from data_schemas.tables import unfilled

DEFAULT_SPLIT = "train"


def is_hub_name(name: str) -> bool:
    """Whether the text can only be a name of the hub: owner/name, where no folder `owner` and no such path exists."""
    is_name = re.fullmatch(r"[\w-]+/[\w.-]+", name) is not None
    path = Path(name)
    return is_name and not format_of(path) and not exists(path) and not path.parent.is_dir()


def hub_rows(path: str, *, split: str | None, name: str | None, revision: str | None) -> list[Line]:
    """The rows of a data set's split. Raises ConfigError where the hub does not have it or cannot be reached."""
    import datasets

    options: dict[str, Any] = {"name": name, "revision": revision}
    given = {option: value for option, value in options.items() if value is not None}
    try:
        rows = datasets.load_dataset(path, split=split or DEFAULT_SPLIT, **given)
    except Exception as error:  # the hub's client raises a dozen types
        cause = shorten(" ".join(str(error).split()), 200)
        raise ConfigError(f"{path}: no such path, and not available from the hub ({cause})") from None
    return [Line(number, unfilled(row)) for number, row in enumerate(rows, start=1)]
