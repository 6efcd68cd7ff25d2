"""Where rows come from: a file, a folder or a data set of the hub, with its split, columns and share.

A recipe and a stage's config give a source as text or as a mapping:
    pairs.jsonl                                    a file; a folder, or a data set of the hub, owner/name
    folder:test, owner/name@revision:train_sft     its split, and a revision of the hub
    {path: x.csv, columns: {prompt: Q, answer: A}, share: 0.5}
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_schemas.errors import ConfigError, DataError
from data_schemas.files import absent, check_name, check_regular, exists
from data_schemas.folders import data_files
from data_schemas.formats import EXPECTED_FORMATS, Lines, format_of, shorten
from data_schemas.hub import hub_rows, is_hub_name
from data_schemas.json_files import json_rows
from data_schemas.known_columns import exchanged
from data_schemas.line_files import JSONLines, Paragraphs, Renamed
from data_schemas.plain_files import PlainFile
from data_schemas.tables import arrow_rows, csv_rows, parquet_rows, tsv_rows
from data_schemas.text import listed, nearest
from data_schemas.yaml_files import load_yaml

KEYS = ("path", "split", "name", "revision", "columns", "share", "tag")
TEXT_READERS: dict[str, Callable[[PlainFile], Lines]] = {
    ".jsonl": JSONLines,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".txt": Paragraphs,
}
BINARY_READERS = {".parquet": parquet_rows, ".arrow": arrow_rows}
SourceValue = str | Path | Mapping[str, Any]  # a source as a config gives it


@dataclass(frozen=True)
class Source:
    """One source of rows."""

    path: str  # a file, a folder, or a hub name
    split: str | None = None  # None: the training split, where there are several
    name: str | None = None  # the configuration of a hub data set
    revision: str | None = None  # of a hub data set
    columns: Mapping[str, str] = field(default_factory=dict)  # name that a dialect knows -> column of the source
    share: float = 1.0  # below 1: a random share of the dialogs; above: copies of the rows
    tag: str | None = None  # the capability that its rows ask for, where they do not have a tag themselves

    @classmethod
    def of(cls, value: SourceValue, *, where: str = "") -> "Source":
        """The source that a config's text or mapping means.

        Raises ConfigError, which begins with `where`, for an unknown key and for a value that a key cannot have.
        """
        if not isinstance(value, Mapping):
            return cls._of_text(str(value))
        prefix = f"{where}: " if where else ""
        for key in value:
            if key not in KEYS:
                raise ConfigError(f"{prefix}unknown key {key!r} of a file{nearest(str(key), KEYS)}")
        given = {key: item for key, item in value.items() if item is not None}
        if not given.get("path"):
            raise ConfigError(f"{prefix}path is missing; expected a mapping as in {{path: pairs.csv, share: 0.5}}")
        for key in ("path", "split", "name", "revision", "tag"):
            if not isinstance(given.get(key, "text"), str):
                raise ConfigError(f"{prefix}{key}={given[key]!r}: expected text")
        columns, share = given.get("columns", {}), given.get("share", 1.0)
        names = [name for pair in columns.items() for name in pair] if isinstance(columns, Mapping) else [None]
        if not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{prefix}columns={columns!r}: expected a mapping, as in {{prompt: Q, answer: A}}")
        is_number = isinstance(share, int | float) and not isinstance(share, bool)
        if not is_number or not 0 < share < math.inf:
            raise ConfigError(f"{prefix}share={share!r}: expected a number above 0")
        named = cls._of_text(given["path"])
        split, revision = given.get("split", named.split), given.get("revision", named.revision)
        return cls(named.path, split, given.get("name"), revision, columns, float(share), given.get("tag"))

    @classmethod
    def of_argument(cls, text: str) -> "Source":
        """The source that a word of a command line means: a path, or a mapping as a recipe has it."""
        if not text.startswith("{"):
            return cls.of(text)
        try:
            value = load_yaml(text)
        except yaml.YAMLError:
            value = None
        if not isinstance(value, dict):
            raise ConfigError(f"{text}: not a mapping, as in {{path: x.csv, columns: {{prompt: Q, answer: A}}}}")
        return cls.of(value, where=text)

    @classmethod
    def _of_text(cls, text: str) -> "Source":
        if not text.strip():  # Path would take it for the working directory
            raise ConfigError(f"{text!r} is empty; expected a file, a folder or a hub name")
        if exists(Path(text)):
            return cls(text)
        split = re.search(r":(\w[\w.-]*(?:\[[^\]]*\])?)$", text)
        path = text[: split.start()] if split else text
        hub_name, _, revision = path.partition("@")
        if revision and is_hub_name(hub_name):
            path = hub_name
        else:
            revision = None
        return cls(path, split[1] if split else None, revision=revision)

    def options(self) -> dict[str, Any]:
        """What is given besides the path: empty for a plain path."""
        given = {key: getattr(self, key) for key in KEYS[1:]}
        given["columns"] = dict(self.columns) or None
        given["share"] = None if self.share == 1 else float(self.share)
        return {key: value for key, value in given.items() if value is not None}

    def value(self) -> str | dict[str, Any]:
        """The source as a config gives it: text for a plain path, else a mapping."""
        return {"path": self.path, **self.options()} if self.options() else self.path

    def __str__(self) -> str:
        options = self.options()
        return f"{self.path} {json.dumps(options, sort_keys=True, ensure_ascii=False)}" if options else self.path

    def is_on_hub(self) -> bool:
        """Whether the rows are read from the hub, since no such path exists."""
        return is_hub_name(self.path)

    def rows_by_file(self) -> Iterator[tuple[str, Lines]]:
        """Every file's name and lines, with the columns renamed.

        Raises ConfigError for a path that is missing and for a split that it does not have, DataError for a file that
        cannot be read or lacks a column.
        """
        check_name(self.path)
        if self.is_on_hub():
            lines = hub_rows(self.path, split=self.split, name=self.name, revision=self.revision)
            yield self.path, self.rename(self.path, lines)
            return
        for file in self.files():
            yield str(file), self.rename(str(file), lines_of(file))

    def files(self) -> list[Path]:
        """The files of a source that is not on the hub; raises as `rows_by_file` does."""
        path = Path(self.path)
        if not exists(path):
            raise ConfigError(f"{self.path} {absent(path)} (nor is it a hub name, owner/name)")
        for key in ("name", "revision"):
            if getattr(self, key) is not None:
                raise ConfigError(f"{self.path} is a path; {key} is for data sets of the hub: leave it out")
        return data_files(path, self.split)

    def rename(self, file: str, lines: Lines) -> Lines:
        """The lines with the columns renamed. Raises DataError where no row has one of the columns."""
        if not self.columns or not lines:
            return lines
        present: dict[str, None] = {}
        for line in lines:
            present.update(dict.fromkeys(map(str, line.raw)) if isinstance(line.raw, dict) else {})
            if present.keys() >= set(self.columns.values()):
                break
        for ours, column in self.columns.items():
            if column not in present:
                hint = exchanged(self.columns, present) or nearest(column, list(present))
                raise DataError(
                    f"{file} has no column {column!r}, which `columns` gives as {ours}; "
                    f"it has {shorten(listed(present), 200) or 'none'}{hint}"
                )
        return Renamed(lines, self._renamed)

    def _renamed(self, raw: object) -> object:
        if not isinstance(raw, dict):
            return raw
        taken = set(self.columns.values())
        others = {self._name_beside(name): value for name, value in raw.items() if name not in taken}
        return {ours: raw[column] for ours, column in self.columns.items() if column in raw} | others

    def _name_beside(self, name: str) -> str:
        """The name of a column that `columns` does not take: its own, unless it is taken from another column.

        No dialect knows the other name, so the column is listed among those that are ignored.
        """
        return f"{name} (columns takes it from {self.columns[name]})" if name in self.columns else name


def short_name(source: Source, others: Iterable[Source]) -> str:
    """The name of a source among others: the last part of its path, or as many of them as tell it from the others.

    A data set of the hub has its complete name.
    """
    if source.is_on_hub():
        return source.path
    parts = Path(source.path).parts
    different = [other for item in others if (other := Path(item.path).parts) != parts]
    number = next(
        n for n in range(1, len(parts) + 1) if n == len(parts) or parts[-n:] not in [p[-n:] for p in different]
    )
    return "/".join(parts[-number:])


def sources(values: Iterable[SourceValue]) -> Iterator[tuple[Source, str, Lines]]:
    """Every source with the name and lines of each of its files; raises as `Source.of` and `rows_by_file` do."""
    for value in values:
        source = Source.of(value)
        for name, lines in source.rows_by_file():
            yield source, name, lines


def lines_of(path: Path) -> Lines:
    """All rows of a file, which each loop over them reads one after the other.

    Raises DataError where it cannot be read in the format that its name says.
    """
    check_regular(path)
    ending = format_of(path)
    if not ending:
        raise DataError(f"{path} has no known format; expected one of {EXPECTED_FORMATS}")
    return TEXT_READERS[ending](PlainFile(path)) if ending in TEXT_READERS else BINARY_READERS[ending](path)
