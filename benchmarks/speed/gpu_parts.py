"""What the GPU benchmark runs, in the order of worth: when the time ends, the last parts are missing.

On one GPU with 80 GiB or more, 8B models are trained with weights, gradients and both moments of AdamW in bfloat16 (60
GiB), on all sides alike. Users would shard float32 states over several GPUs instead; the matrix products are the same.
Activations are kept on all sides, so micro-batches have about 8,000 tokens: 50 GiB of activations. TRL's padded ones
hold fewer rows for that reason; it takes rows in the order of their lengths, which is the least padding there can be.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]
BARS = {  # what the project set out to reach with 8B models: (set, kind) -> (what, at least)
    ("capybara", "dpo"): ("rows_per_s", 3.0),
    ("ultrafeedback", "dpo"): ("rows_per_s", 6.65),
    ("capybara", "sft"): ("causal", 0.45),
}
SIDES = {  # (kind, is ours) -> the name of the side in sides.py
    ("dpo", True): "dpo-ours",
    ("dpo", False): "dpo-trl-grouped",
    ("reward", True): "reward-ours",
    ("reward", False): "reward-trl",
    ("sft", True): "sft-ours",
    ("sft", False): "sft-trl",
}


@dataclass(frozen=True)
class Part:
    """One process. `job` is what it is given, beside what all parts get."""

    name: str
    function: str  # its name in gpu_sides.parts()
    limit_s: int
    job: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """The sizes of a benchmark."""

    models: tuple[str, ...]  # the largest first; the first is the one with bars
    sets: Mapping[str, int]  # set of rows -> its rows, all of which a step sees
    micro_batches: Mapping[tuple[str, str], tuple[int, int]]  # (set, kind) -> rows of a pass of ours, and of TRL's
    attentions: tuple[str, ...]  # of ours
    small: Values  # the model of the checks
    demo_settings: tuple[str, ...]
    check_rows: str  # set of the checks
    padding_free_attention: str = "sdpa"  # of TRL's padding-free SFT, where flash-attn is not installed
    untimed: int = 1  # it has several micro-batches: FlexAttention compiles for one row length, then for any
    timed: int = 3
    square: int = 8192  # of the matrix product that measures the device's peak
    check_batch: int = 8


SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPU = Scale(
    models=("8B", "1B"),
    sets={"capybara": 24, "ultrafeedback": 32},
    micro_batches={
        ("capybara", "dpo"): (4, 1),
        ("capybara", "reward"): (4, 1),
        ("capybara", "sft"): (6, 6),
        ("ultrafeedback", "dpo"): (8, 2),
    },
    padding_free_attention="flex_attention",
    attentions=("sdpa", "flex_attention"),
    small=SMALL,
    demo_settings=("rounds=1", "annotate.num_prompts=600", "rejection_sampling.num_prompts=300"),
    check_rows="ultrafeedback",
)
TINY = Scale(  # for a CPU, as a test of everything but the speed
    models=("tiny",),
    sets={"tiny": 4},
    micro_batches={("tiny", "dpo"): (2, 1), ("tiny", "reward"): (2, 1), ("tiny", "sft"): (2, 2)},
    attentions=("sdpa",),
    small={**SMALL, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    demo_settings=(
        "rounds=1",
        "pretrain.max_steps=20",
        "defaults.max_steps=4",
        "defaults.eval_steps=1.0",
        "annotate.num_prompts=120",
        "annotate.num_validation_prompts=30",
        "rejection_sampling.num_prompts=40",
        "rejection_sampling.num_validation_prompts=20",
        "data.num_evaluation_prompts=20",
        "evaluate_policy.num_answers=1",
    ),
    check_rows="tiny",
    timed=2,
    square=64,
    check_batch=2,
)


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def trl_way(scale: Scale, kind: str) -> tuple[str, str, Values]:
    """TRL's best stock configuration with what is installed: its name, its attention, and its keys."""
    keys: Values = {"max_length": None}
    has_flash, names = has("flash_attn"), []
    if has("liger_kernel"):
        keys["use_liger_kernel"] = True
        names.append("Liger")
    if kind == "sft":
        keys["padding_free"] = True
        names.append("padding-free")
        return ", ".join(names), "flash_attention_2" if has_flash else scale.padding_free_attention, keys
    names.append("padded, length-grouped" + (", reference precomputed" if kind == "dpo" else ""))
    return ", ".join(names), "flash_attention_2" if has_flash else "sdpa", keys


def training_part(scale: Scale, model: str, rows: str, kind: str, *, ours: bool, attention: str, limit_s: int) -> Part:
    name, chosen, keys = ("", attention, {}) if ours else trl_way(scale, kind)
    micro = scale.micro_batches[rows, kind][0 if ours else 1]
    job: Values = {
        "model": model,
        "set": rows,
        "kind": kind,
        "is_ours": ours,
        "side": SIDES[kind, ours],
        "way": name,
        "attention": attention or chosen,
        "trl": keys,
        "batch": scale.sets[rows],
        "micro_batch": micro,
        "untimed": scale.untimed,
        "timed": scale.timed,
    }
    shown = f"{'ours' if ours else 'TRL'} {job['attention']}"
    return Part(f"{model} {kind} {rows} {shown}", "train", limit_s, job)


def parts_of(scale: Scale) -> list[Part]:
    """All parts, the most wanted first."""
    largest, *others = scale.models
    first, *more = scale.sets
    default = scale.attentions[0]
    trained = [
        (largest, first, "dpo", 75),
        (largest, first, "sft", 75),
        *((largest, rows, "dpo", 75) for rows in more),
        (largest, first, "reward", 75),
        *((model, first, kind, 60) for model in others for kind in ("dpo", "sft", "reward")),
    ]
    speed = []
    for model, rows, kind, limit in trained:
        is_first = model == largest and (kind == "sft" or (kind, rows) == ("dpo", first))
        for attention in scale.attentions if is_first or model != largest else (scale.attentions[-1],):
            speed.append(training_part(scale, model, rows, kind, ours=True, attention=attention, limit_s=limit))
        speed.append(training_part(scale, model, rows, kind, ours=False, attention="", limit_s=limit))
    small = {"sizes": scale.small, "batch": scale.check_batch, "set": scale.check_rows}
    cases = [("float32", default), *(("bfloat16", attention) for attention in scale.attentions)]
    attention = {"model": largest, "set": first, "micro_batch": scale.micro_batches[first, "dpo"][0]}
    checks = [
        Part("losses", "losses", 90, {**small, "cases": cases, "steps": 3}),
        Part("attention", "attention", 100, attention),
    ]
    slow = [
        Part("resume", "resume", 90, {**small, "steps": 8, "save_steps": 4}),
        Part("demo", "demo", 240, {"settings": scale.demo_settings, "mean": "judge_mean"}),
    ]
    num_first = len(scale.attentions) + 1
    return [*checks, *speed[: 2 * num_first], slow[0], *speed[2 * num_first :], slow[1]]
