"""LLM judges whose verdicts a test scripts: they see the two answers of the question, as a model would."""

import hashlib
import re
from collections.abc import Callable

from tests.engine.endpoints.scripted_server import Request, Say

Decide = Callable[[str, str, float], str]  # answer A, answer B, a number in [0, 1) drawn by the question -> a code


def parts_of(question: str) -> tuple[str, str]:
    """The answers A and B of a judge's question."""
    found = [re.search(rf"<answer {side} (\w+)>\n(.*)\n</answer {side} \1>", question, re.DOTALL) for side in "AB"]
    assert found[0] and found[1], question
    return found[0][2], found[1][2]


def judge(decide: Decide) -> Callable[[Request], Say]:
    """The script of a server that judges."""

    def script(request: Request) -> Say:
        question = request["messages"][-1]["content"]
        drawn = int(hashlib.sha256(question.encode()).hexdigest()[:8], 16) / 2**32
        return Say(f"Both were read.\n[[{decide(*parts_of(question), drawn)}]]", usage=(200, 20))

    return script


def by_text(one: str, other: str, drawn: float) -> str:
    """A consistent judge: the text that is later in the alphabet is better."""
    return "A:3" if one > other else "B:3" if other > one else "tie"


def by_length(one: str, other: str, drawn: float) -> str:
    return "A:2" if len(one) > len(other) else "B:2" if len(other) > len(one) else "tie"


def by_coin(one: str, other: str, drawn: float) -> str:
    return "A:1" if drawn < 0.5 else "B:1"


def by_place(one: str, other: str, drawn: float) -> str:
    """It prefers the first answer with p = 0.7, whatever it says."""
    return "A:4" if drawn < 0.7 else "B:4"
