"""The sections of a recipe: their names, how their stages are launched, and their keys with types and absolute paths.

What a section says is known from itself alone; pipeline/recipe.py puts the sections together.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from data_schemas.errors import ConfigError
from data_schemas.stage_keys import StageKey, check_keys, nearest, stages
from pipeline.recipe.names import ALONE, AVERAGED, MIX_KEYS, SECTIONS, STAGE_OF, Keys, Section

T = TypeVar("T", bound=BaseModel)
BESIDE_KEYS = ("launch", "variants", "average")  # of a section, beside its stage's
AVERAGE_KEYS = ("weights", "method", "fraction")  # of average_models
# What models must have in common to be averaged, and to be measured on rows that none of them trained on.
COMMON_TO_VARIANTS = ("validation_share", "model_revision", "eos_token", "pad_token", "reference_model")


class Launch(BaseModel):
    """How stages are started. Never part of what makes a step the same step."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    profile: Literal["single", "ddp", "zero1", "zero2", "zero3", "zero3_offload"] = "single"
    num_processes: int = Field(default=1, ge=1)  # over all machines
    device: Literal["gpu", "cpu"] = "gpu"
    num_machines: int = Field(default=1, ge=1)
    wrapper: str | None = None  # runs a command once on every machine: "srun --nodes=8 --ntasks-per-node=1"
    main_process_ip: str | None = None  # of machine 0, as the others reach it
    main_process_port: int | None = None  # a free one is taken where none is given
    devices: list[int] | None = None  # the GPUs, on the CPU the cores, that a step may take; null: all there are
    grace_seconds: float = Field(default=60.0, ge=0.0)  # that a stage has after SIGTERM to save a checkpoint
    warm: bool = True  # steps of one process on the CPU share one Python's imports; false: each starts from nothing

    @field_validator("wrapper")
    @classmethod
    def _can_be_split(cls, given: str | None) -> str | None:
        shlex.split(given or "")  # ValueError for an open quote
        return given


class Mix(BaseModel):
    """What data SFT and DPO see: said by the recipe, or by a variant for itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    human_share: float = Field(default=1.0, ge=0.0, le=1.0)  # of the human instructions, mixed into SFT from round 1 on
    dpo_batches: int = Field(default=1, ge=1)  # how many of the most recent batches DPO trains on


def typed_section(section: Section, values: Keys, folder: Path, *, where: str) -> Keys:
    typed = check_section(section, values, where=where)
    known = stages()[STAGE_OF.get(section, section)].keys
    located = _all_located(typed, known, folder)
    if "launch" in values:
        if section in ALONE:
            raise ConfigError(f"{where}.launch: this stage is always one process")
        if not isinstance(values["launch"], dict):
            raise ConfigError(f"{where}.launch={values['launch']!r}: expected a mapping, as in {{num_processes: 2}}")
        parse(Launch, values["launch"], where=f"{where}.launch")
        located["launch"] = values["launch"]
    return located | (_typed_variants(section, values, folder, where=where) if section in AVERAGED else {})


def _typed_variants(section: Section, values: Keys, folder: Path, *, where: str) -> Keys:
    """The `variants` and `average` of a section, where it has them."""
    typed: Keys = {}
    if "variants" in values:
        listed = values["variants"]
        if not (isinstance(listed, list) and listed and all(isinstance(variant, dict) for variant in listed)):
            raise ConfigError(
                f"{where}.variants={listed!r}: expected a list of mappings, as in [{{seed: 1}}, {{seed: 2}}]"
            )
        typed["variants"] = [
            _typed_variant(section, variant, folder, where=f"{where}.variants.{place}")
            for place, variant in enumerate(listed, 1)
        ]
    if "average" in values:
        average = values["average"]
        if not isinstance(average, dict):
            raise ConfigError(f"{where}.average={average!r}: expected a mapping, as in {{weights: greedy}}")
        for name in average:
            if name not in AVERAGE_KEYS:
                raise ConfigError(f"{where}.average: unknown key {name!r}{nearest(str(name), AVERAGE_KEYS)}")
        typed["average"] = check_keys("average_models", average, where=f"{where}.average")
    return typed


def _typed_variant(section: Section, values: Keys, folder: Path, *, where: str) -> Keys:
    for name in COMMON_TO_VARIANTS:
        if name in values:
            raise ConfigError(f"{where}.{name}: all variants must have the same; say it in the section {section}")
    mix = {name: value for name, value in values.items() if name == MIX_KEYS.get(section)}
    parse(Mix, mix, where=where)
    keys = {name: value for name, value in values.items() if name not in mix}
    if wrong := [name for name in keys if name in BESIDE_KEYS]:
        raise ConfigError(
            f"{where}.{wrong[0]}: a variant holds keys of its stage alone; say it in the section {section}"
        )
    return mix | typed_section(section, keys, folder, where=where)


def typed_defaults(values: Keys, folder: Path, *, where: str) -> Keys:
    everywhere = {name: key for stage in stages().values() for name, key in stage.keys.items()}
    for name in values:
        if name not in everywhere:
            raise ConfigError(f"{where}: unknown key {name!r}: no stage has it{nearest(str(name), list(everywhere))}")
    typed = {}
    for stage, description in stages().items():
        typed |= check_keys(stage, {k: v for k, v in values.items() if k in description.keys}, where=where)
    return _all_located(typed, everywhere, folder)


def check_section(section: Section, values: Mapping[str, Any], *, where: str) -> Keys:
    """The typed keys of a section's stage, those beside them aside. One path stands for a list of one."""
    stage = STAGE_OF.get(section, section)
    known = stages()[stage].keys
    beside = BESIDE_KEYS if section in AVERAGED else ("launch",)
    keys = {name: value for name, value in values.items() if name not in beside}
    for name, value in keys.items():
        if (
            name in known
            and known[name].role in ("rows", "model")
            and isinstance(value, str)
            and "list[" in known[name].type
        ):
            keys[name] = [value]
    return check_keys(stage, keys, where=where)


def _all_located(values: Keys, known: Mapping[str, StageKey], folder: Path) -> Keys:
    located = {name: _located(value, known[name], folder) for name, value in values.items()}
    python = (values.get("vllm") or {}).get("python")
    return located | ({"vllm": values["vllm"] | {"python": locate(python, folder)}} if isinstance(python, str) else {})


def _located(value: Any, key: StageKey, folder: Path) -> Any:
    if isinstance(value, list):
        return [_located(item, key, folder) for item in value]
    if isinstance(value, str) and value.endswith(".jinja"):
        path = Path(locate(value, folder))
        try:
            return path.read_text(encoding="utf-8") if path.is_file() else value  # its text makes a step the same
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is not UTF-8 text") from None
    return locate(value, folder) if key.role in ("rows", "model") and isinstance(value, str) else value


def locate(value: str, folder: Path) -> str:
    """The absolute path that `value` means: from the working directory, else beside the recipe; else `value`."""
    for base in (Path.cwd(), folder):
        path = base / Path(value).expanduser()
        if path.exists():
            return str(path.absolute())
    return value


def parse(model: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """`model` made from `values`; ConfigError naming the first wrong key, and the nearest valid one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "[key]")
        name = str(first["loc"][-1])
        if first["type"] == "extra_forbidden":
            valid = [field for field in (Launch if "launch" in first["loc"] else model).model_fields if field != "path"]
            raise ConfigError(f"{where}: unknown key {place!r}{nearest(name, valid)}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{where}: {place} is missing") from None
        hint = nearest(str(first["input"]), SECTIONS) if first["loc"][-1] == "[key]" else ""
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {place}={first['input']!r}: {message}{hint}") from None
