"""Which prompts a round uses."""

import hashlib
from collections.abc import Sequence

from data_schemas.reading import read_prompts
from data_schemas.rows import Prompt
from engine.runtime import timing


def draw_prompts(
    prompts: Sequence[Prompt], count: int | None, *, seed: int, purpose: str, round: int = 1
) -> list[Prompt]:
    """`count` prompts (None: all) in an order drawn by seed and purpose; each round takes the next ones, then wraps."""
    order = sorted(prompts, key=lambda row: hashlib.sha256(f"{seed}/{purpose}/{row.prompt_id}".encode()).digest())
    if count is None or count >= len(order):
        return order
    start = (max(round, 1) - 1) * count % len(order)
    return (order + order)[start : start + count]


@timing.part("load")
def draw_both_sides(
    train: tuple[list[str], int | None],
    validation: tuple[list[str] | None, int | None],
    *,
    seed: int,
    purpose: str,
    round: int,
) -> list[tuple[str, Prompt]]:
    """Prompts of the round, each with its side ("train", "validation"), from (files, how many) of the two sides."""
    drawn: list[tuple[str, Prompt]] = []
    for side, (files, count) in (("train", train), ("validation", validation)):
        rows = read_prompts(files).rows if files else []
        drawn += [(side, row) for row in draw_prompts(rows, count, seed=seed, purpose=purpose, round=round)]
    return drawn
