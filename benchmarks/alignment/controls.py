"""Annotators under which the gold score must not improve. If it did, the preferences would not be the cause."""

import hashlib
from typing import Any

from toy_world.gold import gold


def shuffled(prompt: list[dict[str, Any]], answer: str, ended: bool) -> float:
    """A score that is independent of the answer's quality: a hash of the prompt and the answer."""
    return _unit(f"{prompt}/{answer}")


def swapped(prompt: list[dict[str, Any]], answer: str, ended: bool) -> float:
    """The negative gold score: the worse answer counts as the better one."""
    return -gold(prompt, answer, ended)


def hashed(prompt: list[dict[str, Any]], answer: str, ended: bool) -> float:
    """A hash of the answer's text, the same under every prompt."""
    return _unit(answer)


def _unit(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**31 - 1
