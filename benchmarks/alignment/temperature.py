"""What the policies of each round are worth at the temperature at which a model is served.

    python -m benchmarks.alignment temperature

The table of rounds samples at temperature 1, as training does. Of finished runs, the policy of every round answers the
held-out prompts once more at SERVED, and once at 0, where an answer is the most probable token by token. Training is
the same, so the controls show whether a lower temperature alone makes later policies look better.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.alignment.launching import launch, on_cores
from benchmarks.alignment.report import (
    CONTROLS,
    FULL,
    RUNS,
    Scores,
    after_round_2,
    climb,
    improved_controls,
    pooled_interval,
    run_folder,
    scores_of,
    seeds_interval,
    shown,
)
from toy_world.gold import gold

SERVED = 0.6  # of the generation config that Llama 3's chat models are published with
TEMPERATURES = (SERVED, 0.0)
NUM_ANSWERS = 4  # to each prompt, as in the table of rounds; one at 0, where all are equal
NAMES = (FULL, *CONTROLS)
PAGE = "alignment-temperature.md"


def run(seeds: Sequence[int]) -> None:
    """Samples the answers of every policy of the finished runs; finished files stay."""

    def run_policies(part: tuple[int, str], core: int) -> None:
        seed, name = part
        for temperature in TEMPERATURES:
            for policy in policies(seed, name):
                file = answers_file(seed, policy, temperature)
                if file.exists():
                    continue
                file.parent.mkdir(parents=True, exist_ok=True)
                words = ["generate", policy, policy.parent / "steps" / "prepare_data" / "evaluation_prompts.jsonl"]
                words += ["-o", file, "--temperature", temperature, "--num_answers", NUM_ANSWERS if temperature else 1]
                words += ["--max_new_tokens", 32, "--generation_batch_size", 256, "--use_cpu"]
                launch(["pipeline.cli", *map(str, words)], core)

    on_cores(run_policies, [(seed, name) for name in NAMES for seed in seeds if policies(seed, name)])


def policies(seed: int, name: str) -> list[Path]:
    """The folders of a variation's policies, by round; none where it has not finished."""
    folder = run_folder(seed, name)
    summary = folder / "summaries" / f"{name}.json"
    if not summary.exists():
        return []
    content = json.loads(summary.read_text())
    if content["state"] != "done":
        return []
    folders = {step["name"]: step["folder"] for step in content["steps"]}
    return [folder / folders[row["policy"]] for row in content["rounds"]]


def answers_file(seed: int, policy: Path, temperature: float) -> Path:
    return RUNS / f"temperature-{seed}" / f"{policy.parent.name}-{policy.name}-{temperature}.jsonl"


def scores_at(temperature: float, name: str, seeds: Sequence[int]) -> Scores:
    """The gold score of every held-out prompt in every round at this temperature, of the seeds that have finished."""
    if temperature == 1:
        return scores_of(name, seeds)
    files = {seed: [answers_file(seed, one, temperature) for one in policies(seed, name)] for seed in seeds}
    return {seed: np.array([_gold(file) for file in of_seed]) for seed, of_seed in files.items() if of_seed}


def _gold(file: Path) -> list[float]:
    groups = [json.loads(line) for line in file.read_text().splitlines()]
    return [
        float(np.mean([gold(group["prompt"], one["text"], one["ended"]) for one in group["candidates"]]))
        for group in groups
    ]


def table(seeds: Sequence[int]) -> list[str]:
    """The mean gold score by round, a line for each variation and temperature."""
    rounds = max(len(policies(seed, name)) for seed in seeds for name in NAMES)
    lines: list[str] = []
    for name in NAMES:
        for temperature in (1, *TEMPERATURES):
            if scores := scores_at(temperature, name, seeds):
                scores_SRP = np.array(list(scores.values()))
                means = [f"{value:.3f}" for value in scores_SRP.mean(axis=(0, 2))]
                cells = " | ".join(means + ["-"] * (rounds - len(means)))
                gain = shown(pooled_interval(scores_SRP[:, -1] - scores_SRP[:, 0]))
                lines.append(f"| {name} | {temperature:g} | {len(scores)} | {cells} | {gain} |")
    head = ["", "temperature", "seeds", *(f"round {number}" for number in range(rounds)), "gain over round 0"]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines]


def verdict(seeds: Sequence[int]) -> list[str]:
    """What the table says at SERVED: whether every round rises, what later rounds add, and which controls improve."""
    full = scores_at(SERVED, FULL, seeds)
    added = after_round_2({FULL: full})
    over_seeds = (
        seeds_interval(np.array([scores_RP[-1] - scores_RP[2] for scores_RP in full.values()])) if added else None
    )
    if over_seeds:
        added.append(f"  The same over seeds: {shown(over_seeds)}.")
    controls = {name: scores_at(SERVED, name, seeds) for name in CONTROLS}
    return [climb(full, at="at this temperature"), *added, *improved_controls(controls)]


TEXT = """# The same policies at the temperature at which a model is served

[The table of rounds](alignment.md) samples at temperature 1, as training does. Here the policies of the same runs
answer the same held-out prompts at {served:g}, which is in the generation config of Llama 3's chat models, and at 0.
Nothing is trained again. Measured by `python -m benchmarks.alignment temperature`; intervals are those of the table of
rounds.

{table}

At temperature {served:g}:

{verdict}
"""


def main(seeds: Sequence[int], docs: Path) -> None:
    if not any(policies(seed, FULL) for seed in seeds):
        sys.exit("error: no seed has finished the full recipe; run `python -m benchmarks.alignment world` first")
    run(seeds)
    text = TEXT.format(served=SERVED, table="\n".join(table(seeds)), verdict="\n".join(verdict(seeds)))
    (docs / PAGE).write_text(text)
    print(text)
