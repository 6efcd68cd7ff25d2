"""What is left to find in a policy's answers, and who finds it: reward models, or a vote.

    python -m benchmarks.alignment headroom

Of finished runs of the full recipe, the policy before the last round answers the held-out prompts NUM_ANSWERS times.
The reward model of round 1, which knows only answers of the first policy, and that of the last round score them. The
gold score of the best of n by either, for n up to NUM_ANSWERS, is estimated without bias from all answers (Gao et al.,
arXiv 2210.10760, and Stiennon et al., arXiv 2009.01325). Best-of-n is ln n - (n - 1) / n nats from the policy. A vote
takes the most frequent of n answers (self-consistency, Wang et al., arXiv 2203.11171).
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.alignment.launching import launch, on_cores
from benchmarks.alignment.report import FULL, RUNS, pooled_interval, run_folder, seeds_interval, shown
from toy_world.gold import gold

NUM_ANSWERS = 128
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
REPORTED = (8, 128)  # the n of rejection sampling, and the largest
STALE, REFITTED, BY_GOLD = "stale", "refitted", "gold"
VOTE = "vote"
PAGE, PLOT = "alignment-headroom.md", "alignment-headroom.svg"


def run(seeds: Sequence[int]) -> None:
    """Samples and scores the answers of every seed that has finished the full recipe; finished files stay."""

    def run_seed(seed: int, core: int) -> None:
        run, folder = run_folder(seed, FULL), _folder(seed)
        folder.mkdir(parents=True, exist_ok=True)
        steps = _steps(seed)
        last = max(int(name.split(".")[0].removeprefix("round-")) for name in steps if name.startswith("round-"))
        policy, answers = run / steps[f"round-{last - 1}.dpo"], folder / "answers.jsonl"
        prompts = run / steps["prepare_data"] / "evaluation_prompts.jsonl"
        common = ["--use_cpu", "--generation_batch_size", "256"]

        if not answers.exists():
            words = ["generate", policy, prompts, "-o", answers, "--max_new_tokens", 32, "--num_answers", NUM_ANSWERS]
            launch(["pipeline.cli", *map(str, words), *common], core)
        for name, number in ((STALE, 1), (REFITTED, last)):
            file = folder / f"{name}.jsonl"
            if not file.exists():
                model = run / steps[f"round-{number}.reward_model"]
                launch(["pipeline.cli", "score", str(model), str(answers), "-o", str(file), *common], core)

    on_cores(run_seed, [seed for seed in seeds if (run_folder(seed, FULL) / "summaries" / f"{FULL}.json").exists()])


def _folder(seed: int) -> Path:
    return RUNS / f"headroom-{seed}"


def _steps(seed: int) -> dict[str, str]:
    """The folders of the full recipe's steps, by name."""
    content = json.loads((run_folder(seed, FULL) / "summaries" / f"{FULL}.json").read_text())
    return {step["name"]: step["folder"] for step in content["steps"]}


@dataclass(frozen=True)
class Sampled:
    """The answers of a file: their texts, gold scores, and rewards where a reward model has scored them, all [P, N]."""

    texts: list[list[str]]
    gold: np.ndarray
    rewards: np.ndarray

    @classmethod
    def read(cls, file: Path) -> "Sampled":
        groups = [json.loads(line) for line in file.read_text().splitlines()]
        answers = [[(group["prompt"], one) for one in group["candidates"]] for group in groups]
        return cls(
            [[one["text"] for _, one in row] for row in answers],
            np.array([[gold(prompt, one["text"], one["ended"]) for prompt, one in row] for row in answers]),
            np.array([[one["score"] for _, one in row] for row in answers]),
        )


Scored = Sequence[Mapping[str, Sampled]]  # of each seed: the same answers, by STALE and by REFITTED


def scored(seeds: Sequence[int]) -> Scored:
    return [{name: Sampled.read(_folder(seed) / f"{name}.jsonl") for name in (STALE, REFITTED)} for seed in seeds]


def voted(n: int, texts: Sequence[Sequence[str]], values_PN: np.ndarray) -> np.ndarray:
    """For each prompt the value of the most frequent of n answers, the first of several; mean of N / n draws, [P]."""
    num = values_PN.shape[1]
    chosen_PD = np.array(
        [
            [_most_frequent(of_prompt[start : start + n]) + start for start in range(0, num - n + 1, n)]
            for of_prompt in texts
        ]
    )
    return np.take_along_axis(values_PN, chosen_PD, axis=1).mean(axis=1)


def _most_frequent(texts: Sequence[str]) -> int:
    counts = Counter(texts)
    return max(range(len(texts)), key=lambda place: (counts[texts[place]], -place))


def best_of(n: int, by_PN: np.ndarray, values_PN: np.ndarray) -> np.ndarray:
    """For each prompt the expected value of the answer that is best by `by_PN` of n drawn without replacement, [P]."""
    num = by_PN.shape[1]
    order = np.argsort(by_PN, axis=1, kind="stable")
    weights_N = np.array([math.comb(place, n - 1) / math.comb(num, n) for place in range(num)])
    return np.take_along_axis(values_PN, order, axis=1) @ weights_N


def curves(seeds: Scored) -> dict[str, np.ndarray]:
    """The gold score of the best of each of SIZES by stale, refitted, a vote and gold; of each prompt, [S, n, P]."""
    gold_of = {
        name: np.array([[best_of(n, one[name].rewards, one[name].gold) for n in SIZES] for one in seeds])
        for name in (STALE, REFITTED)
    }
    answers = [one[STALE] for one in seeds]
    return gold_of | {
        BY_GOLD: np.array([[best_of(n, one.gold, one.gold) for n in SIZES] for one in answers]),
        VOTE: np.array([[voted(n, one.texts, one.gold) for n in SIZES] for one in answers]),
    }


