"""The report of the alignment benchmark: tables of the gold score by round with intervals, and a plot.

A variation is compared with the full recipe on the seeds that both have finished, so that the report can be written
while runs are missing. Shapes: S = seeds, R = rounds (with round 0), P = evaluation prompts.
"""

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alignment.report_text import (
    BY_ROUND_TEXT,
    ONE_BATCH_TEXT,
    OTHERS,
    REWARD_MODELS_TEXT,
    STAGES_TEXT,
    TEXT,
)

ROOT = Path(__file__).absolute().parents[2]
RUNS = ROOT / "runs"
FULL, STALE, ONE_BATCH = "full recipe", "reward model not refitted", "DPO of one batch"
NO_DPO, DPO_ALONE, DPO_ALONE_LATER = "no DPO", "DPO alone", "DPO alone from round 3"
PAGE = "alignment"
CONTROLS = {
    "shuffled labels": "which are independent of the answers",
    "swapped pairs": "in which the worse answer is preferred",
    "hash of the text": "as a reward",
}
NUM_RESAMPLES = 5_000
# 97.5 % quantiles of Student's t with 1 to 9 degrees of freedom; with more the last one is used, which is wider.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
Scores = Mapping[int, np.ndarray]  # seed -> gold score of every evaluation prompt in every round, [R, P]


def run_folder(seed: int, name: str) -> Path:
    """The folder in which a variation runs with a seed."""
    return RUNS / (f"alignment-{seed}-controls" if name in CONTROLS else f"alignment-{seed}")


def evaluations(folder: Path, summary: str) -> list[Path]:
    """The folders of the evaluations, by round; none if the summary has no finished run."""
    if not (folder / summary).is_file():
        return []
    content = json.loads((folder / summary).read_text())
    if content["state"] != "done":
        return []
    return [folder / step["folder"] for step in content["steps"] if step["stage"] == "evaluate_policy"]


def means_by_prompt(evaluation: Path) -> list[float]:
    groups = [json.loads(line) for line in (evaluation / "answers.jsonl").read_text().splitlines()]
    return [float(np.mean([candidate["score"] for candidate in group["candidates"]])) for group in groups]


def scores_of(name: str, seeds: Sequence[int]) -> dict[int, np.ndarray]:
    """The scores of a variation, of the seeds that have finished it."""
    by_seed = {seed: evaluations(run_folder(seed, name), f"summaries/{name}.json") for seed in seeds}
    return {seed: np.array([means_by_prompt(one) for one in found]) for seed, found in by_seed.items() if found}


