"""The questions of a task: what a policy is asked, and how its answer is graded. `read` reads the rows of any task."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from data_schemas.errors import DataError, WrongValue
from data_schemas.formats import describe
from data_schemas.rows import Message, Prompt
from data_schemas.sources import SourceValue, sources
from data_schemas.splitting import num_copies
from engine.sampling.answers import Answer
from engine.tasks.grades import Points

Fields = dict[str, Any]  # a raw row


@dataclass(frozen=True)
class Question:
    """A question that a policy answers in its own words."""

    task: str
    prompt: Prompt
    grade: Callable[[Answer], Mapping[str, Points]]  # measure -> points, the task's own score first
    question_id: str = ""


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with its possible answers, of which the policy's most probable one counts."""

    task: str
    prompt: Prompt
    choices: Sequence[str]
    right: int  # index of the right one
    question_id: str = ""


Q = TypeVar("Q", Question, ChoiceQuestion)


def read(files: Sequence[SourceValue], make: Callable[[Fields], Q | None], *, count: int | None = None) -> list[Q]:
    """The first `count` questions of the files (None: all), numbered; a row from which `make` gives None is none.

    Raises DataError, which names file and line, for a row from which `make` raises WrongValue, and where no question is
    left; ConfigError for a path that does not exist.
    """
    questions: list[Q] = []
    for source, name, lines in sources(files):
        for line in lines:
            try:
                question = make(_fields(line.raw, line.error))
            except WrongValue as error:
                raise DataError(f"{name}:{line.number}: {error}") from None
            if question is not None and num_copies(question.prompt.prompt_id, source.share):
                questions.append(question)
    return numbered(files, questions, count=count)


def numbered(files: Sequence[SourceValue], questions: Sequence[Q], *, count: int | None = None) -> list[Q]:
    """The first `count` questions (None: all) with an id each: that of the prompt, with a number where it is asked
    again. Raises DataError where no question is left."""
    if not questions:
        raise DataError(f"{', '.join(map(str, files))}: no question is left; expected at least one")
    times: Counter[str] = Counter()
    with_ids: list[Q] = []
    for question in questions[:count]:
        key = question.prompt.prompt_id
        times[key] += 1
        with_ids.append(replace(question, question_id=key if times[key] == 1 else f"{key}.{times[key]}"))
    return with_ids


def _fields(raw: object, error: WrongValue | None) -> Fields:
    if error:
        raise error
    if not isinstance(raw, dict):
        raise WrongValue("row", describe(raw), "a mapping of columns to values")
    return raw


def text_in(raw: Fields, *columns: str) -> str:
    """The text of the first of the columns that the row has. Raises WrongValue where none is a text."""
    column = next((name for name in columns if raw.get(name) is not None), columns[0])
    value = raw.get(column)
    if not isinstance(value, str) or not value.strip():
        raise WrongValue(" or ".join(columns), describe(value), "text")
    return value


def asked(text: str) -> Prompt:
    """The prompt of one user message."""
    return Prompt(prompt=[Message(role="user", content=text)])
