"""The loop on a small real model, on prompts that a program checks: its rounds, and one round with as many labels.

`checkable.yaml` is the recipe, and `checkable.py` makes the prompts and checks the answers. The runs share a folder, so
that the evaluation of the unchanged model runs once.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from benchmarks.alignment.launching import alignloop
from benchmarks.alignment.report import ROOT, RUNS, evaluations, means_by_prompt, pooled_interval, shown

RECIPE = "benchmarks/alignment/checkable.yaml"
SEVERAL, ONE, DPO_ALONE = "the loop", "one round, as many labels", "DPO alone"
KINDS = {"trained": "kinds of constraints in training", "transfer": "other kinds"}  # by tag of the evaluation prompts
Scores = Mapping[str, np.ndarray]  # tag -> score of every evaluation prompt in every round, [R, P]


def settings() -> dict[str, list[str]]:
    """The keys that each variation sets: one round has the prompts of all rounds of the recipe."""
    recipe = yaml.safe_load((ROOT / RECIPE).read_text())
    prompts = {stage: recipe["rounds"] * recipe[stage]["num_prompts"] for stage in ("annotate", "rejection_sampling")}
    return {
        SEVERAL: [],
        ONE: ["rounds=1", "by_round={}", *(f"{stage}.num_prompts={count}" for stage, count in prompts.items())],
        DPO_ALONE: ["round_stages=[annotate, dpo]"],
    }


def run(base_model: str, names: Sequence[str]) -> None:
    """Runs the named variations, and copies the summary of each to its own name."""
    for name in names:
        alignloop([f"base_model={base_model}", *settings()[name]], recipe=RECIPE)
        copy = _summary(name)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(RUNS / "checkable" / "summary.json", copy)


def _summary(name: str) -> Path:
    return RUNS / "checkable" / "summaries" / f"{name}.json"


def scores_of(name: str) -> Scores:
    """The scores of a finished variation by tag; empty where it has not finished."""
    found = evaluations(RUNS / "checkable", str(_summary(name).relative_to(RUNS / "checkable")))
    by_round = [_by_tag(evaluation) for evaluation in found]
    return {tag: np.array([one[tag] for one in by_round]) for tag in KINDS} if by_round else {}


def _by_tag(evaluation: Path) -> dict[str, np.ndarray]:
    """The mean score of each prompt, by its tag."""
    means = np.array(means_by_prompt(evaluation))
    tags = np.array([json.loads(line)["tag"] for line in (evaluation / "answers.jsonl").read_text().splitlines()])
    return {tag: means[tags == tag] for tag in KINDS}


def table(scores: Mapping[str, Scores]) -> list[str]:
    """A line for each variation and kind of constraints."""
    rounds = max(len(scores_RP) for of_tags in scores.values() for scores_RP in of_tags.values())
    numbers = [f"round {number}" for number in range(rounds)]
    lines = [
        f"| {' | '.join(['', 'constraints', *numbers, 'gain over round 0', f'against {SEVERAL}'])} |",
        f"|{'---|' * (rounds + 4)}",
    ]
    for name, of_tags in scores.items():
        for tag, scores_RP in of_tags.items():
            means = [f"{mean:.3f}" for mean in scores_RP.mean(axis=1)] + [""] * (rounds - len(scores_RP))
            gain = shown(pooled_interval((scores_RP[-1] - scores_RP[0])[None]))
            is_compared = name != SEVERAL and SEVERAL in scores
            against = shown(pooled_interval((scores_RP[-1] - scores[SEVERAL][tag][-1])[None])) if is_compared else "-"
            lines.append(f"| {' | '.join([name, KINDS[tag], *means, gain, against])} |")
    return lines


def main(base_model: str, names: Sequence[str], folder: Path) -> None:
    """Runs the variations, and writes alignment-real-model.md into the folder from all that have finished."""
    run(base_model, names)
    scores = {name: found for name in settings() if (found := scores_of(name))}
    recipe = yaml.safe_load((ROOT / RECIPE).read_text())
    text = TEXT.format(
        rounds=recipe["rounds"],
        prompts={tag: scores_RP.shape[1] for tag, scores_RP in next(iter(scores.values())).items()},
        labels=recipe["annotate"]["num_prompts"],
        table="\n".join(table(scores)),
    )
    (folder / "alignment-real-model.md").write_text(text)
    print(text)


TEXT = """# The loop on a real model

SmolLM2-135M-Instruct is trained for {rounds} rounds with one seed (`benchmarks/alignment/checkable.yaml`) on prompts
with one or two constraints, as "Use at most 15 words." or "Do not use any commas." A program checks the answers: it is
the annotator and the judge. The table has the share of the constraints that the answers keep, with 4 answers to
each of {prompts[trained]} held-out prompts whose kinds of constraints are in training, and of {prompts[transfer]} with
three kinds that are in no training prompt. All evaluation prompts are about topics that no training prompt names.
Round 0 is the unchanged model. Each round has pairs of {labels} new prompts. Intervals are 95 %, bootstrap over
prompts: they are for these models on other prompts, not for other seeds. Measured by
`python -m benchmarks.alignment smollm2`.

{table}
"""
