"""The sections of a recipe: how their stages are launched, and their keys with types and absolute paths.

Each section is typed here by itself. resolved.py combines them for each round.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from data_schemas.errors import ConfigError
from data_schemas.field_errors import problem_of_field
from data_schemas.files import check_regular
from data_schemas.stage_keys import Keys, StageKey, Values, check_keys, elsewhere, stages
from data_schemas.text import nearest, shown
from data_schemas.yaml_files import unquoted_hint
from pipeline.recipe.locations import locate, locate_rows
from pipeline.recipe.names import OTHER_MEANING, Section, all_sections, may_have_variants, stage_of, traits_of

T = TypeVar("T", bound=BaseModel)
SECTION_KEYS = ("launch", "variants", "average")  # keys of a section that are not keys of its stage
AVERAGE_KEYS = ("weights", "method", "fraction")  # keys of average_models that a section's `average` may set
# Models must have these in common to be averaged, and to be measured on rows that none of them was trained on.
COMMON_TO_VARIANTS = ("validation_share", "model_revision", "eos_token", "pad_token", "reference_model")


class Launch(BaseModel):
    """How stages are started. Never part of a step's fingerprint."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    profile: Literal["single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"] = Field(
        default="single",
        description="How a step is distributed over processes; a ZeRO profile uses DeepSpeed, `fsdp2` torch itself.",
    )
    num_processes: int = Field(default=1, ge=1, le=100_000, description="Processes over all machines.")
    device: Literal["gpu", "cpu"] = Field(default="gpu", description="The device that stages run on.")
    num_machines: int = Field(default=1, ge=1, le=100_000, description="Machines that a step runs on.")
    wrapper: str | None = Field(
        default=None,
        description="A command that runs another once on every machine, as in srun --nodes=8 --ntasks-per-node=1.",
    )
    main_process_ip: str | None = Field(default=None, description="Address of machine 0, as the others reach it.")
    main_process_port: int | None = Field(
        default=None, ge=1, le=65_535, description="Port of machine 0; null: a free one."
    )
    devices: list[int] | None = Field(
        default=None, description="GPUs, or on the CPU cores, that a step may use; null: all."
    )
    gpu: str | None = Field(
        default=None, description="Name of the GPU, as in h100, for `plan --cost`; null: the one of this machine."
    )
    price_per_gpu_hour: float | None = Field(
        default=None, ge=0.0, le=1e6, description="Price of an hour of one GPU, in any currency, for `plan --cost`."
    )
    grace_seconds: float = Field(
        default=60.0, ge=0.0, le=1e6, description="Time that a stage has after SIGTERM to save a checkpoint."
    )
    warm: bool = Field(
        default=True, description="Steps of one process on the CPU are forked from one Python that has imported torch."
    )

    @field_validator("wrapper")
    @classmethod
    def _can_be_split(cls, given: str | None) -> str | None:
        shlex.split(given or "")  # ValueError for an open quote
        return given

    @property
    def divides_states(self) -> bool:
        """Whether the processes divide the model's states among them, all or some of them (ZeRO, FSDP2)."""
        return self.profile.startswith(("zero", "fsdp"))

    @property
    def divides_weights(self) -> bool:
        """Whether they divide the weights too (ZeRO-3, FSDP2)."""
        return self.profile.startswith(("zero3", "fsdp"))


class Mix(BaseModel):
    """The data that SFT and DPO are trained on. The recipe sets it, and a variant may override it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    human_share: float = Field(
        default=1.0, ge=0.0, le=1.0, description="Share of the human instructions in SFT, from round 1 on."
    )
    dpo_batches: int = Field(
        default=1, ge=1, le=1000, description="Number of most recent batches that DPO is trained on."
    )


@dataclass(frozen=True)
class TypedVariant:
    """An entry of a section's `variants`."""

    keys: Values
    mix: Values  # the fields of Mix that the variant overrides


@dataclass(frozen=True)
class TypedSection:
    """A section as one place of the recipe sets it: typed, paths absolute, without what the place does not set."""

    keys: Values
    launch: Values  # fields of Launch
    variants: Sequence[TypedVariant] | None = None
    average: Values | None = None  # keys of average_models


def type_section(section: Section, values: Values, folder: Path, *, where: str) -> TypedSection:
    """Checks and types a section. Paths are looked up in the working directory, then in `folder`.

    Raises ConfigError, which begins with `where`, for an unknown key and for a value of the wrong type.
    """
    beside = SECTION_KEYS if may_have_variants(section) else ("launch",)
    stage_values = {name: value for name, value in values.items() if name not in beside}
    keys = _type_stage_keys(section, stage_values, folder, where=where)
    launch = values.get("launch", {})
    if "launch" in values:
        if traits_of(section).one_process:
            raise ConfigError(f"{where}.launch: this stage is always one process")
        if not isinstance(launch, dict):
            raise ConfigError(f"{where}.launch={shown(launch)}: expected a mapping, as in {{num_processes: 2}}")
        parse(Launch, launch, where=f"{where}.launch")
    has_variants, has_average = (name in values and may_have_variants(section) for name in ("variants", "average"))
    return TypedSection(
        keys,
        launch,
        _type_variants(section, values["variants"], folder, where=where) if has_variants else None,
        _type_average(values["average"], where=where) if has_average else None,
    )


