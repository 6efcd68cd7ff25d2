"""A table: a list of rows, each a dict, that a notebook shows as a table."""

import html

from data_schemas.errors import ConfigError
from data_schemas.text import printable


class Table(list[dict[str, object]]):
    """Rows as dicts. A row may lack a column where it has no value for it.

    It is a plain list, so `pandas.DataFrame(table)` and `csv.DictWriter` take it as it is.
    """

    @property
    def columns(self) -> list[str]:
        """The columns of all rows, in the order in which they occur first."""
        return list(dict.fromkeys(name for row in self for name in row))

    def to_pandas(self):
        """The table as a pandas.DataFrame; a missing value is null. Raises ConfigError if pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise ConfigError(
                "pandas is not installed, which a DataFrame needs; install it, as by pip install pandas, or use the "
                "table itself, which is a list of dicts"
            ) from None
        return pandas.DataFrame(list(self), columns=self.columns)

    def _repr_html_(self) -> str:
        """The table for a notebook."""
        head = "".join(f"<th>{_cell(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{_cell(row.get(name))}</td>" for name in self.columns) + "</tr>" for row in self
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    """A value for a cell: a float with four digits, nothing for null, and text without markup or control characters."""
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(printable(text))
