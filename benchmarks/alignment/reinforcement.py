"""Compares RL with DPO of the same round at equal KL, and RL with and without guards on a reward that can be exploited.

Every policy of a seed starts from the same SFT model, after one round's annotate, reward_model, rejection_sampling and
sft, which run once in the seed's folder. The KL of DPO's policy to that model is RL's `kl_budget`. All of them answer
the same held-out prompts, where the gold score and the KL to the SFT model are measured. Every run is an ordinary
`alignloop run` of configs/demo.yaml, and every measurement the stage evaluate_policy by hand; what is finished is
reused.

    python -m benchmarks.alignment rl --seeds 0 1
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.alignment.exploitable import PHRASE
from benchmarks.alignment.launching import MEASURING, alignloop, launch, make_base, on_cores
from benchmarks.alignment.reinforcement_report import DPO, FREE, GUARDED, RL, RL_GOLD, SFT, Measured, report
from benchmarks.alignment.report import RUNS, means_by_prompt
from pipeline.report.rounds import exploited_rewards
from toy_world.gold import parts as gold_parts

STAGES = "annotate, reward_model, rejection_sampling, sft"
ANSWERS = ["rl.max_completion_length=32", "rl.num_eval_answers=2", "rl.beta=0"]
EQUAL_KL = [  # chosen on another seed than those of the report
    *ANSWERS,
    "rl.num_generations=16",
    "rl.global_batch_size=1024",
    "rl.per_device_train_batch_size=64",
    "rl.scale_rewards=none",
    "rl.learning_rate=5.0e-5",
    "rl.max_steps=150",
    "rl.eval_steps=1",
]
EXPLOITABLE = [
    *ANSWERS,
    "rl.num_generations=8",
    "rl.global_batch_size=256",
    "rl.per_device_train_batch_size=64",
    "rl.reward_functions=[benchmarks.alignment.exploitable:phrases]",
    "rl.reward_weights=[1.0, 3.0]",
    "rl.learning_rate=5.0e-4",
    "rl.max_steps=60",
]
GUARDS = [
    "rl.reward_shaping=sigmoid_of_reference",
    "rl.unfinished_penalty=1.0",
    "rl.kl_budget=0.5",
    "rl.eval_steps=1",
]
GOLD_SEEDS = 2  # that also train on the gold score itself, which takes longer than all else of a seed
ON_GOLD = [*EQUAL_KL, "rl.reward_functions=[toy_world.gold:gold]", "rl.reward_weights=[0.0, 1.0]"]
SETTINGS = {
    SFT: [],
    DPO: [],
    RL: EQUAL_KL,
    RL_GOLD: ON_GOLD,
    FREE: [*EXPLOITABLE, "rl.eval_steps=20"],
    GUARDED: [*EXPLOITABLE, *GUARDS],
}
LAST_STAGE = {SFT: "", DPO: ", dpo", RL: ", rl", RL_GOLD: ", rl", FREE: ", rl", GUARDED: ", rl"}


def run_folder(seed: int) -> Path:
    return RUNS / f"alignment-{seed}-rl"


def summary_of(seed: int, name: str) -> Path:
    """Where the summary of a run is kept while later runs in the same folder write theirs."""
    return run_folder(seed) / "summaries" / f"{name}.json"


def run(seed: int, name: str, base: Path, *, core: int, extra: Sequence[str] = ()) -> None:
    """Runs one recipe and measures its policy."""
    started, folder = time.monotonic(), run_folder(seed)
    common = [f"name={folder.name}", f"seed={seed}", "rounds=1", f"base_model={base}", "pretrain=null"]
    stages = f"round_stages=[{STAGES}{LAST_STAGE[name]}]"
    alignloop([*common, stages, *SETTINGS[name], *extra], core=core)
    kept = summary_of(seed, name)
    kept.parent.mkdir(exist_ok=True)
    shutil.copyfile(folder / "summary.json", kept)
    if not (measurement_of(seed, name) / "artifact.json").is_file():
        launch(evaluation(seed, name), core)
    print(f"seed {seed}  {name:<28} {time.monotonic() - started:6.0f} s", flush=True)


def step_of(seed: int, name: str, step: str) -> dict:
    """The entry of a step in the summary of a run."""
    steps = json.loads(summary_of(seed, name).read_text())["steps"]
    return next(entry for entry in steps if entry["name"] == step)


def policy_step(name: str) -> str:
    return f"round-1.{LAST_STAGE[name].strip(', ') or 'sft'}"


def measurement_of(seed: int, name: str) -> Path:
    return RUNS / f"{run_folder(seed).name}-measured" / step_of(seed, name, policy_step(name))["folder"]


def evaluation(seed: int, name: str) -> list[str]:
    """The command that measures the policy of a run: gold score, and KL to the round's SFT model."""
    folder = run_folder(seed)

    def output(step: str, path: str) -> str:
        return str(folder / step_of(seed, name, step)["folder"] / path)

    keys = {
        "prompts": output("prepare_data", "evaluation_prompts.jsonl"),
        "model_name_or_path": output(policy_step(name), "model"),
        "first_policy": output("round-1.sft", "model"),
        "proxy_model": output("round-1.reward_model", "model"),
        "judge_function": "toy_world.gold:gold",
        "seed": str(seed),
        **{key: str(value).lower() for key, value in MEASURING.items()},
        "output_dir": str(measurement_of(seed, name)),
    }
    return ["stages.evaluate_policy", *(word for key, value in keys.items() for word in (f"--{key}", value))]


def measured(seed: int, name: str) -> Measured:
    folder = measurement_of(seed, name)
    numbers = json.loads((folder / "artifact.json").read_text())["metrics"]
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    answers = [(row["prompt"], candidate) for row in rows for candidate in row["candidates"]]
    parts = [gold_parts(prompt, answer["text"], answer["ended"]) for prompt, answer in answers]
    step = step_of(seed, name, policy_step(name))
    return Measured(
        gold_P=np.array(means_by_prompt(folder)),
        kl=numbers["kl_to_first"],
        parts={name: float(np.mean([one[name] for one in parts])) for name in parts[0]},
        phrase_share=float(np.mean([PHRASE in answer["text"] for _, answer in answers])),
        proxy=numbers["proxy_mean"],
        step=step["metrics"].get("best_step") if step["stage"] == "rl" else None,
        said=[*step.get("warnings", []), *exploited_rewards(json.loads(summary_of(seed, name).read_text()))],
    )


def run_seed(seed: int, base: Path, core: int, *, on_gold: bool) -> None:
    for name in (SFT, DPO):
        run(seed, name, base, core=core)
    for name in (RL, RL_GOLD) if on_gold else (RL,):
        run(seed, name, base, core=core, extra=[f"rl.kl_budget={measured(seed, DPO).kl:.3f}"])
    for name in (FREE, GUARDED):
        run(seed, name, base, core=core)


def main(seeds: Sequence[int], docs: Path) -> None:
    """Runs what is missing, and writes alignment-rl.md into `docs`."""
    base, on_gold = make_base(), seeds[:GOLD_SEEDS]
    on_cores(lambda seed, core: run_seed(seed, base, core, on_gold=seed in on_gold), seeds)
    names = {seed: [name for name in SETTINGS if name != RL_GOLD or seed in on_gold] for seed in seeds}
    text = report({seed: {name: measured(seed, name) for name in names[seed]} for seed in seeds})
    docs.mkdir(exist_ok=True)
    (docs / "alignment-rl.md").write_text(text)
    print(text)
