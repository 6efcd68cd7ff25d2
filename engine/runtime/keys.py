"""Stage keys: declared as dataclass fields, described for the pipeline, and filled from checked values."""

import dataclasses
import enum
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data_schemas.errors import ConfigError
from data_schemas.limits import Limits
from data_schemas.stage_keys import KeyRole, StageKey, Values

# Keys of TRL and transformers that change how a stage runs or reports, not what it computes. They are left out of the
# fingerprint, so a finished step is reused when one of them changes. Each group has its reason.
_RUNTIME_KEY_GROUPS = (
    # The rows of an optimizer step are global_batch_size; how they are divided changes results only by rounding.
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps precompute_ref_batch_size",
    # Saving memory by computing activations again, or moving them, gives the same gradients.
    """gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs
    activation_offloading""",
    # What is logged, and where.
    """logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id debug skip_memory_metrics""",
    # How evaluation gathers its numbers: ours is exact for any batch, and does not use these.
    """eval_accumulation_steps eval_do_concat_batches eval_use_gather_object include_for_metrics batch_eval_metrics
    prediction_loss_only""",
    # When and how checkpoints are saved: a resumed training equals one that was not interrupted.
    """save_only_model save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint
    restore_callback_states_from_checkpoint resume_from_checkpoint""",
    # Uploads to the hub, which follow after training.
    """push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision""",
    # Where it runs: paths, devices and processes.
    """output_dir use_cpu local_rank ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
    ddp_backend ddp_timeout fsdp fsdp_config deepspeed""",
    # How rows reach the model: workers change the speed, not the order.
    """dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order dataset_num_proc""",
    # Not used: a stage decides by itself what it does.
    "do_train do_eval do_predict",
)
RUNTIME_KEYS = frozenset(" ".join(_RUNTIME_KEY_GROUPS).split())


def key_field(
    default: Any,
    help: str,
    *,
    role: KeyRole = "identity",
    choices: Sequence[str] = (),
    omitted_at_default: bool = False,
    may_be_empty: bool = False,
    **limits: Any,
) -> Any:
    """A dataclass field of a stage key, with its default, its line of help and its role (data_schemas.stage_keys).

    `limits` are those of its numbers, in a list or a mapping too: minimum, above, maximum, below (data_schemas.limits).
    `choices` are for text; a Literal type declares them too. `omitted_at_default` is for an identity key that is added
    to an existing stage whose output stays the same at the key's default. `may_be_empty` is for a list whose empty
    value has a meaning.
    """
    metadata = {
        "help": help,
        "role": role,
        "choices": list(choices),
        "omitted_at_default": omitted_at_default,
        "may_be_empty": may_be_empty,
        "limits": Limits(**limits) if limits else None,
    }
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def required_field(help: str, *, role: KeyRole = "identity") -> Any:
    """A dataclass field of a stage key without a default: the stage's class cannot be made without a value."""
    return field(metadata={"help": help, "role": role, "required": True})


@dataclass(frozen=True)
class Library:
    """What is known of the keys of TRL and transformers besides their dataclasses (engine.runtime.trl_limits)."""

    limits: Mapping[str, Limits]
    choices: Mapping[str, Sequence[str]]
    may_be_empty: Sequence[str]


def describe(classes: Sequence[type], defaults: Values, library: Library) -> dict[str, StageKey]:
    """Describes every key of the dataclasses, ours first; `defaults` are our defaults for TRL's keys."""
    keys: dict[str, StageKey] = {}
    for cls in classes:
        hints = typing.get_type_hints(cls)
        for item in _key_fields(cls):
            if item.name in keys:
                continue
            own = not _is_of_library(cls, item.name)
            kind, choices = _describe_type(hints[item.name])
            limits = item.metadata.get("limits")
            if not own:
                choices = choices or library.choices.get(item.name)
                limits = library.limits.get(item.name)
            role = item.metadata.get("role") or ("runtime" if item.name in RUNTIME_KEYS else "identity")
            if item.name == "model_name_or_path":
                role = "model"
            keys[item.name] = StageKey(
                type=kind,
                choices=list(item.metadata.get("choices") or choices or []) or None,
                limits=limits,
                may_be_empty=item.name in library.may_be_empty or bool(item.metadata.get("may_be_empty")),
                default=_plain(defaults.get(item.name, _default_of(item))),
                role=role,
                required=bool(item.metadata.get("required")),
                own=own,
                omitted_at_default=bool(item.metadata.get("omitted_at_default")),
                help=" ".join(str(item.metadata.get("help", "")).split()),
            )
    return keys


def _key_fields(cls: type) -> list[dataclasses.Field]:
    """The fields that are keys. A class that derives from one of TRL's names those that are none in LEFT_OUT."""
    left_out: Collection[str] = getattr(cls, "LEFT_OUT", ())
    return [item for item in dataclasses.fields(cls) if item.init and item.name not in left_out]


def _is_of_library(cls: type, name: str) -> bool:
    """Whether the field is declared by TRL or transformers: by the class itself, or by one that it derives from."""
    return any(
        base.__module__.split(".")[0] in ("trl", "transformers") and name in getattr(base, "__dataclass_fields__", {})
        for base in cls.__mro__
    )


def _default_of(item: dataclasses.Field) -> object:
    if item.default is not dataclasses.MISSING:
        return item.default
    return None if item.default_factory is dataclasses.MISSING else item.default_factory()


def _plain(value: object) -> object:
    return value.value if isinstance(value, enum.Enum) else value


def _describe_type(hint: object) -> tuple[str, list[str] | None]:
    """A type hint in the words of StageKey.type, and the values that it allows where it lists them."""
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


def fill(classes: Sequence[type], values: Values, defaults: Values) -> tuple[Any, ...]:
    """Instances of the dataclasses, in their order, from checked values. Raises ConfigError where one refuses them.

    A `bf16` that is still open is fp32 here (training_precision.py); TRL's own default is bf16 on every device.
    """
    values = {**defaults, **values}
    if values.get("bf16") is None:
        values["bf16"] = False
    instances = []
    for cls in classes:
        names = {item.name for item in _key_fields(cls)}
        try:
            instances.append(cls(**{name: value for name, value in values.items() if name in names}))
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error).strip().splitlines()[0]) from error
    return tuple(instances)
