"""The function calls in a policy's answer, in the forms that models write them.

| form | as in |
|---|---|
| JSON between tags | `<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>` |
| JSON, one call or a list, also in a code block | `{"name": "add", "parameters": {"a": 1}}` |
| Python, one call or a list | `[add(a=1), add(a=2)]` |

The text is parsed, never run: arguments are literals.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
FENCED = re.compile(r"```(?:json|python|tool_code)?\s*\n(.*?)```", re.DOTALL)
MAX_CHARACTERS = 20_000  # of an answer that is parsed: Python's parser takes memory for each bracket


@dataclass(frozen=True)
class Call:
    """A call of a function with its arguments by name."""

    name: str
    arguments: Mapping[str, Any]


def calls_in(text: str, parameters: Mapping[str, Sequence[str]]) -> list[Call]:
    """The calls of an answer; none where it has none, or cannot be parsed.

    `parameters` are the parameters of each function in order, by which arguments without a name get theirs.
    """
    text = text[:MAX_CHARACTERS].replace("<|python_tag|>", "").strip()
    parts = TAGGED.findall(text) or FENCED.findall(text) or [text]
    calls: list[Call] = []
    for part in parts:
        found = _from_json(part.strip())
        calls += _from_python(part.strip(), parameters) if found is None else found
    return calls


def _from_json(text: str) -> list[Call] | None:
    """The calls of a JSON text, or of several divided by `;` or line breaks; None where it is no JSON of calls."""
    values: list[object] = []
    decoder, place = json.JSONDecoder(), 0
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return None
        values += value if isinstance(value, list) else [value]
        place += len(text[place:]) - len(text[place:].lstrip("; \n\r\t,"))
    calls = [_call(value) for value in values]
    found = [call for call in calls if call is not None]
    return found if len(found) == len(calls) and found else None


def _call(value: object) -> Call | None:
    if not isinstance(value, dict):
        return None
    inner = value["function"] if isinstance(value.get("function"), dict) else value
    name = inner.get("name") or (inner.get("function") if isinstance(inner.get("function"), str) else None)
    arguments = inner.get("arguments", inner.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not isinstance(arguments, dict | None):
        return None
    return Call(name, arguments or {})


def _from_python(text: str, parameters: Mapping[str, Sequence[str]]) -> list[Call]:
    try:
        body = ast.parse(text, mode="eval").body
        nodes = body.elts if isinstance(body, ast.List | ast.Tuple) else [body]
        return [_python_call(node, parameters) for node in nodes]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return []


def _python_call(node: ast.expr, parameters: Mapping[str, Sequence[str]]) -> Call:
    """Raises ValueError for an expression that is no call with literal arguments."""
    if not isinstance(node, ast.Call):
        raise ValueError("no call")
    name = ast.unparse(node.func)
    names = parameters.get(name, ())
    if len(node.args) > len(names) or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("arguments without names")
    given = dict(zip(names, map(ast.literal_eval, node.args), strict=False))
    return Call(name, given | {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords})
