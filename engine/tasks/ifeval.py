"""IFEval: prompts with instructions that a program can check (Zhou et al., arXiv 2311.07911).

The file is the published one, a row `{prompt, instruction_id_list, kwargs}`. Four measures: a prompt counts where all
its instructions are followed (`ifeval_strict`), an instruction by itself (`ifeval_instruction_strict`), and both
loosely: an instruction is followed where one of eight variants of the answer follows it (section 2.3: without the first
line, the last one or both, each with and without asterisks).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data_schemas.errors import WrongValue
from data_schemas.formats import describe
from data_schemas.sources import SourceValue
from data_schemas.text import nearest
from engine.tasks.grades import Points
from engine.tasks.instructions import CHECKERS, Arguments
from engine.tasks.questions import Fields, Question, asked, read, text_in

NAME = "ifeval"
STRICT, LOOSE = "ifeval_strict", "ifeval_loose"
INSTRUCTION_STRICT, INSTRUCTION_LOOSE = "ifeval_instruction_strict", "ifeval_instruction_loose"
Instruction = tuple[str, Arguments]  # its kind, and its arguments


def read_ifeval(files: Sequence[SourceValue], *, count: int | None = None) -> list[Question]:
    """The questions of files in the published form. Raises DataError for a row that is not in it."""
    return read(files, question_of, count=count)


def question_of(raw: Fields) -> Question:
    """Raises WrongValue for an unknown instruction, and for arguments that it does not have."""
    instructions = instructions_of(raw)
    return Question(NAME, asked(text_in(raw, "prompt")), lambda answer: grade(instructions, answer.text))


def instructions_of(raw: Fields) -> list[Instruction]:
    kinds, arguments = raw.get("instruction_id_list"), raw.get("kwargs")
    if not isinstance(kinds, list) or not kinds:
        raise WrongValue("instruction_id_list", describe(kinds), "a list of instructions, as in [punctuation:no_comma]")
    if not isinstance(arguments, list) or len(arguments) != len(kinds):
        raise WrongValue("kwargs", describe(arguments), f"a list of {len(kinds)} mappings, one for each instruction")
    return [_instruction(kind, given) for kind, given in zip(kinds, arguments, strict=True)]


def _instruction(kind: object, given: Any) -> Instruction:
    if kind not in CHECKERS:
        hint = nearest(str(kind), list(CHECKERS))
        raise WrongValue("instruction_id_list", f"{kind!r}{hint}", f"one of the {len(CHECKERS)} kinds of IFEval")
    if not isinstance(given, dict):
        raise WrongValue("kwargs", describe(given), f"a mapping with the arguments of {kind}")
    filled = {name: value for name, value in given.items() if value is not None}  # some copies list all arguments
    try:
        CHECKERS[str(kind)]("A probe.", filled)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WrongValue("kwargs", f"{filled} ({error})", f"the arguments of {kind}") from None
    return str(kind), filled


def variants(text: str) -> list[str]:
    """The eight forms of an answer of which one has to follow an instruction loosely; the first is the answer."""
    lines = text.split("\n")
    parts = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*parts, *(part.replace("*", "") for part in parts)]


def follows(instruction: Instruction, texts: Sequence[str]) -> bool:
    """Whether one of the texts, which must not be empty, follows the instruction."""
    kind, given = instruction
    return any(bool(text.strip()) and CHECKERS[kind](text, given) for text in texts)


def grade(instructions: Sequence[Instruction], text: str) -> Mapping[str, Points]:
    """The points of an answer by the four measures."""
    strict = [follows(instruction, [text]) for instruction in instructions]
    loose = [follows(instruction, variants(text)) for instruction in instructions]
    return {
        STRICT: Points(float(all(strict))),
        LOOSE: Points(float(all(loose))),
        INSTRUCTION_STRICT: Points(sum(strict), len(strict)),
        INSTRUCTION_LOOSE: Points(sum(loose), len(loose)),
    }


def score(prompt: Sequence[Mapping[str, Any]], answer: str, ended: bool, reference: str | None = None) -> float:
    """A judge function: the share of a prompt's instructions that the answer follows. `reference` is JSON text with the
    row's `instruction_id_list` and `kwargs`."""
    instructions = instructions_of(json.loads(reference or "{}"))
    return sum(follows(one, [answer]) for one in instructions) / len(instructions)
