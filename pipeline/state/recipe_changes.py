"""What differs between two recipes, a line for each key."""

import json
from collections.abc import Mapping
from typing import cast

MAX_SHOWN = 60  # characters of a value
ABSENT = "(not set)"


def recipe_changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Every key whose value differs, in the order of its name: `dpo.beta: 0.1 -> 0.2`."""
    old, new = _flat(before), _flat(now)
    return [
        f"{name}: {_shown(old.get(name, ABSENT))} -> {_shown(new.get(name, ABSENT))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, ABSENT) != new.get(name, ABSENT)
    ]


def _flat(content: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """The values by dotted key, each as JSON reads it back, since one of the recipes may come from a file."""
    flat: dict[str, object] = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= _flat(cast(Mapping[str, object], value), f"{key}.")
        else:
            flat[key] = json.loads(json.dumps(value, default=str))
    return flat


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
