"""What a step was estimated to need, beside what it took: estimate.json and outcome.json in its folder."""

import json
from collections.abc import Mapping
from pathlib import Path

from typing_extensions import TypedDict

from data_schemas.files import read_json, write_atomically

ESTIMATE = "estimate.json"  # written by the runner when the step starts


class Estimated(TypedDict):
    """The content of estimate.json."""

    stage: str
    parameters: int
    rows: float
    tokens: float
    flops: float
    seconds: list[float]  # the lowest and the highest; empty where they are not known
    basis: str  # measured (finished steps) or utilisation (stated shares of the peak)
    memory: float | None  # bytes of one device, or of the machine whose CPU computes


class Cost(TypedDict):
    """An estimate and what was measured; None for what is not known."""

    estimated_seconds: list[float] | None
    seconds: float
    estimated_memory: float | None  # bytes
    memory: float | None  # bytes that the first process held at most


def write_estimate(folder: Path, estimated: Estimated) -> None:
    write_atomically(folder / ESTIMATE, json.dumps(estimated, indent=1))


def read_cost(folder: Path | None, seconds: float) -> Cost | None:
    """The cost of a finished step that took so many seconds; None where nothing was estimated."""
    estimated = read_json(folder / ESTIMATE) if folder else None
    if folder is None or estimated is None:
        return None
    used = (read_json(folder / "outcome.json") or {}).get("used")
    peak = used.get("peak_memory") if isinstance(used, Mapping) else None
    memory, known = estimated.get("memory"), estimated.get("seconds")
    return {
        "estimated_seconds": known if isinstance(known, list) and len(known) == 2 else None,
        "seconds": seconds,
        "estimated_memory": memory if isinstance(memory, int | float) else None,
        "memory": peak if isinstance(peak, int | float) else None,
    }
