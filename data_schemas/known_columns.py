"""The names of columns that some format of rows reads: what a mapping `columns` may have on its left side."""

import difflib
from collections.abc import Iterable, Mapping

from data_schemas.dialects import CONVERSATIONS, DOCUMENTS, MESSAGES, PAIRS, PROMPTS
from data_schemas.errors import ConfigError
from data_schemas.labels import LABELS
from data_schemas.messages import MEDIA, ROW_TRAINING_KEYS
from data_schemas.rows import Conversation, Document, PreferencePair, Prompt
from data_schemas.text import listed, nearest

MISSPELT = 0.85  # similarity of two names, from which one is taken for the other with a letter wrong
KNOWN_COLUMNS = frozenset(
    (
        *(
            name
            for dialect in (*DOCUMENTS, *CONVERSATIONS, *PROMPTS, *PAIRS)
            for name in (*dialect.columns, *dialect.optional)
        ),
        *(name for row in (Document, Conversation, Prompt, PreferencePair) for name in row.model_fields),
        *MESSAGES,
        *LABELS,
        *MEDIA,
        *ROW_TRAINING_KEYS,
    )
)


def check_names(columns: Mapping[str, str], *, where: str) -> None:
    """Raises ConfigError, which begins with `where`, for a name on the left side that no format of rows reads."""
    for ours, column in columns.items():
        if ours not in KNOWN_COLUMNS:
            hint = nearest(ours, sorted(KNOWN_COLUMNS))
            raise ConfigError(
                f"{where}: columns={{{listed([ours])}: {listed([column])}}}: no format of rows has a column {ours!r}"
                f"{hint or '; expected a name as prompt, answer, chosen, rejected, messages or text'}"
            )


def misspelt(columns: Iterable[str]) -> str:
    """A hint where columns that no format of rows reads are nearly called as one that does, as `choosen`."""
    near = {
        column: close[0]
        for column in columns
        if column not in KNOWN_COLUMNS
        and (close := difflib.get_close_matches(column.strip().lower(), KNOWN_COLUMNS, n=1, cutoff=MISSPELT))
    }
    meant = ", ".join(f"{known!r} by {listed([column])!r}" for column, known in near.items())
    return f"; did you mean {meant}?" if near else ""


def exchanged(columns: Mapping[str, str], present: Iterable[str]) -> str:
    """A hint where a name that a format of rows reads is on the right side, and a column of the file on the left."""
    turned = {column: ours for ours, column in columns.items() if ours in present and column in KNOWN_COLUMNS}
    expected = ", ".join(f"{ours}: {listed([column])}" for ours, column in turned.items())
    return f"; the sides are exchanged? expected {{{expected}}}" if turned else ""
