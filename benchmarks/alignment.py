"""Does the loop align? The gold score by round, over seeds: the full recipe, one part removed at a time, and controls.

    python -m benchmarks.alignment world       # the demo's world, 5 seeds; runs that are there are reused
    python -m benchmarks.alignment report      # docs/alignment.md and its plot, from the runs that are there

Every run is an ordinary `alignloop run` of configs/demo.yaml with a few keys set, on a base that all share. The runs of
one seed share a folder, so what two of them have in common is made once. Seeds run side by side, a core each.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).absolute().parent.parent
RUNS = ROOT / "runs"
BASE = "alignment-base"
SEEDS = (0, 1, 2, 3, 4)
ANNOTATOR = "annotate.annotator_function=benchmarks.controls"
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


def alignloop(settings: Sequence[str], *, core: int | None = None) -> None:
    """One run of the demo's recipe, on one core where it is given. Raises CalledProcessError where it fails."""
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "pipeline.cli", "run", str(ROOT / "configs" / "demo.yaml"), *words]

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    subprocess.run(command, cwd=ROOT, preexec_fn=pin, stdout=subprocess.PIPE, check=True)


def run_seed(seed: int, base: Path, *, core: int) -> None:
    """Every variation of one seed, one after the other; each leaves its summary under its own name."""
    for name, settings in (ABLATIONS | CONTROLS).items():
        started = time.monotonic()
        alignloop([f"name=alignment-{seed}", f"seed={seed}", f"base_model={base}", *settings], core=core)
        folder = RUNS / f"alignment-{seed}"
        kept = folder / "summaries" / f"{name}.json"
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / "summary.json", kept)
        print(f"seed {seed}  {name:<26} {time.monotonic() - started:6.0f} s", flush=True)


def run_world(seeds: Sequence[int]) -> None:
    alignloop([f"name={BASE}", "rounds=0"])
    base = RUNS / BASE / "steps" / "prepare_base" / "model"
    cores = sorted(os.sched_getaffinity(0))
    with ThreadPoolExecutor(len(cores)) as lanes:
        free = list(cores)

        def one(seed: int) -> None:
            core = free.pop()
            try:
                run_seed(seed, base.resolve(), core=core)
            finally:
                free.append(core)

        list(lanes.map(one, seeds))


# -- the report -----------------------------------------------------------------------------------------------------


def scores_of(seed: int, name: str) -> np.ndarray | None:
    """Gold of every evaluation prompt in every round, [R, P]; None where the run is not there."""
    folder = RUNS / f"alignment-{seed}"
    kept = folder / "summaries" / f"{name}.json"
    if not kept.is_file():
        return None
    summary = json.loads(kept.read_text())
    rounds = [step["folder"] for step in summary["steps"] if step["stage"] == "evaluate_policy"]
    return np.array([_means(folder / name / "answers.jsonl") for name in rounds])


def _means(answers: Path) -> list[float]:
    groups = [json.loads(line) for line in answers.read_text().splitlines()]
    return [float(np.mean([candidate["score"] for candidate in group["candidates"]])) for group in groups]


def pooled_interval(differences_SP: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval of a paired difference, prompts resampled within every seed."""
    draws = np.random.default_rng(0).integers(0, differences_SP.shape[1], (NUM_RESAMPLES, *differences_SP.shape))
    means = np.take_along_axis(differences_SP[None], draws, axis=2).mean(axis=(1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(differences_SP.mean()), float(low), float(high)


def table(scores: Mapping[str, np.ndarray]) -> list[str]:
    """A row a variation from scores [S, R, P]: gold by round, gain over round 0, difference to the full recipe."""
    rounds = max(of.shape[1] for of in scores.values())
    head = ["", *(f"round {number}" for number in range(rounds)), "gain over round 0", "against the full recipe"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, scores_SRP in scores.items():
        means = [f"{value:.3f}" for value in scores_SRP.mean(axis=(0, 2))]
        gain = pooled_interval(scores_SRP[:, -1] - scores_SRP[:, 0])
        against = "-"
        if name != FULL:
            full_SRP = scores[FULL][: len(scores_SRP)]
            against = shown(pooled_interval(scores_SRP[:, -1] - full_SRP[:, -1]))
        lines.append(f"| {' | '.join([name, *means, shown(gain), against])} |")
    return lines


def shown(interval: tuple[float, float, float]) -> str:
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval)


def draw(scores: Mapping[str, np.ndarray], path: Path) -> None:
    """Gold by round, a line a variation, the mean over seeds with each seed's own as a point."""
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
    found: dict[str, np.ndarray] = {}
    for name in ABLATIONS | CONTROLS:
        of_seeds = [scores for seed in seeds if (scores := scores_of(seed, name)) is not None]
        if of_seeds:
            found[name] = np.array(of_seeds)
    if FULL not in found:
        sys.exit("error: no run of the full recipe is there; run `python -m benchmarks.alignment world` first")
    folder.mkdir(exist_ok=True)
    seeds_found = found[FULL].shape[0]
    text = TEXT.format(seeds=seeds_found, prompts=found[FULL].shape[2], table="\n".join(table(found)))
    (folder / "alignment.md").write_text(text)
    draw(found, folder / "alignment.svg")
    print("\n".join(table(found)))


TEXT = """# Does the loop align?

The demo's world (`configs/demo.yaml`), two rounds, {seeds} seeds on one pretrained base: the mean gold score of the
same {prompts} held-out prompts × 4 answers, which nothing but annotation and evaluation ever sees. Made by
`make bench-alignment`. Intervals are 95 % bootstrap intervals of paired differences, prompts resampled within a seed.

{table}

The last three rows are controls, which must not improve: labels that have nothing to do with the answers, the worse
answer called better, and a reward that is a hash of the text.

![gold by round](alignment.svg)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["world", "report"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    if arguments.part == "world":
        run_world(arguments.seeds)
    report(arguments.seeds, arguments.docs)


if __name__ == "__main__":
    main()