def pooled_interval(differences_SP: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval (low, high) of a paired difference, with prompts resampled within each seed."""
    draws = np.random.default_rng(0).integers(0, differences_SP.shape[1], (NUM_RESAMPLES, *differences_SP.shape))
    means = np.take_along_axis(differences_SP[None], draws, axis=2).mean(axis=(1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(differences_SP.mean()), float(low), float(high)


def seeds_interval(differences_SP: np.ndarray) -> tuple[float, float, float] | None:
    """Mean and 95 % interval (low, high) of the seeds' mean differences by Student's t; None for one seed."""
    means_S = differences_SP.mean(axis=1)
    if len(means_S) < 2:
        return None
    half = T_QUANTILES[min(len(means_S) - 2, len(T_QUANTILES) - 1)] * means_S.std(ddof=1) / np.sqrt(len(means_S))
    return float(means_S.mean()), float(means_S.mean() - half), float(means_S.mean() + half)


def last_differences(scores: Scores, full: Scores) -> np.ndarray:
    """Difference to the full recipe after the last round on the seeds that both have, [S, P]."""
    return np.array([scores[seed][-1] - full[seed][-1] for seed in scores.keys() & full.keys()])


def table(scores: Mapping[str, Scores]) -> list[str]:
    """The gold score by round, the gain over round 0, and the difference to the full recipe, a line a variation."""
    rounds = max(len(scores_RP) for of_seeds in scores.values() for scores_RP in of_seeds.values())
    by_round = [f"round {number}" for number in range(rounds)]
    head = ["", "seeds", *by_round, "gain over round 0", "against the full recipe: over prompts", "over seeds"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, of_seeds in scores.items():
        scores_SRP = np.array(list(of_seeds.values()))
        means = [f"{value:.3f}" for value in scores_SRP.mean(axis=(0, 2))]
        gain = pooled_interval(scores_SRP[:, -1] - scores_SRP[:, 0])
        against, over_seeds = "-", "-"
        if name != FULL and (differences_SP := last_differences(of_seeds, scores[FULL])).size:
            above = int((differences_SP.mean(axis=1) > 0).sum())
            against = f"{shown(pooled_interval(differences_SP))}, {above} of {len(differences_SP)} seeds above"
            interval = seeds_interval(differences_SP)
            over_seeds = shown(interval) if interval else "-"
        missing = ["-"] * (rounds - len(means))  # of a variation with fewer rounds
        cells = [name, str(len(of_seeds)), *means, *missing, shown(gain), against, over_seeds]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def sentence(scores: Mapping[str, Scores]) -> str:
    """What the loop buys, in one sentence, from the variations that have finished."""

    def mean(name: str, number: int = -1) -> str:
        return f"{np.array([of_seed[number] for of_seed in scores[name].values()]).mean():.3f}"

    rounds = len(next(iter(scores[FULL].values()))) - 1
    others = {
        ONE_BATCH: "one batch of as many judged answers for DPO",
        NO_DPO: "the loop without DPO",
        STALE: "the loop with the first round's reward model throughout",
        DPO_ALONE: "annotation and DPO alone",
    }
    said = [f"{words}: {mean(name)}" for name, words in others.items() if name in scores]
    gain = f"{rounds} rounds raise the mean gold score from {mean(FULL, 0)} to {mean(FULL)}"
    return textwrap.fill(f"{gain} ({'; '.join(said)})." if said else f"{gain}.", 118)


def verdict(scores: Mapping[str, Scores]) -> str:
    """The table's result in words: which variations differ beyond both intervals, and which controls improved."""
    worse, better, other = "Worse than", "Better than", "Not distinguishable from"
    groups: dict[str, list[str]] = {worse: [], better: [], other: []}
    for name in scores.keys() - {FULL, *CONTROLS}:
        differences_SP = last_differences(scores[name], scores[FULL])
        if not differences_SP.size:
            continue
        intervals = [pooled_interval(differences_SP), seeds_interval(differences_SP)]
        is_worse, is_better = (
            all(i is not None and sign * i[k] > 0 for i in intervals) for sign, k in ((-1, 2), (1, 1))
        )
        groups[worse if is_worse else better if is_better else other].append(name)
    lines = [
        f"- {relation} the full recipe after the last round: {', '.join(sorted(names))}."
        for relation, names in groups.items()
        if names
    ]
    return "\n".join([climb(scores[FULL]), *after_round_2(scores), *lines, *improved_controls(scores)])


def improved_controls(scores: Mapping[str, Scores]) -> list[str]:
    """A line that names the controls whose gain over round 0 is beyond its interval; no line without controls."""
    controls = {name: np.array(list(scores[name].values())) for name in CONTROLS if scores.get(name)}
    gains = {name: pooled_interval(scores_SRP[:, -1] - scores_SRP[:, 0]) for name, scores_SRP in controls.items()}
    improved = [name for name, (_, low, _) in gains.items() if low > 0]
    return [f"- Controls that improved: {', '.join(improved) or 'none'}."] if gains else []


def differences_by_round(scores: Mapping[str, Scores]) -> list[str]:
    """The difference to the full recipe in every round, of the seeds that both have, a line a variation of as many
    rounds that is no control. A star marks those that the interval over seeds is beyond zero with, too."""
    full, lines = scores[FULL], list[str]()
    rounds = min(len(scores_RP) for scores_RP in full.values())
    for name, of_seeds in scores.items():
        seeds = sorted(of_seeds.keys() & full.keys())
        if name in (FULL, *CONTROLS) or not seeds or any(len(of_seeds[seed]) != rounds for seed in seeds):
            continue
        cells = []
        for number in range(1, rounds):
            differences_SP = np.array([of_seeds[seed][number] - full[seed][number] for seed in seeds])
            over_prompts, over_seeds = pooled_interval(differences_SP), seeds_interval(differences_SP)
            is_beyond = [one is not None and one[1] * one[2] > 0 for one in (over_prompts, over_seeds)]
            cells.append(shown(over_prompts) + "*" * all(is_beyond))
        lines.append(f"| {name} | {len(seeds)} | {' | '.join(cells)} |")
    head = ["", "seeds", *(f"round {number}" for number in range(1, rounds))]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines] if lines else []