def proxies(seeds: Scored, name: str) -> np.ndarray:
    """The reward of the best of each of SIZES by a reward model itself, less that of one answer, mean of all, [n]."""
    means_n = np.array([np.mean([best_of(n, one[name].rewards, one[name].rewards) for one in seeds]) for n in SIZES])
    return means_n - means_n[0]


def table(gold_of: Mapping[str, np.ndarray], seeds: Scored) -> list[str]:
    rises = {name: proxies(seeds, name) for name in (STALE, REFITTED)}
    lines = [
        "| n | KL, nats | gold, best by round 1's | its own reward rises by | gold, best by the last round's | its own "
        "reward rises by | gold, by vote | gold, best by gold |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for place, n in enumerate(SIZES):
        means = {name: gold_SnP[:, place].mean() for name, gold_SnP in gold_of.items()}
        cells = [str(n), f"{math.log(n) - (n - 1) / n:.2f}"]
        for name in (STALE, REFITTED):
            cells += [f"{means[name]:.3f}", f"{rises[name][place]:+.2f}"]
        lines.append(f"| {' | '.join([*cells, f'{means[VOTE]:.3f}', f'{means[BY_GOLD]:.3f}'])} |")
    return lines


def differences(gold_of: Mapping[str, np.ndarray]) -> list[str]:
    """Refitted less stale, a vote less refitted, and what each gains over one answer, with intervals."""
    lines = []
    for n in REPORTED:
        place = SIZES.index(n)
        difference_SP = gold_of[REFITTED][:, place] - gold_of[STALE][:, place]
        over_seeds = seeds_interval(difference_SP)
        beside = f", {shown(over_seeds)} over seeds" if over_seeds else ""
        lines.append(
            f"- Best of {n}, the last round's above round 1's: {shown(pooled_interval(difference_SP))}{beside}."
        )
    above_SP = gold_of[VOTE][:, -1] - gold_of[REFITTED][:, -1]
    lines.append(
        f"- The most frequent of {SIZES[-1]} above the last round's choice: {shown(pooled_interval(above_SP))}."
    )
    for name, label in ((STALE, "round 1's"), (REFITTED, "the last round's"), (VOTE, "vote")):
        gain_SP = gold_of[name][:, -1] - gold_of[name][:, 0]
        lines.append(f"- Best of {SIZES[-1]} by {label} above one answer: {shown(pooled_interval(gain_SP))}.")
        peak = int(gold_of[name].mean(axis=(0, 2)).argmax())
        fall_SP = gold_of[name][:, -1] - gold_of[name][:, peak]
        if peak < len(SIZES) - 1:
            lines.append(
                f"  Its peak is at n = {SIZES[peak]}; from there to the end: {shown(pooled_interval(fall_SP))}."
            )
    return lines


def draw(gold_of: Mapping[str, np.ndarray], path: Path) -> None:
    """Gold over the square root of the KL, as in Gao et al., figure 1."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "alignloop"
    import matplotlib.pyplot as plt

    roots = [math.sqrt(math.log(n) - (n - 1) / n) for n in SIZES]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    styles = {STALE: ("C3", "the reward model of round 1"), REFITTED: ("C0", "that of the last round")}
    for name, (colour, label) in styles.items():
        for of_seed in gold_of[name].mean(axis=2):
            axes.plot(roots, of_seed, color=colour, alpha=0.25, linewidth=1)
        axes.plot(
            roots, gold_of[name].mean(axis=(0, 2)), color=colour, marker="o", markersize=4, label=f"best by {label}"
        )
    axes.plot(roots, gold_of[VOTE].mean(axis=(0, 2)), color="C2", marker="o", markersize=4, label="the most frequent")
    axes.plot(roots, gold_of[BY_GOLD].mean(axis=(0, 2)), color="C7", linestyle=":", label="best by gold")
    axes.set(xlabel="square root of the KL to the policy (nats)", ylabel="gold score of the best of n")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


TEXT = """# What is left to find in the answers, and who finds it

In the demo's world, the policy of the round before the last answers each held-out prompt {num} times. The reward model
of round 1 has learnt from answers of the first policy only, that of the last round from the answers of all rounds.
The table has the gold score of the best of n answers by either, and of the most frequent of n. Seeds: {seeds}. Measured
by `python -m benchmarks.alignment headroom`. Intervals are those of [the table of rounds](alignment.md).

{table}

{differences}

![gold over the square root of the KL]({plot})

[What the policies are worth at a lower temperature](alignment-temperature.md) has its own page.
"""


def main(seeds: Sequence[int], docs: Path) -> None:
    run(seeds)
    done = [seed for seed in seeds if (_folder(seed) / f"{REFITTED}.jsonl").exists()]
    if not done:
        sys.exit("error: no seed has finished the full recipe; run `python -m benchmarks.alignment world` first")
    answers = scored(done)
    gold_of = curves(answers)
    draw(gold_of, docs / PLOT)
    text = TEXT.format(
        num=NUM_ANSWERS,
        seeds=len(done),
        table="\n".join(table(gold_of, answers)),
        differences="\n".join(differences(gold_of)),
        plot=PLOT,
    )
    (docs / PAGE).write_text(text)
    print(text)
