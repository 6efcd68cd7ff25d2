"""Checks that files have the columns of their kind, by their first rows: before anything is launched."""

import zlib
from pathlib import Path

from data_schemas.dialects import PROMPTS
from data_schemas.errors import DataError
from data_schemas.formats import Line, Lines, format_of, json_lines
from data_schemas.known_columns import check_names
from data_schemas.line_files import as_prompts
from data_schemas.plain_files import first_lines
from data_schemas.row_kinds import KINDS, check_dialects, check_share
from data_schemas.sources import Source, lines_of
from data_schemas.tables import column_names

NUM_LINES_CHECKED = 50  # rows of a large file that are read
MAX_BYTES_CHECKED = 4_000_000  # larger files without lines are not read


def check_columns(source: Source, kind: str) -> None:
    """Checks the first rows of a local file or folder; raises DataError where they are not of `kind`.

    `kind` is one of documents, instructions, preferences, prompts, evaluation_prompts. A large file of a format that
    can only be read completely is not checked here but by the stage. Raises ConfigError as the readers do, also for a
    name of `columns` that no format of rows has.
    """
    row_type, dialects = KINDS[kind]
    check_share(source, row_type)
    for file in source.files():
        lines = _lines_to_check(file)
        if lines is None:
            continue
        if len(lines) == 0:  # a small file is read to its end, so that what is wrong there is found
            raise DataError(f"{file} has no rows")
        renamed = source.rename(str(file), lines)
        check_names(source.columns, where=source.path)
        check_dialects(str(file), as_prompts(str(file), renamed) if dialects is PROMPTS else renamed, dialects)


def _lines_to_check(file: Path) -> Lines | None:
    """The first rows of a file; of a binary table a row without values. None where reading them would take long."""
    ending = format_of(file)
    if ending == ".jsonl":
        try:
            return json_lines(first_lines(file, NUM_LINES_CHECKED))
        except (OSError, EOFError, zlib.error):
            return lines_of(file)  # raises the error that names what is wrong
    if not ending or file.stat().st_size < MAX_BYTES_CHECKED:
        return lines_of(file)
    names = column_names(file, ending)
    return [Line(1, dict.fromkeys(names, ""))] if names else None
