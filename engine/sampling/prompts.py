"""Which prompts a round uses, and the files of the rows that are written for them, by side."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from data_schemas.reading import read_prompts, read_rows, write_rows
from data_schemas.rows import Candidates, Message, Prompt, Row, tag_of
from engine.runtime import timing
from engine.runtime.stage import Stage

log = logging.getLogger(__name__)
Side = Literal["train", "validation"]
PromptOrder = Literal["random", "hardest_first"]
PROMPT_ORDER_HELP = (
    "which prompts are drawn: the next ones of a random order, or first those whose answers had the most different "
    "rewards in earlier rounds (after eva, arXiv 2411.00062)"
)


class RoundKeys(Protocol):
    """The keys of a stage that draws a round's prompts."""

    prompts: list[str]
    validation_prompts: list[str] | None
    num_prompts: int | None
    num_validation_prompts: int | None
    prompt_order: PromptOrder
    earlier_candidates: list[str] | None
    seed: int
    round: int


def draw_prompts(
    prompts: Sequence[Prompt], count: int | None, *, seed: int, purpose: str, round: int = 1
) -> list[Prompt]:
    """`count` prompts (None: all) in an order drawn by seed and purpose. Each round takes the next ones and starts
    again from the first after the last."""
    return in_order_of_round(prompts, count, seed=seed, purpose=purpose, round=round)[:count]


def in_order_of_round(
    prompts: Sequence[Prompt], count: int | None, *, seed: int, purpose: str, round: int
) -> list[Prompt]:
    """All prompts, those first that the round draws, and then those of the rounds after it."""
    order = sorted(prompts, key=lambda row: hashlib.sha256(f"{seed}/{purpose}/{row.prompt_id}".encode()).digest())
    if count is None or count >= len(order):
        return order
    start = (max(round, 1) - 1) * count % len(order)
    return order[start:] + order[:start]


def difficulties(files: Sequence[str]) -> dict[str, float]:
    """How hard prompts are, by their group: the standard deviation of the rewards of a prompt's answers, relative to
    the mean of its file, since reward models differ in scale. Of several files the last one with the group counts."""
    newest: dict[str, float] = {}
    for file in files:
        spreads: dict[str, list[float]] = defaultdict(list)
        for group in read_rows(Path(file), Candidates):
            if group.spread is not None:
                spreads[group.group_id].append(group.spread)
        of_groups = {name: sum(values) / len(values) for name, values in spreads.items()}
        mean = sum(of_groups.values()) / max(1, len(of_groups))
        newest |= {name: value / (mean or 1.0) for name, value in of_groups.items()}
    return newest


def hardest_first(prompts: Sequence[Prompt], difficulty: Mapping[str, float]) -> list[Prompt]:
    """The prompts by falling difficulty. Those that have none are taken for one of mean difficulty, 1; equal ones keep
    their order."""
    return sorted(prompts, key=lambda row: -difficulty.get(row.group_id, 1.0))


def num_seen_before(total: int, count: int | None, *, round: int) -> int:
    """How many of the prompts that `draw_prompts` draws from `total` in this round it has drawn in an earlier one."""
    size = total if count is None else min(count, total)
    fresh = max(0, total - (max(round, 1) - 1) * size)
    return max(0, size - fresh)


@dataclass(frozen=True)
class Draw:
    """A round's prompts with their sides, training prompts first."""

    prompts: list[tuple[Side, Prompt]]
    counts: dict[str, int]  # metrics of the draw: of the training prompts


@timing.part("load")
def draw_both_sides(keys: RoundKeys, *, purpose: str) -> Draw:
    """The round's prompts of both sides. Raises UserError where a file is not of prompts."""
    drawn: list[tuple[Side, Prompt]] = []
    sides: tuple[tuple[Side, list[str] | None, int | None], ...] = (
        ("train", keys.prompts, keys.num_prompts),
        ("validation", keys.validation_prompts, keys.num_validation_prompts),
    )
    counts: dict[str, int] = {}
    for side, files, count in sides:
        rows = read_prompts(files).rows if files else []
        chosen = draw_prompts(rows, count, seed=keys.seed, purpose=purpose, round=keys.round)
        if side == "train":
            counts = {"prompts_seen_before": num_seen_before(len(rows), count, round=keys.round)}
            if keys.earlier_candidates:  # what earlier rounds drew depends on answers that are not at hand
                known = difficulties(keys.earlier_candidates)
                order = in_order_of_round(rows, count, seed=keys.seed, purpose=purpose, round=keys.round)
                chosen = hardest_first(order, known)[:count]
                counts = {"prompts_of_known_difficulty": sum(row.group_id in known for row in chosen)}
        drawn.extend((side, row) for row in chosen)
    if keys.prompt_order == "hardest_first" and not keys.earlier_candidates:
        log.info("prompt_order: no earlier answers are known, so the prompts are drawn in random order")
    return Draw(drawn, counts)


def with_system_prompt(prompt: Prompt, text: str) -> Prompt:
    """The prompt with this system prompt; unchanged where it has one already. It is another prompt, of the same group,
    so that its answers have other noise."""
    if prompt.prompt[0].role == "system":
        return prompt
    messages = [Message(role="system", content=text), *prompt.prompt]
    reference = {"reference": prompt.reference} if prompt.reference else {}
    return Prompt(prompt=messages, tools=prompt.tools, group_id=prompt.group_id, **reference, **tag_of(prompt))


def write_both_sides(stage: Stage, name: str, rows: Mapping[Side, Sequence[Row]]) -> dict[str, str]:
    """Writes `<name>.<side>.jsonl` of each side; returns the outputs that have rows, name -> file."""
    if stage.is_main:
        for side, side_rows in rows.items():
            write_rows(stage.folder / f"{name}.{side}.jsonl", side_rows)
    return {f"{name}.{side}": f"{name}.{side}.jsonl" for side, side_rows in rows.items() if side_rows}
