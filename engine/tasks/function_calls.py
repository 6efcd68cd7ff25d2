"""Function calls: whether an answer calls the right functions with the right arguments, compared as parsed trees.

Rows are dialogs with tools, whose first assistant turn with calls is the right answer, in every dialect that SFT reads;
or those of the Berkeley Function-Calling Leaderboard (BFCL: Patil et al., ICML 2025): `{id, question, function}` with
`ground_truth`, in the row or in a second file by `id`, which lists for every argument the values that are right. The
comparison is that of BFCL's AST checker: the same functions in any order, no other arguments, a missing one only where
"" is among its values; texts without regard to case, spaces and `,./-_*^`; integers pass as floats, booleans do not.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_schemas.errors import WrongValue
from data_schemas.formats import describe
from data_schemas.reading import read_conversations
from data_schemas.rows import Conversation, Message, Prompt
from data_schemas.sources import Source, SourceValue, sources
from engine.sampling.answers import Answer
from engine.tasks.call_text import Call, calls_in
from engine.tasks.grades import Points
from engine.tasks.questions import Fields, Question, numbered, read

NAME = "function_calls"
JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}  # BFCL's -> JSON schema's
Right = Mapping[str, Mapping[str, Sequence[Any]]]  # one call: function -> argument -> the values that are right


def read_function_calls(files: Sequence[SourceValue], *, count: int | None = None) -> list[Question]:
    """The questions. Raises DataError for a row without tools or a right answer."""
    solutions = {
        str(line.raw["id"]): line.raw["ground_truth"]
        for _, _, lines in sources(files)
        for line in lines
        if isinstance(line.raw, dict) and "ground_truth" in line.raw and "id" in line.raw
    }

    published = [file for file in files if _is_of_leaderboard(file)]
    dialogs = [file for file in files if file not in published]
    found = read(published, lambda raw: of_leaderboard(raw, solutions), count=count) if published else []
    rows = read_conversations(dialogs).rows if dialogs else []
    return numbered(files, [*found, *filter(None, map(of_dialog, rows))], count=count)


def _is_of_leaderboard(file: SourceValue) -> bool:
    rows = [line.raw for _, lines in Source.of(file).rows_by_file() for line in lines]
    return any(isinstance(row, dict) and ("function" in row or "ground_truth" in row) for row in rows)


def of_dialog(row: Conversation) -> Question | None:
    """The question of a dialog with tools: everything before its first turn with calls; None where no turn has any."""
    place = next((place for place, turn in enumerate(row.messages) if turn.tool_calls), None)
    if place is None or not row.tools:
        return None
    calls = [call.get("function", call) for call in row.messages[place].tool_calls or []]
    right = [{call["name"]: {key: [value] for key, value in _arguments(call).items()}} for call in calls]
    return _question(Prompt(prompt=row.messages[:place], tools=row.tools), right)


def _arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    return call.get("arguments", call.get("parameters")) or {}


def of_leaderboard(raw: Fields, solutions: Mapping[str, Any]) -> Question | None:
    """The question of a row of BFCL; None for a row that only has the right answer of another. Raises WrongValue where
    it has none itself."""
    if "question" not in raw:
        return None
    right = raw.get("ground_truth", solutions.get(str(raw.get("id"))))
    if not isinstance(right, list) or not all(_is_call(call) for call in right):
        raise WrongValue("ground_truth", describe(right), "a list of calls, as in [{add: {a: [1], b: [2]}}]")
    turns, functions = raw["question"], raw.get("function")
    turns = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], list) else turns
    turns = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
    functions = [functions] if isinstance(functions, dict) else functions
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise WrongValue("question", describe(raw["question"]), "a text, or a list of messages")
    if not isinstance(functions, list) or not all(isinstance(one, dict) and "name" in one for one in functions):
        raise WrongValue("function", describe(functions), "a list of functions, each with its name")
    tools = [{"type": "function", "function": _schema(function)} for function in functions]
    try:
        messages = [Message.model_validate(turn) for turn in turns]
    except ValueError:
        raise WrongValue("question", describe(turns), "a list of messages, each with role and content") from None
    return _question(Prompt(prompt=messages, tools=tools), right)


def _is_call(call: object) -> bool:
    values = list(call.values()) if isinstance(call, dict) else []
    return len(values) == 1 and isinstance(values[0], dict) and all(isinstance(v, list) for v in values[0].values())


def _schema(value: Any) -> Any:
    """A function's description with the types of JSON schema in place of BFCL's."""
    if isinstance(value, list):
        return [_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: JSON_TYPES.get(item, item) if key == "type" and isinstance(item, str) else _schema(item)
        for key, item in value.items()
    }


def _question(prompt: Prompt, right: Sequence[Right]) -> Question:
    functions = [tool.get("function", tool) for tool in prompt.tools or []]
    parameters = {
        function["name"]: list((function.get("parameters") or {}).get("properties") or {})
        for function in functions
        if "name" in function
    }

    def grade(answer: Answer) -> Mapping[str, Points]:
        return {NAME: Points(float(are_right(calls_in(answer.text, parameters), right)))}

    return Question(NAME, prompt, grade)


def are_right(calls: Sequence[Call], right: Sequence[Right]) -> bool:
    """Whether the calls are the right ones, each once, in any order."""
    if len(calls) != len(right):
        return False
    left = list(calls)
    for wanted in right:
        match = next((call for call in left if is_right(call, wanted)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def is_right(call: Call, wanted: Right) -> bool:
    """Whether a call is the wanted one."""
    ((name, arguments),) = wanted.items()
    if call.name != name or call.arguments.keys() - arguments.keys():
        return False
    return all(
        any(is_same(call.arguments[key], value) for value in values) if key in call.arguments else "" in values
        for key, values in arguments.items()
    )


def is_same(found: Any, wanted: Any) -> bool:
    """Whether a value is the wanted one. Inside of a mapping BFCL lists the values that are right."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, str) and isinstance(wanted, str):
        return _plain(found) == _plain(wanted)
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(is_same, found, wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() <= wanted.keys() and all(_is_field(found, key, value) for key, value in wanted.items())
    return found == wanted


def _is_field(found: Mapping[str, Any], key: str, wanted: Any) -> bool:
    values = wanted if isinstance(wanted, list) else []
    if key not in found:
        return "" in values
    return is_same(found[key], wanted) or any(is_same(found[key], value) for value in values)


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')
