"""What pydantic refuses, in the words of this project: `expected an integer`, without the types of a library."""

from pydantic_core import ErrorDetails

EXPECTED = {  # pydantic's type of an error -> what the error names as expected
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "text that matches {pattern}",
    "path_type": "a path",
    "list_type": "a list",
    "too_short": "at least {min_length}",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
    "missing": "a value",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer that is not so large",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "a number below {lt}",
    "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
    "invalid_key": "text as the name of a key",
    "extra_forbidden": "no such field",
    "json_invalid": "one JSON object",
}


def expected_of(error: ErrorDetails) -> str:
    """What was expected in place of the value that pydantic refused."""
    context = {name: _plain(value) for name, value in error.get("ctx", {}).items()}
    template = EXPECTED.get(error["type"])
    return template.format(**context) if template else error["msg"].removeprefix("Input should be ")


def problem_of_field(error: ErrorDetails) -> str:
    """What is wrong, after the value: `expected …`, or the message of our own check."""
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    return f"expected {expected_of(error)}"


def place_and_problem(error: ErrorDetails, whole: str) -> str:
    """Where the wrong value is, as in `rounds.0.policy`, and what is wrong with it. `whole` names what was read."""
    return f"{'.'.join(map(str, error['loc'])) or whole}: {problem_of_field(error)}"


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value