def after_round_2(scores: Mapping[str, Scores]) -> list[str]:
    """What the rounds after the second add, in each variation that is no control."""
    gains = {
        name: np.array([scores_RP[-1] - scores_RP[2] for scores_RP in of_seeds.values()])
        for name, of_seeds in scores.items()
        if name not in CONTROLS and all(len(scores_RP) > 3 for scores_RP in of_seeds.values())
    }
    added = [f"{name} {shown(pooled_interval(gain_SP))}" for name, gain_SP in gains.items()]
    return [f"- From round 2 to the last round, over prompts: {', '.join(added)}."] if added else []


def climb(full: Scores, *, at: str = "which the gate keeps") -> str:
    """Whether the full recipe rises in every round, and which rounds of which seeds fall beyond their interval below
    the best policy before them; `at` says of which kind it is."""
    scores_SRP = np.array(list(full.values()))
    means_R = scores_SRP.mean(axis=(0, 2))
    falls = [number for number in range(1, len(means_R)) if means_R[number] <= means_R[number - 1]]
    rises = f"does not rise in round {', '.join(map(str, falls))}" if falls else "rises in every round"
    beyond = [
        f"round {number} of seed {seed}"
        for seed, scores_RP in full.items()
        for number in range(1, len(scores_RP))
        if pooled_interval((scores_RP[number] - scores_RP[:number][scores_RP[:number].mean(1).argmax()])[None])[2] < 0
    ]
    fallen = "No round of a seed falls beyond its interval."
    if beyond:
        fallen = f"Beyond its interval below the best policy before it, {at}: {', '.join(beyond)}."
    return f"- The full recipe's mean over the seeds {rises}. {fallen}"


def shown(interval: tuple[float, float, float]) -> str:
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval)


def proxies(name: str, seeds: Sequence[int]) -> list[tuple[list[float], list[float], list[float]]]:
    """(KL to the first policy in nats, gold, proxy reward) by round from 1 on, of each seed that has finished."""
    found = []
    for seed in seeds:
        folders = evaluations(run_folder(seed, name), f"summaries/{name}.json")[1:]
        records = [json.loads((folder / "artifact.json").read_text())["metrics"] for folder in folders]
        if records:
            found.append(
                tuple([record[key] for record in records] for key in ("kl_to_first", "gold_mean", "proxy_mean"))
            )
    return found


def reward_models(names: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """What the reward models know of the policy that was trained after them, by round: the share of pairs of its
    answers that they order as gold does, and the gold score of the best of four answers by them, less that of one."""
    lines: list[str] = []
    for name in names:
        records = [
            [json.loads((folder / "artifact.json").read_text())["metrics"] for folder in found[1:]]
            for seed in seeds
            if (found := evaluations(run_folder(seed, name), f"summaries/{name}.json"))
        ]
        if not records or any(one.get("proxy_accuracy") is None for run in records for one in run):
            continue
        accuracy_R = np.mean([[one["proxy_accuracy"] for one in run] for run in records], axis=0)
        chosen_R = np.mean([[one["best_by_proxy"] - one["judge_mean"] for one in run] for run in records], axis=0)
        room_R = np.mean([[one["best_by_judge"] - one["judge_mean"] for one in run] for run in records], axis=0)
        lines += [
            f"| {name}: accuracy | {len(records)} | {' | '.join(f'{value:.3f}' for value in accuracy_R)} |",
            f"| its best of 4 above one answer | | {' | '.join(f'{value:+.3f}' for value in chosen_R)} |",
            f"| gold's best of 4 above one answer | | {' | '.join(f'{value:+.3f}' for value in room_R)} |",
        ]
    if not lines:
        return []
    rounds = lines[0].count("|") - 3
    head = ["", "seeds", *(f"round {number}" for number in range(1, rounds + 1))]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines]


