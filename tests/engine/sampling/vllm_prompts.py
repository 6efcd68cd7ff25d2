"""Five prompts of three lengths for the tests of vLLM."""

from data_schemas.rows import Message, Prompt

PROMPTS = [
    Prompt(prompt=[Message(role="user", content=f"Capital of {name}?" + " Please." * (number % 3))])
    for number, name in enumerate("ABCDE")
]
