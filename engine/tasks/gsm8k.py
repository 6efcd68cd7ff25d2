"""GSM8K: grade-school mathematics, by exact match of the final number (Cobbe et al., arXiv 2110.14168).

The file is the published one, a row `{question, answer}` whose answer ends in `#### 42`. The final number of a policy's
answer is the one after its last `####`, else its last number, as a chat model seldom writes `####`.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation

from data_schemas.errors import WrongValue
from data_schemas.formats import describe
from data_schemas.rows import Message, Prompt
from data_schemas.sources import SourceValue
from engine.sampling.answers import Answer
from engine.tasks.grades import Points
from engine.tasks.questions import Fields, Question, read, text_in

NAME = "gsm8k"
INSTRUCTION = "Solve the problem step by step. Write the final number on the last line, after ####."
NUMBER = re.compile(r"-?[$€£]?\d[\d,]*(?:\.\d+)?|-?[$€£]?\.\d+")


def read_gsm8k(
    files: Sequence[SourceValue],
    *,
    count: int | None = None,
    examples: Sequence[SourceValue] = (),
    num_examples: int = 0,
) -> list[Question]:
    """The questions, each after `num_examples` solved ones as earlier turns. Raises DataError for a row without the
    published columns."""
    solved = read(examples, question_of, count=num_examples) if num_examples else []
    turns = [message for question in solved for message in _turns(question)]
    return [_after(turns, question) for question in read(files, question_of, count=count)]


def question_of(raw: Fields) -> Question:
    """Raises WrongValue where the answer has no final number."""
    text, answer = text_in(raw, "question"), text_in(raw, "answer")
    right = final_number(answer)
    if right is None or "####" not in answer:
        raise WrongValue("answer", describe(answer), "a solution that ends in its number, as in `#### 42`")
    prompt = Prompt(prompt=[Message(role="user", content=f"{text}\n\n{INSTRUCTION}")], reference=answer)
    return Question(NAME, prompt, lambda given: grade(right, given))


def grade(right: Decimal, answer: Answer) -> Mapping[str, Points]:
    return {NAME: Points(float(final_number(answer.text) == right))}


def final_number(text: str) -> Decimal | None:
    """The number after the last `####`, else the last number of the text; None where there is none."""
    _, mark, after = text.rpartition("####")
    found = NUMBER.findall(after)
    if not found:
        return None
    number = re.sub(r"[,$€£]", "", found[0] if mark else found[-1])
    try:
        return Decimal(number)
    except InvalidOperation:
        return None


def _turns(question: Question) -> list[Message]:
    return [question.prompt.prompt[-1], Message(role="assistant", content=question.prompt.reference or "")]


def _after(turns: Sequence[Message], question: Question) -> Question:
    """The question as the last turn after solved ones."""
    prompt = Prompt(prompt=[*turns, *question.prompt.prompt], reference=question.prompt.reference)
    return Question(question.task, prompt, question.grade, question.question_id)