def draw(scores: Mapping[str, Scores], path: Path) -> None:
    """Draws the gold score by round, a line for each variation's mean and a point for each seed; and, of the refitted
    and the stale reward model, gold and proxy over the square root of the KL (Gao et al., 2210.10760, figure 1)."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "alignloop"
    import matplotlib.pyplot as plt

    figure, (axes, curves) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained", width_ratios=(3, 2))
    last = 0
    for position, (name, of_seeds) in enumerate(scores.items()):
        means_SR = np.array(list(of_seeds.values())).mean(axis=2)
        rounds = np.arange(means_SR.shape[1])
        last = max(last, rounds[-1])
        colour = f"C{position}"
        style: dict[str, Any] = {"linestyle": "--" if name in CONTROLS else "-", "color": colour}
        axes.plot(rounds, means_SR.mean(axis=0), label=name, linewidth=2.5 if name == FULL else 1.5, **style)
        shift = (position - len(scores) / 2) * 0.012  # so that points of one round do not hide each other
        axes.scatter(np.tile(rounds + shift, len(means_SR)), means_SR.ravel(), s=10, color=colour, alpha=0.6)
    axes.set(xlabel="round", ylabel="mean gold score of the held-out prompts", xticks=range(last + 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2, loc="upper right", bbox_to_anchor=(1, 0.52))  # between the controls' lines
    for name in (name for name in (FULL, STALE) if name in scores):
        colour = f"C{list(scores).index(name)}"
        for number, (kl, gold, proxy) in enumerate(proxies(name, list(scores[name]))):
            label = name if not number else None
            curves.plot(np.sqrt(kl), gold, color=colour, marker="o", markersize=3, label=label and f"gold, {label}")
            if name == STALE:  # one reward model in all rounds, so its scores can be compared
                scaled = np.array(proxy) - proxy[0] + gold[0]
                curves.plot(
                    np.sqrt(kl), scaled, color=colour, linestyle=":", label=label and "its proxy, from the same point"
                )
    curves.set(xlabel="square root of the KL to the first policy (nats)", ylabel="gold score")
    curves.grid(alpha=0.3)
    curves.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def controls_text(names: Sequence[str]) -> str:
    """What the controls are that have finished."""
    if not names:
        return ""
    said = "; ".join(f"{name}, {CONTROLS[name]}" for name in names)
    return f"{textwrap.fill(f'Controls, which must not improve: {said}.', 118)}\n\n"


def report(names: Sequence[str], seeds: Sequence[int], folder: Path) -> None:
    """Writes alignment.md and its plot into the folder, from the finished runs."""
    scores = {name: found for name in names if (found := scores_of(name, seeds))}
    if FULL not in scores:
        sys.exit("error: no seed has finished the full recipe; run `python -m benchmarks.alignment world` first")
    (_, num_rounds, num_prompts) = np.array(list(scores[FULL].values())).shape
    folder.mkdir(exist_ok=True)
    draw(scores, folder / f"{PAGE}.svg")
    known, by_round = reward_models((FULL, STALE), seeds), differences_by_round(scores)
    text = TEXT.format(
        sentence=sentence(scores),
        seeds=len(scores[FULL]),
        rounds=num_rounds - 1,
        prompts=num_prompts,
        table="\n".join(table(scores)),
        verdict=verdict(scores),
        by_round=BY_ROUND_TEXT.format(table="\n".join(by_round)) if by_round else "",
        reward_models=REWARD_MODELS_TEXT.format(table="\n".join(known)) if known else "",
        words=STAGES_TEXT * ({NO_DPO, STALE, DPO_ALONE, DPO_ALONE_LATER} <= scores.keys())
        + ONE_BATCH_TEXT * (ONE_BATCH in scores)
        + controls_text([name for name in CONTROLS if name in scores]),
        others="".join(text for name, text in OTHERS.items() if (folder / name).exists()),
    )
    (folder / f"{PAGE}.md").write_text(text)
    print(text)
