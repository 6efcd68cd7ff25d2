"""The tool calls of a message: OpenAI's form, the flat one (name, arguments), and the calls of ShareGPT.

A call has a name, and its arguments are a mapping: a template would write JSON text as a JSON string. Arguments may be
named `parameters`, as Llama 3 writes a call.
"""

from typing import Any

from data_schemas.errors import WrongValue
from data_schemas.formats import describe
from data_schemas.nesting import parsed

Call = dict[str, Any]


def calls_of(value: object, place: str) -> object:
    """Tool calls with arguments as mappings; None for no calls. Other values are left to the row's own checks.

    Raises WrongValue for a call without a name, and for arguments that are no mapping or its JSON text.
    """
    if isinstance(value, str):
        value = parsed(value, place) if value.strip() else None
    if not isinstance(value, list):
        return value
    return [_call(call, f"{place}.{position}") for position, call in enumerate(value)] or None


def spoken_calls(text: str, place: str) -> list[Call]:
    """The calls of a turn of ShareGPT from `function_call`. Raises WrongValue as `calls_of` does."""
    value = parsed(text, place)
    calls: list[object] = value if isinstance(value, list) else [value]
    for call in calls:
        if not isinstance(call, dict) or "name" not in call:
            raise WrongValue(place, describe(call), "a function call with name and arguments")
    return [{"type": "function", "function": _function(call, place)} for call in calls]


def _call(call: object, place: str) -> object:
    if not isinstance(call, dict):
        return call
    if call.get("function") is not None:
        return call | {"function": _function(call["function"], f"{place}.function")}
    return _function(call, place)


def _function(function: object, place: str) -> Call:
    if not isinstance(function, dict):
        raise WrongValue(place, describe(function), "a function call with name and arguments")
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise WrongValue(f"{place}.name", describe(name), "the name of a function")
    key = "arguments" if function.get("arguments") is not None else "parameters"
    arguments = function.get(key)
    if isinstance(arguments, str):
        text = arguments
        arguments = parsed(text, f"{place}.{key}") if text.strip() else {}
        if not isinstance(arguments, dict):
            raise WrongValue(f"{place}.{key}", describe(text), "the JSON text of a mapping")
    if not isinstance(arguments, dict | None):
        raise WrongValue(f"{place}.{key}", describe(arguments), "a mapping of arguments to values, or its JSON text")
    if key == "parameters" and arguments is not None:
        function = {name: value for name, value in function.items() if name != key}
    elif function.get("parameters"):
        raise WrongValue(f"{place}.parameters", describe(function["parameters"]), "none beside arguments")
    return function if arguments is None else function | {"arguments": arguments}
