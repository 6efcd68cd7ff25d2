"""The keys of the stages: TRL's dataclasses plus a few of our own, described for the pipeline and filled from a file.

One key of ours, `global_batch_size`, says how many rows an optimizer step sees. `per_device_train_batch_size` is only
the micro-batch, accumulation is derived: the number of processes is no part of what makes a step the same step.
"""

import dataclasses
import enum
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data_schemas.rows import Strength
from data_schemas.stage_keys import ConfigError, StageDescription, StageKey

# TRL and transformers keys that say how a stage is run or watched, not what it makes.
RUNTIME_KEYS = frozenset(
    """output_dir per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
    gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs
    activation_offloading logging_strategy logging_steps
    logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level
    log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id
    eval_accumulation_steps eval_do_concat_batches eval_use_gather_object include_for_metrics batch_eval_metrics
    prediction_loss_only save_only_model save_strategy save_steps save_on_each_node save_total_limit
    enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    restore_callback_states_from_checkpoint use_cpu dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp
    fsdp_config deepspeed debug skip_memory_metrics do_train do_eval do_predict resume_from_checkpoint local_rank
    dataset_num_proc precompute_ref_batch_size""".split()
)


def key_field(default: Any, help: str, *, role: str = "identity") -> Any:
    """A dataclass field with a help line and the role that data_schemas.stage_keys knows."""
    metadata = {"help": help, "role": role}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def required_field(help: str, *, role: str = "identity") -> Any:
    return field(default=None, metadata={"help": help, "role": role, "required": True})


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


def describe(
    recipe_version: int, example: str, classes: Sequence[type], defaults: Mapping[str, Any]
) -> StageDescription:
    """Every key of the dataclasses, ours first; `defaults` are ours for TRL's keys."""
    keys: dict[str, StageKey] = {}
    for cls in classes:
        hints = typing.get_type_hints(cls)
        own = cls.__module__.split(".")[0] not in ("trl", "transformers")
        for item in dataclasses.fields(cls):
            if not item.init or item.name in keys:
                continue
            kind, choices = _describe_type(hints[item.name])
            role = item.metadata.get("role") or ("runtime" if item.name in RUNTIME_KEYS else "identity")
            if item.name == "model_name_or_path":
                role = "model"
            keys[item.name] = StageKey(
                type=kind,
                choices=item.metadata.get("choices") or choices,
                default=_plain(defaults.get(item.name, _default_of(item))),
                role=role,
                required=bool(item.metadata.get("required")),
                own=own,
                help=" ".join(str(item.metadata.get("help", "")).split()),
            )
    return StageDescription(recipe_version=recipe_version, example=example, keys=keys)


def _default_of(item: dataclasses.Field[Any]) -> Any:
    if item.default is not dataclasses.MISSING:
        return item.default
    return None if item.default_factory is dataclasses.MISSING else item.default_factory()


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _describe_type(hint: Any) -> tuple[str, list[str] | None]:
    """A type hint as the words of StageKey.type, and the allowed words where it lists them."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    names: list[str] = []
    choices: list[str] | None = None
    for member in members:
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if member is type(None):
            names.append("null")
        elif origin is Literal:
            names.append("str" if arguments != (False,) else "bool")
            choices = [str(item) for item in arguments] if arguments != (False,) else choices
        elif isinstance(member, type) and issubclass(member, enum.Enum):
            names.append("str")
            choices = [str(item.value) for item in member]
        elif origin is list:
            names.append(f"list[{arguments[0].__name__ if arguments[0] in (int, float, str) else 'str'}]")
            if typing.get_origin(arguments[0]) is Literal:
                choices = [str(item) for item in typing.get_args(arguments[0])]
        elif origin is dict or member is dict:
            names.append("dict")
        else:
            names.append(member.__name__ if member in (bool, int, float, str) else "any")
    # null first, so that "null" is not read as text; text last, since everything converts to it.
    order = ["null", "bool", "int", "float", "list[int]", "list[float]", "list[str]", "dict", "str", "any"]
    return " | ".join(sorted(set(names), key=order.index)), choices


def fill(classes: Sequence[type], values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[Any, ...]:
    """Instances of the dataclasses from checked values. Raises ConfigError where a dataclass refuses them."""
    values = dict(defaults) | dict(values)
    instances = []
    for cls in classes:
        names = {item.name for item in dataclasses.fields(cls) if item.init}
        try:
            instances.append(cls(**{name: value for name, value in values.items() if name in names}))
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error).strip().splitlines()[0]) from error
    return tuple(instances)


def resolve_batch(values: dict[str, Any], *, default_global: int, at_most: int | None = None) -> dict[str, Any]:
    """The values with micro-batch and accumulation derived from global_batch_size and the number of processes.

    `at_most` is what the device's memory holds, where that is known.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows = values.get("global_batch_size", default_global)
    if rows < 1 or rows % processes:
        raise ConfigError(f"global_batch_size={rows} cannot be divided among {processes} processes; "
                          f"try {max(1, rows // processes) * processes}")  # fmt: skip
    micro = values.get("per_device_train_batch_size")
    if micro is None:
        micro = max(size for size in range(1, 9) if (rows // processes) % size == 0)
    if micro < 1 or rows % (micro * processes):
        raise ConfigError(f"global_batch_size={rows} is not a multiple of micro batch x processes = {micro} x "
                          f"{processes}; try {max(1, rows // (micro * processes)) * micro * processes}")  # fmt: skip
    if at_most is not None:
        micro = max(size for size in range(1, min(micro, at_most) + 1) if (rows // processes) % size == 0)
    accumulation = rows // (micro * processes)
    return values | {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
