"""What curation is worth in the demo's world: SFT on dirty human answers, as they are and curated.

    python -m benchmarks.alignment curation

Of the dirty instructions half are the world's own (people's answers of mixed quality), 30 % are copies of a few of them
with other case and punctuation, and 20 % are noise of four kinds: placeholders, loops, refusals, and pages of broken
markup. Both policies are trained from one base with the same keys, and judged by gold on the same held-out prompts.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.alignment.launching import alignloop, make_base, on_cores
from benchmarks.alignment.report import RUNS, means_by_prompt, pooled_interval, seeds_interval, shown
from data_schemas.files import read_json
from toy_world.make import make

DUPLICATE_SHARE, NOISE_SHARE = 0.3, 0.2  # of the dirty rows
NUM_COPIED = 20  # dialogs that the duplicates are copies of
RAW, CURATED = "raw rows", "curated rows"
# Questions of the world share 8-grams with held-out ones by their form, so only equal prompts count as leaks.
RULES = (
    "dialog_rules: [empty_answer, looping_answer, broken_html, refusal], max_dropped: 0.6, "
    "contamination_rules: [llama3_exact_prompt]"
)
SETTINGS = {RAW: [], CURATED: [f"curate={{{RULES}}}"]}
PLACEHOLDERS = ("N/A", "n/a", "TODO", "...")
REFUSALS = ("I'm sorry, but I can't help with that.", "As an AI language model, I cannot answer this question.")
PAGE = "<html><body><div class=menu><ul><li>Home<li>News</ul><table><tr><td>{answer}</div>"


def dirty(folder: Path, *, seed: int, num_instructions: int = 1_500, **given: Any) -> None:
    """Writes the toy world's files, with duplicates and noise among the instructions."""
    make(folder, seed=seed, num_instructions=num_instructions, **given)
    file = folder / "instructions.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    random = Random(f"{seed} dirt")
    num_rows = num_instructions / (1 - DUPLICATE_SHARE - NOISE_SHARE)
    copied = random.sample(rows, NUM_COPIED)
    duplicates = [
        _with_answer(row, _disguised(row, random)) for row in random.choices(copied, k=int(DUPLICATE_SHARE * num_rows))
    ]
    noise = [_with_answer(row, _noise(row, random)) for row in random.choices(rows, k=int(NOISE_SHARE * num_rows))]
    mixed = [*rows, *duplicates, *noise]
    random.shuffle(mixed)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in mixed), encoding="utf-8")


def _with_answer(row: dict[str, Any], answer: str) -> dict[str, Any]:
    return {"messages": [*row["messages"][:-1], {"role": "assistant", "content": answer}]}


def _disguised(row: dict[str, Any], random: Random) -> str:
    """The same answer, with other case and punctuation."""
    answer = row["messages"][-1]["content"]
    return random.choice((str, str.upper, str.lower))(answer).rstrip(".!") + random.choice((".", "!", "..", ""))


def _noise(row: dict[str, Any], random: Random) -> str:
    answer = row["messages"][-1]["content"]
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(PLACEHOLDERS)
    if kind == 1:
        return " ".join([answer] * 30)
    return random.choice(REFUSALS) if kind == 2 else PAGE.format(answer=answer)


def run(seeds: Sequence[int]) -> None:
    """Trains and judges both policies with every seed."""
    base = make_base()

    def run_seed(part: tuple[int, str], core: int) -> None:
        seed, name = part
        common = [
            f"name={folder_of(seed, name).name}",
            f"seed={seed}",
            "rounds=0",
            f"base_model={base}",
            "pretrain=null",
        ]
        data = "data.make_data=benchmarks.alignment.curation:dirty"
        alignloop([*common, data, *SETTINGS[name]], core=core)

    on_cores(run_seed, [(seed, name) for seed in seeds for name in SETTINGS])


def folder_of(seed: int, name: str) -> Path:
    return RUNS / f"curation-{seed}-{name.partition(' ')[0]}"


def table(seeds: Sequence[int]) -> list[str]:
    """The mean gold of each policy, the rows that it was trained on, and the paired difference."""
    scores = {
        name: np.array([means_by_prompt(folder_of(seed, name) / "steps" / "round-0.evaluate_policy") for seed in seeds])
        for name in SETTINGS
    }
    rows = {name: np.mean([_rows(folder_of(seed, name)) for seed in seeds]) for name in SETTINGS}
    differences_SP = scores[CURATED] - scores[RAW]
    over_seeds = seeds_interval(differences_SP)
    means = [f"| {name} | {rows[name]:,.0f} | {scores[name].mean():.3f} |" for name in SETTINGS]
    above = int((differences_SP.mean(axis=1) > 0).sum())
    return [
        "| SFT on | training rows | mean gold |",
        "|---|---|---|",
        *means,
        "",
        f"Curated above raw: {shown(pooled_interval(differences_SP))} over prompts, "
        f"{shown(over_seeds) if over_seeds else '-'} over seeds, {above} of {len(seeds)} seeds above.",
    ]


def _rows(folder: Path) -> int:
    step = "curate" if (folder / "steps" / "curate").exists() else "prepare_data"
    record = read_json(folder / "steps" / step / "artifact.json") or {}
    return record["metrics"]["instructions.train"]


def main(seeds: Sequence[int]) -> None:
    run(seeds)
    print("\n".join(table(seeds)))
