"""What is wrong with a row that pydantic refuses: field, what was found, what was expected."""

from pydantic import ValidationError

from data_schemas.errors import WrongValue
from data_schemas.formats import describe
from data_schemas.rows import Row

EXPECTED = {  # pydantic's type of an error -> what the error names as expected
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "missing": "a value",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than_equal": "{ge:g} or more",
    "less_than_equal": "{le:g} or less",
    "extra_forbidden": "no such field",
    "json_invalid": "one JSON object",
}


def first_error(error: ValidationError, row_type: type[Row]) -> WrongValue:
    """The first thing that is wrong with the fields of a row."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or next(iter(row_type.model_fields))
    context = first.get("ctx", {})
    if isinstance(cause := context.get("error"), WrongValue):  # raised by a validator in rows.py
        return WrongValue(cause.field or field, cause.found, cause.expected)
    found = "nothing" if first["type"] == "missing" else describe(first["input"])
    if first["type"] == "literal_error":
        return WrongValue(field, found, str(context.get("expected")))
    if first["type"] == "json_invalid":
        field = "line"
    expected = EXPECTED.get(first["type"], first["msg"].removeprefix("Input should be "))
    return WrongValue(field, found, expected.format(**context) if first["type"] in EXPECTED else expected)
