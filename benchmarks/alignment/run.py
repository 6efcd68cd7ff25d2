"""Measures whether the loop aligns: the gold score by round for the full recipe, its ablations, and controls.

    python -m benchmarks.alignment world                        # the demo's world, 5 seeds
    python -m benchmarks.alignment smollm2 --base_model DIR     # one round on prompts that a program can check
    python -m benchmarks.alignment report                       # docs/alignment.md and its plot, from finished runs

Every run is an ordinary `alignloop run`, and finished runs are reused. In the world it is configs/demo.yaml with a few
keys set, on a shared base. The recipe and its ablations share a folder for each seed, and so do the controls, so that
steps that two of them have in common run once. As many folders are written in parallel as there are cores.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).absolute().parents[2]
RUNS = ROOT / "runs"
BASE = "alignment-base"
SEEDS = (0, 1, 2, 3, 4)
ANNOTATOR = "annotate.annotator_function=benchmarks.alignment.controls"
FULL = "full recipe"
ABLATIONS: dict[str, list[str]] = {
    FULL: [],
    "no rejection sampling": ["round_stages=[annotate, reward_model, sft, dpo]"],
    "no DPO": ["round_stages=[annotate, reward_model, rejection_sampling, sft]"],
    "reward model not refitted": ["refit_reward_model=false"],
    "no NLL term": ["dpo.loss_type=[sigmoid]", "dpo.loss_weights=[1.0]"],
    "no formatting mask": ["dpo.mask_formatting=false"],
}
CONTROLS: dict[str, list[str]] = {
    "shuffled labels": [f"{ANNOTATOR}:shuffled"],
    "swapped pairs": [f"{ANNOTATOR}:swapped"],
    "hash of the text": [f"{ANNOTATOR}:hashed"],
}
NUM_RESAMPLES = 5_000

# Shapes: S = seeds, R = rounds (with round 0), P = evaluation prompts.


def alignloop(settings: Sequence[str], *, recipe: str = "configs/demo.yaml", core: int | None = None) -> None:
    """Runs a recipe, on one core if it is given. Raises CalledProcessError if the run fails."""
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "pipeline.cli", "run", str(ROOT / recipe), *words]

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    subprocess.run(command, cwd=ROOT, preexec_fn=pin, stdout=subprocess.PIPE, check=True)


def run_folder(seed: int, name: str) -> Path:
    """The folder in which a variation runs with a seed."""
    return RUNS / (f"alignment-{seed}-controls" if name in CONTROLS else f"alignment-{seed}")


def run_variations(seed: int, names: Iterable[str], base: Path, *, core: int) -> None:
    """Runs variations with one seed, one after the other, and copies the summary of each to its own name."""
    for name in names:
        started, folder = time.monotonic(), run_folder(seed, name)
        settings = (ABLATIONS | CONTROLS)[name]
        alignloop([f"name={folder.name}", f"seed={seed}", f"base_model={base}", "pretrain=null", *settings], core=core)
        copy = folder / "summaries" / f"{name}.json"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / "summary.json", copy)
        print(f"seed {seed}  {name:<26} {time.monotonic() - started:6.0f} s", flush=True)


def run_world(seeds: Sequence[int]) -> None:
    """Runs the recipe, its ablations and the controls with every seed."""
    started = time.monotonic()
    alignloop([f"name={BASE}", "rounds=0"])
    base = RUNS / BASE / "steps" / "prepare_base" / "model"
    cores = sorted(os.sched_getaffinity(0))
    with ThreadPoolExecutor(len(cores)) as pool:
        free = list(cores)

        def run_folder_of(part: tuple[int, Iterable[str]]) -> None:
            core = free.pop()
            try:
                run_variations(*part, base.resolve(), core=core)
            finally:
                free.append(core)

        list(pool.map(run_folder_of, [(seed, names) for names in (ABLATIONS, CONTROLS) for seed in seeds]))
    print(f"{len(seeds)} seeds in {(time.monotonic() - started) / 60:.0f} minutes", flush=True)


# -- the report -----------------------------------------------------------------------------------------------------


def scores_of(folder: Path, name: str) -> np.ndarray | None:
    """Gold score of every evaluation prompt in every round, [R, P]; None if the summary `name` has no finished run."""
    if not (folder / name).is_file():
        return None
    summary = json.loads((folder / name).read_text())
    if summary["state"] != "done":
        return None
    rounds = [step["folder"] for step in summary["steps"] if step["stage"] == "evaluate_policy"]
    return np.array([_means(folder / step / "answers.jsonl") for step in rounds])


def _means(answers: Path) -> list[float]:
    groups = [json.loads(line) for line in answers.read_text().splitlines()]
    return [float(np.mean([candidate["score"] for candidate in group["candidates"]])) for group in groups]


def pooled_interval(differences_SP: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval (low, high) of a paired difference, with prompts resampled within each seed."""
    draws = np.random.default_rng(0).integers(0, differences_SP.shape[1], (NUM_RESAMPLES, *differences_SP.shape))
    means = np.take_along_axis(differences_SP[None], draws, axis=2).mean(axis=(1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(differences_SP.mean()), float(low), float(high)


def table(scores: Mapping[str, np.ndarray]) -> list[str]:
    """The table's lines from scores [S, R, P] of each variation.

    It has the gold score by round, the gain over round 0, and the difference to the full recipe.
    """
    rounds = max(scores_SRP.shape[1] for scores_SRP in scores.values())
    head = ["", *(f"round {number}" for number in range(rounds)), "gain over round 0", "against the full recipe"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, scores_SRP in scores.items():
        means = [f"{value:.3f}" for value in scores_SRP.mean(axis=(0, 2))]
        gain = pooled_interval(scores_SRP[:, -1] - scores_SRP[:, 0])
        against = "-"
        if name != FULL:
            differences_SP = scores_SRP[:, -1] - scores[FULL][:, -1]
            above = int((differences_SP.mean(axis=1) > 0).sum())
            against = f"{shown(pooled_interval(differences_SP))}, {above} of {len(differences_SP)} seeds above"
        lines.append(f"| {' | '.join([name, *means, shown(gain), against])} |")
    return lines


def verdict(scores: Mapping[str, np.ndarray]) -> str:
    """The table's result in words: which ablations differ beyond the interval, and which controls improved."""
    worse, better, other = "Worse than", "Better than", "Not distinguishable from"
    groups: dict[str, list[str]] = {worse: [], better: [], other: []}
    for name in ABLATIONS.keys() - {FULL}:
        _, low, high = pooled_interval(scores[name][:, -1] - scores[FULL][:, -1])
        groups[worse if high < 0 else better if low > 0 else other].append(name)
    gains = {name: pooled_interval(scores[name][:, -1] - scores[name][:, 0]) for name in CONTROLS}
    improved = [name for name, (_, low, _) in gains.items() if low > 0]
    lines = [
        f"- {relation} the full recipe after the last round: {', '.join(sorted(names))}."
        for relation, names in groups.items()
        if names
    ]
    return "\n".join([*lines, f"- Controls that improved: {', '.join(improved) or 'none'}."])


def shown(interval: tuple[float, float, float]) -> str:
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval)


def draw(scores: Mapping[str, np.ndarray], path: Path) -> None:
    """Draws the gold score by round: a line for the mean of each variation, a point for each seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "alignloop"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for position, (name, scores_SRP) in enumerate(scores.items()):
        means_SR = scores_SRP.mean(axis=2)
        rounds = np.arange(means_SR.shape[1])
        colour = f"C{position}"
        style: dict[str, Any] = {"linestyle": "--" if name in CONTROLS else "-", "color": colour}
        axes.plot(rounds, means_SR.mean(axis=0), label=name, linewidth=2.5 if name == FULL else 1.5, **style)
        shift = (position - len(scores) / 2) * 0.012  # so that points of one round do not hide each other
        axes.scatter(np.tile(rounds + shift, len(means_SR)), means_SR.ravel(), s=10, color=colour, alpha=0.6)
    axes.set(xlabel="round", ylabel="mean gold score of the held-out prompts", xticks=rounds)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, metadata={"Date": None})


def report(seeds: Sequence[int], folder: Path) -> None:
    """Writes alignment.md and its plot into the folder, from the seeds of which all runs are finished."""
    of_seed = {
        seed: {name: scores_of(run_folder(seed, name), f"summaries/{name}.json") for name in ABLATIONS | CONTROLS}
        for seed in seeds
    }
    complete = [by_name for by_name in of_seed.values() if all(scores_RP is not None for scores_RP in by_name.values())]
    if not complete:
        sys.exit("error: no seed has all its runs; run `python -m benchmarks.alignment world` first")
    scores = {name: np.array([by_name[name] for by_name in complete]) for name in ABLATIONS | CONTROLS}
    num_seeds, _, num_prompts = scores[FULL].shape
    folder.mkdir(exist_ok=True)
    text = TEXT.format(seeds=num_seeds, prompts=num_prompts, table="\n".join(table(scores)), verdict=verdict(scores))
    checkable_RP = scores_of(RUNS / "checkable", "summary.json")
    if checkable_RP is not None:
        text += CHECKABLE.format(prompts=checkable_RP.shape[1], table="\n".join(table({FULL: checkable_RP[None]})))
    (folder / "alignment.md").write_text(text)
    draw(scores, folder / "alignment.svg")
    print(text)


TEXT = """# Does the loop align?

In the demo's world (`configs/demo.yaml`), the loop runs two rounds with {seeds} seeds on one pretrained base. The table
has the mean gold score of 4 answers to each of the same {prompts} held-out prompts. Only annotation and evaluation ever
see the gold score. Measured by `make bench-alignment`. Intervals are 95 % bootstrap intervals of paired differences,
with prompts resampled within each seed.

{table}

The last three rows are controls, which must not improve: labels that are independent of the answers, pairs in which the
worse answer is preferred, and a reward that is a hash of the text. Differences beyond the 95 % intervals:

{verdict}

The intervals are for the models of these seeds on other prompts, not for other seeds. Where the seeds disagree, the
difference is not shown to be real. A small world shows what a part does there, not what it does at scale.

![gold by round](alignment.svg)
"""

CHECKABLE = """
## A real model

SmolLM2-135M-Instruct is trained for one round with one seed (`benchmarks/alignment/checkable.yaml`). The table has the
share of the constraints that the answers keep, checked by a program, with 4 answers to each of {prompts} held-out
prompts. Round 0 is the unchanged model.

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["world", "smollm2", "report"], help="what to run; each writes the report")
    parser.add_argument(
        "--base_model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="a model folder or a name on the hub"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    if arguments.part == "world":
        run_world(arguments.seeds)
    if arguments.part == "smollm2":
        alignloop([f"base_model={arguments.base_model}"], recipe="benchmarks/alignment/checkable.yaml")
    report(arguments.seeds, arguments.docs)


if __name__ == "__main__":
    main()
