"""Seven prompts of three lengths, and answers to them."""

from data_schemas.rows import Candidate, Message, Prompt


def question(text: str) -> Prompt:
    return Prompt(prompt=[Message(role="user", content=text)])


PROMPTS = [question(f"Capital of {name}?" + " Please." * (number % 3)) for number, name in enumerate("ABCDEFG")]


def candidates(*items: tuple[str, float, bool]) -> list[Candidate]:
    return [
        Candidate(text=text, k=k, num_tokens=3, ended=ended, score=score)
        for k, (text, score, ended) in enumerate(items)
    ]
