"""Measures whether the loop aligns: the gold score by round for the full recipe, its ablations, and controls.

    python -m benchmarks.alignment world                        # the demo's world, 6 rounds, 5 seeds
    python -m benchmarks.alignment world --only "DPO alone" --seeds 0 1
    python -m benchmarks.alignment smollm2 --base_model DIR     # a real model on prompts that a program can check
    python -m benchmarks.alignment report                       # docs/alignment.md and its plot, from finished runs
    python -m benchmarks.alignment headroom                     # what is left to find, and who finds it
    python -m benchmarks.alignment temperature                  # the same policies at the temperature of a served model
    python -m benchmarks.alignment curation                     # SFT on dirty rows, as they are and curated
    python -m benchmarks.alignment rl                           # RL beside DPO at equal KL: docs/alignment-rl.md
    python -m benchmarks.alignment llm_judge                    # annotated by an LLM judge with noise and order bias

Every run is an ordinary `alignloop run`, and finished runs are reused. In the world it is configs/demo.yaml with a few
keys set, on a shared base. The recipe and its ablations share a folder for each seed, and so do the controls, so that
steps that two of them have in common run once. As many folders are written in parallel as there are cores.
"""

import argparse
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.alignment import curation, headroom, llm_judge, real_model, reinforcement, temperature
from benchmarks.alignment.launching import alignloop, make_base, on_cores
from benchmarks.alignment.report import (
    CONTROLS,
    DPO_ALONE,
    DPO_ALONE_LATER,
    FULL,
    NO_DPO,
    ONE_BATCH,
    ROOT,
    STALE,
    report,
    run_folder,
)

SEEDS = (0, 1, 2, 3, 4)
ROUNDS = 6
ANNOTATOR = "annotate.annotator_function=benchmarks.alignment.controls"
SETTINGS: dict[str, list[str]] = {
    FULL: [],
    DPO_ALONE: ["round_stages=[annotate, dpo]"],  # without rejection sampling, SFT has no rows either
    DPO_ALONE_LATER: ["round_stages_from={3: [annotate, dpo]}"],
    ONE_BATCH: [  # as many answers are compared as in six rounds
        "rounds=1",
        "round_stages=[annotate, dpo]",
        "annotate.num_prompts=3600",
        "annotate.num_answers=6",
    ],
    "DPO before rejection sampling": ["round_stages=[annotate, reward_model, dpo, rejection_sampling, sft]"],
    NO_DPO: ["round_stages=[annotate, reward_model, rejection_sampling, sft]"],
    STALE: ["refit_reward_model=false"],
    "SFT from the base": ["sft_from=base"],
    "no NLL term": ["dpo.loss_type=[sigmoid]", "dpo.loss_weights=[1.0]"],
    "no formatting mask": ["dpo.mask_formatting=false"],
    "shuffled labels": [f"{ANNOTATOR}:shuffled"],
    "swapped pairs": [f"{ANNOTATOR}:swapped"],
    "hash of the text": [f"{ANNOTATOR}:hashed"],
}


def run_variations(seed: int, names: Iterable[str], base: Path, *, core: int) -> None:
    """Runs variations with one seed, one after the other, and copies the summary of each to its own name."""
    for name in names:
        started, folder = time.monotonic(), run_folder(seed, name)
        common = [f"name={folder.name}", f"seed={seed}", f"rounds={ROUNDS}", f"base_model={base}", "pretrain=null"]
        alignloop([*common, *SETTINGS[name]], core=core)
        copy = folder / "summaries" / f"{name}.json"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / "summary.json", copy)
        print(f"seed {seed}  {name:<26} {time.monotonic() - started:6.0f} s", flush=True)


def run_world(seeds: Sequence[int], names: Sequence[str]) -> None:
    """Runs the named variations with every seed."""
    base = make_base()
    groups = [[name for name in names if (name in CONTROLS) == is_control] for is_control in (False, True)]
    parts = [(seed, group) for group in groups if group for seed in seeds]
    on_cores(lambda part, core: run_variations(*part, base, core=core), parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "part",
        choices=["world", "smollm2", "report", "headroom", "temperature", "rl", "curation", "llm_judge"],
        help="what to run; each prints or writes a report",
    )
    parser.add_argument(
        "--base_model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="a model folder or a name on the hub"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    names = {"world": list(SETTINGS), "report": list(SETTINGS), "smollm2": list(real_model.settings())}
    parser.add_argument("--only", nargs="+", help="some of the variations of the world or of the real model")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    known = names.get(arguments.part, [])
    if unknown := [name for name in arguments.only or [] if name not in known]:
        parser.error(f"{arguments.part} has no variation {unknown[0]!r}; it has: {', '.join(known) or 'none'}")
    if arguments.part == "smollm2":
        real_model.main(arguments.base_model, arguments.only or known, arguments.docs)
        return
    if arguments.part == "rl":
        reinforcement.main(arguments.seeds, arguments.docs)
        return
    if arguments.part == "headroom":
        headroom.main(arguments.seeds, arguments.docs)
        return
    if arguments.part == "temperature":
        temperature.main(arguments.seeds, arguments.docs)
        return
    if arguments.part == "curation":
        curation.main(arguments.seeds)
        return
    if arguments.part == "llm_judge":
        llm_judge.main(arguments.seeds)
        return
    if arguments.part == "world":
        run_world(arguments.seeds, arguments.only or known)
    reported = arguments.only if arguments.part == "report" and arguments.only else list(SETTINGS)
    report(reported, arguments.seeds, arguments.docs)


if __name__ == "__main__":
    main()