def _type_variants(section: Section, listed: object, folder: Path, *, where: str) -> list[TypedVariant]:
    if not (isinstance(listed, list) and listed and all(isinstance(variant, dict) for variant in listed)):
        raise ConfigError(
            f"{where}.variants={shown(listed)}: expected a list of mappings, as in [{{seed: 1}}, {{seed: 2}}]"
        )
    return [
        _type_variant(section, variant, folder, where=f"{where}.variants.{place}")
        for place, variant in enumerate(listed, 1)
    ]


def _type_variant(section: Section, values: Keys, folder: Path, *, where: str) -> TypedVariant:
    for name in COMMON_TO_VARIANTS:
        if name in values:
            raise ConfigError(f"{where}.{name}: all variants must have the same; set it in the section {section}")
    mix = {name: value for name, value in values.items() if name == traits_of(section).variant_key}
    parse(Mix, mix, where=where)
    keys = {name: value for name, value in values.items() if name not in mix}
    if wrong := [name for name in keys if name in SECTION_KEYS]:
        raise ConfigError(
            f"{where}.{wrong[0]}: a variant holds only keys of its stage; set it in the section {section}"
        )
    return TypedVariant(_type_stage_keys(section, keys, folder, where=where), mix)


def _type_average(average: object, *, where: str) -> Keys:
    if not isinstance(average, dict):
        raise ConfigError(f"{where}.average={shown(average)}: expected a mapping, as in {{weights: greedy}}")
    for name in average:
        if name not in AVERAGE_KEYS:
            raise ConfigError(f"{where}.average: unknown key {shown(name)}{nearest(str(name), AVERAGE_KEYS)}")
    return check_keys("average_models", average, where=f"{where}.average")


def type_defaults(values: Values, folder: Path, *, where: str) -> Keys:
    """Checks and types the keys of `defaults`. Raises ConfigError for a key that no stage has, or of a wrong type."""
    keys_of_stages = {name: key for stage in stages().values() for name, key in stage.keys.items()}
    for name in values:
        if name not in keys_of_stages:
            hint = unquoted_hint(name) or nearest(str(name), list(keys_of_stages))
            raise ConfigError(f"{where}: unknown key {shown(name)}: no stage has it{hint}")
    typed: Keys = {}
    for stage, description in stages().items():
        known = description.keys.keys() - set(OTHER_MEANING.get(stage, ()))
        typed |= check_keys(stage, {k: v for k, v in values.items() if k in known}, where=where)
    return _with_absolute_paths(typed, keys_of_stages, folder, where=where)


def _type_stage_keys(section: Section, values: Values, folder: Path, *, where: str) -> Keys:
    """The keys of a section's stage, typed. A single path, or mapping with one, is accepted for a list of them."""
    stage = stage_of(section)
    known = stages()[stage].keys
    keys = dict(values)
    for name, value in keys.items():
        single = {"rows": str | dict, "model": str, "function": str}.get(known[name].role) if name in known else None
        if single and isinstance(value, single) and known[name].is_list:
            keys[name] = [value]
    return _with_absolute_paths(check_keys(stage, keys, where=where), known, folder, where=where)


def _with_absolute_paths(values: Keys, known: Mapping[str, StageKey], folder: Path, *, where: str) -> Keys:
    located = {
        name: _locate_value(value, known[name], folder, where=f"{where}: {name}") for name, value in values.items()
    }
    python = (values.get("vllm") or {}).get("python")
    if not isinstance(python, str):
        return located
    return located | {"vllm": values["vllm"] | {"python": locate(python, folder, where=f"{where}: vllm.python")}}


def _locate_value(value: object, key: StageKey, folder: Path, *, where: str) -> object:
    """The value with absolute paths; the path of a chat template is replaced by the template's text."""
    if isinstance(value, list) and key.role == "rows":
        return [located for item in value for located in locate_rows(item, folder, where=where)]
    if isinstance(value, list):
        return [_locate_value(item, key, folder, where=where) for item in value]
    if isinstance(value, str) and value.endswith(".jinja"):
        path = Path(locate(value, folder, where=where))
        check_regular(path)
        try:
            return path.read_text(encoding="utf-8") if path.is_file() else value  # the fingerprint covers the text
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is not UTF-8 text") from None
    return locate(value, folder, where=where) if key.role in ("rows", "model") and isinstance(value, str) else value


def parse(model: type[T], values: Mapping[str, object], *, where: str) -> T:
    """`model` with `values`. Raises ConfigError that names the first wrong key, and the nearest valid one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # A misspelt key leaves another one missing: the misspelling comes first.
        first = next((one for one in error.errors() if one["type"] == "extra_forbidden"), error.errors()[0])
        place = ".".join(str(part) for part in first["loc"] if part != "[key]")
        name = str(first["loc"][-1])
        if first["type"] == "extra_forbidden":
            valid = [field for field in (Launch if "launch" in first["loc"] else model).model_fields if field != "path"]
            raise ConfigError(f"{where}: unknown key {place!r}{nearest(name, valid) or elsewhere(name)}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{where}: {place} is missing") from None
        hint = nearest(str(first["input"]), all_sections()) if first["loc"][-1] == "[key]" else ""
        may_be_text = not first["type"].startswith(("int", "float", "bool", "list", "dict"))
        message = problem_of_field(first) + ((unquoted_hint(first["input"]) if may_be_text else "") or hint)
        raise ConfigError(f"{where}: {place}={shown(first['input'])}: {message}") from None
