"""The keys of the stages: TRL's dataclasses plus a few of our own, described for the pipeline and filled from a file.

One key of ours, `global_batch_size`, is the number of rows of an optimizer step. `per_device_train_batch_size` is only
the micro-batch, and accumulation is derived: the number of processes is not part of a step's identity.
"""

from dataclasses import dataclass
from typing import Literal

from data_schemas.key_rules import check_batch
from data_schemas.rows import Strength
from data_schemas.stage_keys import TRACKERS, Keys, Values
from engine.runtime import world
from engine.runtime.keys import key_field, required_field

MERGE, KEEP_ADAPTER = "merge", "keep"  # values of at_end
KEEP_BY_LOSS, KEEP_BY_ACCURACY, KEEP_LAST = "best_by_loss", "best_by_accuracy", "last"  # values of keep
LOG_LEVELS = ("debug", "info", "warning", "error", "critical", "detail", "passive")  # those of transformers


@dataclass(kw_only=True)
class StepArguments:
    """Keys of every stage: which step it is, for the record and for tracking."""

    step: str = key_field("", "name of the step in the run, as in round-1.dpo", role="runtime")
    run_group: str = key_field("", "name of the run: wandb groups its steps by it", role="runtime")
    fingerprint: str = key_field("", "identity of the step, computed by the pipeline", role="runtime")


@dataclass(kw_only=True)
class PlainStageArguments(StepArguments):
    """More keys of a stage without a TRL trainer."""

    output_dir: str = key_field("", "the folder this stage writes (required)", role="runtime")
    seed: int = key_field(42, "seed of every random choice of the stage", minimum=0, maximum=2**32 - 1)
    use_cpu: bool = key_field(False, "run on the CPU even where there is a GPU", role="runtime")
    report_to: str | list[str] = key_field("wandb", "where numbers go, or a list", role="runtime", choices=TRACKERS)
    log_level: str = key_field("info", "least level on the console", role="runtime", choices=LOG_LEVELS)


@dataclass(kw_only=True)
class LoadingArguments(PlainStageArguments):
    """Keys to load a model by, of a stage without a TRL trainer; the others have them from TRL's ModelConfig."""

    trust_remote_code: bool = key_field(False, "run code that comes with a model's files", role="runtime")


@dataclass(kw_only=True)
class TrainingStageArguments(StepArguments):
    """Our keys for the training stages; TRL's config and ModelConfig hold the rest."""

    train_data: list[str] = required_field("files or folders of training rows", role="rows")
    eval_data: list[str] | None = key_field(None, "files of held-out rows; without them, a share by group", role="rows")
    validation_share: float = key_field(
        0.05, "share of the groups held out where eval_data is not given", minimum=0, below=1
    )
    global_batch_size: int = key_field(32, "rows an optimizer step, over all processes", minimum=1, maximum=10**8)
    patience: int | None = key_field(
        None, "stop after so many evaluations without a better eval_loss; null: never", minimum=1
    )
    keep: str = key_field(
        KEEP_BY_LOSS,
        "the model that is saved: the one with the lowest eval_loss, the start included, or the last",
        choices=(KEEP_BY_LOSS, KEEP_LAST),
        omitted_at_default=True,
    )
    at_end: str = key_field(
        MERGE,
        "what is saved of an adapter: the base with the adapter merged into it, or only the adapter",
        choices=(MERGE, KEEP_ADAPTER),
        omitted_at_default=True,
    )
    on_bad_row: Literal["error", "set_aside"] = key_field("error", "what a bad row does: stop, or be set aside")
    on_bad_step: Literal["stop", "skip"] = key_field(
        "stop",
        "a step with a loss or gradient that is not finite, or a loss that is a spike: stop there, or skip it",
    )
    spike_sigma: float | None = key_field(
        10.0, "a loss so many standard deviations above the mean of the last 128 is a spike; null: none is", above=0
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
    """Keys of the stages whose rows are dialogs of different lengths."""

    on_long_row: Literal["leave_out", "truncate", "error"] = key_field(
        "leave_out", "a row over max_length: left out, cut off at its end (then it teaches no end token), or an error"
    )


@dataclass(kw_only=True)
class PreferenceArguments(DialogArguments):
    """Which pairs train: those of the clear levels whose answers differ enough (Llama 3, arXiv 2407.21783, 4.2.1).

    Held-out pairs are not filtered, so that evaluations under different choices are on the same rows.
    """

    keep: str = key_field(
        KEEP_BY_LOSS,
        "the model that is saved: the one with the lowest eval_loss or with the highest accuracy on held-out pairs, "
        "the start included, or the last",
        choices=(KEEP_BY_LOSS, KEEP_BY_ACCURACY, KEEP_LAST),
        omitted_at_default=True,
    )
    strengths: list[Strength] | None = key_field(
        ["significantly_better", "better"], "levels that train; a pair without a level always does; null: all levels"
    )
    share_prompts: bool = key_field(
        True,
        "answers to one prompt share its tokens and short rows share a row: the same numbers, several times as fast",
    )
    max_similarity: float | None = key_field(
        None,
        "drop answers more alike than this to a better one: 1 - edits / characters of the longer; null: none",
        minimum=0,
        maximum=1,
    )


@dataclass(kw_only=True)
class GenerationArguments(LoadingArguments):
    """Sampling keys. The noise of an answer comes from (seed, prompt id, k), not from the batch or process count."""

    engine: Literal["transformers", "vllm"] = key_field("transformers", "what generates: in this process, or vLLM's")
    vllm: Keys | None = key_field(
        None,
        "python: the interpreter of vLLM's own environment; tensor_parallel_size, data_parallel_size, "
        "gpu_memory_utilization, max_model_len",
        role="runtime",
    )
    endpoints: Keys | None = key_field(
        None,
        "name: {base_url, model, api_key_env, price, budget, …}: servers whose models may answer or judge",
        role="runtime",
    )
    temperature: float = key_field(1.0, "softmax temperature; 0 takes the most probable token", minimum=0)
    top_p: float = key_field(1.0, "nucleus: the smallest set of tokens with this much probability", above=0, maximum=1)
    max_new_tokens: int = key_field(256, "longest answer, in tokens", minimum=1, maximum=10**7)
    generation_batch_size: int = key_field(
        32, "answers written at a time; another size changes rounding at most", minimum=1, maximum=10**6
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = key_field("auto", "precision the models are loaded in")


def resolve_batch(values: Values, *, default_global: int, at_most: int | None = None) -> Keys:
    """The values with the micro-batch and accumulation derived from global_batch_size and the number of processes.

    `at_most` is the micro-batch that the device's memory holds, in rows, where that is known. Raises ConfigError where
    the rows of a step cannot be divided.
    """
    processes = world.num_processes()
    rows = values.get("global_batch_size", default_global)
    micro_batch = values.get("per_device_train_batch_size")
    check_batch(rows, micro_batch, processes=processes)
    rows_of_process = rows // processes
    if micro_batch is None:
        micro_batch = max(size for size in range(1, 9) if rows_of_process % size == 0)
    if at_most is not None:
        micro_batch = max(size for size in range(1, min(micro_batch, at_most) + 1) if rows_of_process % size == 0)
    batch = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": rows_of_process // micro_batch}
    return {**values, **batch}
