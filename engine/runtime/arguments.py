"""The keys of the stages: TRL's dataclasses plus a few of our own, described for the pipeline and filled from a file.

One key of ours, `global_batch_size`, says how many rows an optimizer step sees. `per_device_train_batch_size` is only
the micro-batch, accumulation is derived: the number of processes is no part of what makes a step the same step.
"""

import os
from dataclasses import dataclass
from typing import Any, Literal

from data_schemas.errors import ConfigError
from data_schemas.rows import Strength
from engine.runtime.keys import key_field, required_field


@dataclass(kw_only=True)
class StepArguments:
    """What every stage has: who started it, for the record and for tracking."""

    step: str = key_field("", "name of the step in the run, as in round-1.dpo", role="runtime")
    run_group: str = key_field("", "name of the run: wandb groups its steps by it", role="runtime")
    fingerprint: str = key_field("", "identity of the step, computed by the pipeline", role="runtime")


@dataclass(kw_only=True)
class PlainStageArguments(StepArguments):
    """What a stage without a TRL trainer needs besides."""

    output_dir: str = key_field("", "the folder this stage writes (required)", role="runtime")
    seed: int = key_field(42, "seed of every random choice of the stage")
    use_cpu: bool = key_field(False, "run on the CPU even where there is a GPU", role="runtime")
    report_to: str | list[str] = key_field("wandb", "none or wandb", role="runtime")
    log_level: str = key_field("info", "debug, info, warning or error on the console", role="runtime")


@dataclass(kw_only=True)
class LoadingArguments(PlainStageArguments):
    """What a stage without a TRL trainer needs to load a model; the others have it from TRL's ModelConfig."""

    trust_remote_code: bool = key_field(False, "run code that comes with a model's files", role="runtime")


@dataclass(kw_only=True)
class TrainingStageArguments(StepArguments):
    """Our keys for the training stages; TRL's config and ModelConfig hold the rest."""

    train_data: list[str] = required_field("files or folders of training rows", role="rows")
    eval_data: list[str] | None = key_field(None, "files of held-out rows; without them, a share by group", role="rows")
    validation_share: float = key_field(0.05, "share of the groups held out where eval_data is not given")
    global_batch_size: int = key_field(32, "rows an optimizer step, over all processes")
    patience: int | None = key_field(None, "stop after so many evaluations without a better eval_loss; null: never")
    on_bad_row: Literal["error", "set_aside"] = key_field("error", "what a bad row does: stop, or be set aside")
    on_bad_step: Literal["stop", "skip"] = key_field(
        "stop",
        "a step with a loss or gradient that is not finite, or a loss that is a spike: stop there, or skip it",
    )
    spike_sigma: float | None = key_field(
        10.0, "a loss so many standard deviations above the mean of the last 128 is a spike; null: none is"
    )
    force_fp16: bool = key_field(False, "train in float16 all the same", role="runtime")
    other_contract: bool = key_field(
        False, "train also on rows whose answers another tokenizer or chat template made", role="runtime"
    )
    keep_checkpoints: bool = key_field(
        False, "keep the stage's checkpoints after its record is written", role="runtime"
    )


@dataclass(kw_only=True)
class DialogArguments(TrainingStageArguments):
    """Of the stages whose rows are dialogs, each of its own length."""

    on_long_row: Literal["leave_out", "truncate", "error"] = key_field(
        "leave_out", "a row over max_length: left out, cut off at its end (then it teaches no end token), or an error"
    )


@dataclass(kw_only=True)
class PreferenceArguments(DialogArguments):
    """Which pairs train: those of the clear levels whose answers are not too alike (Llama 3, arXiv 2407.21783, 4.2.1).

    Held-out pairs are left as they are, so that numbers of different choices are about the same rows.
    """

    strengths: list[Strength] | None = key_field(
        ["significantly_better", "better"], "levels that train; a pair without a level always does; null: all levels"
    )
    share_prompts: bool = key_field(
        True,
        "answers to one prompt share its tokens and short rows share a row: the same numbers, several times as fast",
    )
    max_similarity: float | None = key_field(
        None, "drop answers more alike than this to a better one: 1 - edits / characters of the longer; null: none"
    )


@dataclass(kw_only=True)
class GenerationArguments(LoadingArguments):
    """Sampling. The noise of an answer comes from (seed, prompt id, k): neither batch nor process count enters."""

    engine: Literal["transformers", "vllm"] = key_field("transformers", "what generates: in this process, or vLLM's")
    vllm: dict[str, Any] | None = key_field(
        None,
        "python: the interpreter of vLLM's own environment; tensor_parallel_size, data_parallel_size, "
        "gpu_memory_utilization, max_model_len",
        role="runtime",
    )
    temperature: float = key_field(1.0, "softmax temperature; 0 takes the most probable token")
    top_p: float = key_field(1.0, "nucleus: the smallest set of tokens with this much probability")
    max_new_tokens: int = key_field(256, "longest answer, in tokens")
    generation_batch_size: int = key_field(32, "answers written at a time; another size changes rounding at most")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = key_field("auto", "precision the models are loaded in")


def resolve_batch(values: dict[str, Any], *, default_global: int, at_most: int | None = None) -> dict[str, Any]:
    """The values with micro-batch and accumulation derived from global_batch_size and the number of processes.

    `at_most` is what the device's memory holds, where that is known.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows = values.get("global_batch_size", default_global)
    if rows < 1 or rows % processes:
        raise ConfigError(
            f"global_batch_size={rows} cannot be divided among {processes} processes; "
            f"try {max(1, rows // processes) * processes}"
        )
    micro = values.get("per_device_train_batch_size")
    if micro is None:
        micro = max(size for size in range(1, 9) if (rows // processes) % size == 0)
    if micro < 1 or rows % (micro * processes):
        raise ConfigError(
            f"global_batch_size={rows} is not a multiple of micro batch x processes = {micro} x "
            f"{processes}; try {max(1, rows // (micro * processes)) * micro * processes}"
        )
    if at_most is not None:
        micro = max(size for size in range(1, min(micro, at_most) + 1) if (rows // processes) % size == 0)
    accumulation = rows // (micro * processes)
    return values | {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
