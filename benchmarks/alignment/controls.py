"""Annotators that must not align anything: what improves under them was never the preferences' doing."""

import hashlib
from typing import Any

from toy_world.gold import gold


def shuffled(prompt: list[dict[str, Any]], answer: str, ended: bool) -> float:
    """A label that has nothing to do with the answer: equal texts under another prompt get another one."""
    return _unit(f"{prompt}/{answer}")


def swapped(prompt: list[dict[str, Any]], answer: str, ended: bool) -> float:
    """The worse answer is called the better one."""
    return -gold(prompt, answer, ended)


def hashed(prompt: list[dict[str, Any]], answer: str, ended: bool) -> float:
    """A reward that is a hash of the answer's text."""
    return _unit(answer)


def _unit(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**31 - 1
