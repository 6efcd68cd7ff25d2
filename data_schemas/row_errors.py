"""What is wrong with a row that pydantic refuses: field, what was found, what was expected."""

from pydantic import ValidationError

from data_schemas.errors import WrongValue
from data_schemas.field_errors import expected_of
from data_schemas.formats import describe
from data_schemas.rows import Row


def first_error(error: ValidationError, row_type: type[Row]) -> WrongValue:
    """The first thing that is wrong with the fields of a row."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or next(iter(row_type.model_fields))
    context = first.get("ctx", {})
    if isinstance(cause := context.get("error"), WrongValue):  # raised by a validator in rows.py
        return WrongValue(cause.field or field, cause.found, cause.expected)
    found = "nothing" if first["type"] == "missing" else describe(first["input"])
    if first["type"] == "json_invalid":
        field = "line"
    return WrongValue(field, found, expected_of(first))
