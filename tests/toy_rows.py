"""Small rows of every kind, and files of rows."""

import json
from pathlib import Path
from typing import Any

CITIES = ("Paris", "Rome", "Oslo", "Lima", "Cairo", "Delhi", "Quito", "Hanoi", "Accra", "Dakar", "Seoul", "Tunis")
COUNTRIES = (
    "France",
    "Italy",
    "Norway",
    "Peru",
    "Egypt",
    "India",
    "Ecuador",
    "Vietnam",
    "Ghana",
    "Senegal",
    "Korea",
    "Tunisia",
)


def conversation(number: int) -> dict[str, Any]:
    """A dialog. Every third has two turns, every fourth a system prompt, and the lengths differ a lot on purpose."""
    place = number % len(CITIES)
    messages = [{"role": "user", "content": f"Question {number}: what is the capital of {COUNTRIES[place]}?"}]
    if number % 4 == 0:
        messages.insert(0, {"role": "system", "content": "Answer briefly."})
    messages.append({"role": "assistant", "content": f"{CITIES[place]}." + " It is a large city." * (number % 5)})
    if number % 3 == 0:
        messages += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": f"Yes, {CITIES[place]}!"}]
    return {"messages": messages}


def pair(number: int) -> dict[str, Any]:
    messages = conversation(number)["messages"]
    wrong = CITIES[(number + 5) % len(CITIES)] + "," * (1 + number % 7) + " no idea." * (number % 3)
    return {
        "prompt": messages[:-1],
        "chosen": messages[-1:],
        "rejected": [{"role": "assistant", "content": wrong}],
    }


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
