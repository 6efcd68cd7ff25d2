"""A recipe: one YAML file that says a whole run. It holds the stages' own keys, one section a stage.

    name: demo
    rounds: 2
    base_model: models/SmolLM2-135M     # or a `pretrain:` section
    launch: {profile: zero3, num_processes: 8}
    data: {preferences: pairs.jsonl, chosen_as_instructions: 0.3}
    defaults: {max_length: 512}         # for every stage that knows the key
    sft: {learning_rate: 1e-5}
    dpo: {beta: 0.1, launch: {profile: zero2}}
    by_round: {0: {sft: {num_train_epochs: 3}}}

The sections sft, reward_model and dpo may list variants, whose average is then the section's model:

    sft: {variants: [{learning_rate: 1e-5}, {human_share: 0.5}], average: {weights: greedy}}

Every mistake is a ConfigError of one line. Paths are relative to the working directory, else to the recipe's folder.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from data_schemas.key_rules import check_average
from data_schemas.stage_keys import ConfigError, StageKey, check_keys, load_yaml, nearest, read_yaml, stages

Section = Literal["data", "pretrain", "prepare_base", "sft", "reward_model", "judge", "annotate", "rejection_sampling",
                  "dpo", "evaluate_policy"]  # fmt: skip
SECTIONS: tuple[Section, ...] = get_args(Section)
RoundStage = Literal["annotate", "reward_model", "rejection_sampling", "sft", "dpo"]
ROUND_STAGES: tuple[RoundStage, ...] = get_args(RoundStage)  # in the order they run; evaluate_policy follows
STAGE_OF: dict[str, str] = {"data": "prepare_data", "judge": "reward_model"}  # the others bear their stage's name
Keys = dict[str, Any]
T = TypeVar("T", bound=BaseModel)
ONCE: tuple[Section, ...] = ("data", "pretrain", "prepare_base", "judge")  # before the rounds
AVERAGED: tuple[Section, ...] = ("sft", "reward_model", "dpo")  # may list variants
MIX_KEYS: dict[str, str] = {"sft": "human_share", "dpo": "dpo_batches"}  # the recipe's own that a variant may set
BESIDE_KEYS = ("launch", "variants", "average")  # of a section, beside its stage's
AVERAGE_KEYS = ("weights", "method", "fraction")  # of average_models
# What models must have in common to be averaged, and to be measured on rows that none of them trained on.
COMMON_TO_VARIANTS = ("validation_share", "model_revision", "eos_token", "pad_token", "reference_model")
ALONE: tuple[Section, ...] = ("data", "prepare_base")  # always one process
GENERATING: tuple[Section, ...] = ("annotate", "rejection_sampling", "evaluate_policy")  # outside ZeRO, where it hangs


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


class Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")  # of the run, and of its folder
    rounds: int = Field(default=2, ge=0)
    base_model: str | None = None  # a folder or a hub name; without it the base is pretrained
    output_dir: str = "runs"  # relative to the working directory
    seed: int = 0
    launch: Launch = Launch()

    first_sft: bool = True  # round 0 trains the first policy; false: it is base_model, a chat model already
    round_stages: list[RoundStage] = list(ROUND_STAGES)  # what a round has
    refit_reward_model: bool = True  # each round, on all batches so far; false: round 1's serves all
    human_share: float = Field(default=1.0, ge=0.0, le=1.0)  # of the human instructions, mixed into SFT from round 1 on
    dpo_batches: int = Field(default=1, ge=1)  # how many of the most recent batches DPO trains on
    dpo_reference: Literal["start", "first"] = "start"  # DPO's reference: the model it starts from, or the first policy
    sft_from: Literal["base", "best"] = "base"  # the model that SFT starts from, from round 1 on
    annotate_policies: Literal["best", "best_two"] = "best_two"  # whose answers are compared
    sampling_policies: Literal["best", "best_two"] = "best"  # whose answers rejection sampling takes

    data: Keys = {}
    pretrain: Keys | None = None
    prepare_base: Keys = {}
    sft: Keys = {}
    reward_model: Keys = {}
    judge: Keys = {}  # the independent judge: reward_model's keys, over those of the section reward_model
    annotate: Keys = {}
    rejection_sampling: Keys = {}
    dpo: Keys = {}
    evaluate_policy: Keys = {}
    defaults: Keys = {}
    by_round: dict[int, dict[Section, Keys]] = {}

    path: Path = Field(exclude=True)  # where it was read from; not a key

    @field_validator("round_stages")
    @classmethod
    def _in_their_order(cls, given: list[RoundStage]) -> list[RoundStage]:
        ordered = [stage for stage in ROUND_STAGES if stage in given]
        if given != ordered:
            raise ValueError(f"the order is fixed; try [{', '.join(ordered)}]")
        return given

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output_dir).absolute() / self.name

    def section(self, section: Section, round_number: int | None = None) -> Keys:
        """The typed keys of one section in one round: defaults, then the section, then the round's own."""
        known = stages()[STAGE_OF.get(section, section)].keys
        keys = {"seed": self.seed} | {name: value for name, value in self.defaults.items() if name in known}
        for where, values in self._layers(section, round_number):
            keys |= check_section(section, values, where=where)
        return {name: value for name, value in keys.items() if name in known}

    def launch_of(self, section: Section, round_number: int | None = None) -> Launch:
        """The recipe's `launch`, overridden by the section's and by the round's.

        Stages that generate take the recipe's ZeRO profiles as DDP; a section's own `launch` is taken at its word.
        """
        launch: Keys = self.launch.model_dump(exclude_unset=True)
        if section in ALONE:
            launch = {"device": self.launch.device}
        if section in GENERATING and self.launch.profile.startswith("zero"):
            launch["profile"] = "ddp"
        for _, values in self._layers(section, round_number):
            launch |= values.get("launch", {})
        return Launch(**launch)

    def variants(self, section: Section, round_number: int) -> list["Recipe"]:
        """A recipe for each variant of a section, with its keys on top; this one where the section lists none."""
        listed: list[Keys] = self._last(section, round_number, "variants") or [{}]
        made = []
        for variant in listed:
            mix = {name: value for name, value in variant.items() if name == MIX_KEYS.get(section)}
            of_round = self.by_round.get(round_number, {})
            keys = of_round.get(section, {}) | {name: value for name, value in variant.items() if name not in mix}
            rounds = self.by_round | {round_number: of_round | {section: keys}}
            made.append(self.model_copy(update=mix | {"by_round": rounds}))
        return made

    def average(self, section: Section, round_number: int) -> Keys:
        """The keys of average_models that the section sets. Raises ConfigError where its variants don't fit them."""
        average: Keys = self._last(section, round_number, "average") or {}
        count, where = len(self.variants(section, round_number)), f"{self.path}: {section}.average"
        if average and self._last(section, round_number, "variants") is None:
            raise ConfigError(f"{where}: there is nothing to average; list two models or more as {section}.variants")
        if count == 1:
            return {}
        try:
            check_average(average, count)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        return average

    def _last(self, section: Section, round_number: int, name: str) -> Any:
        return next((v[name] for _, v in reversed(list(self._layers(section, round_number))) if name in v), None)

    def _layers(self, section: Section, round_number: int | None) -> Iterator[tuple[str, Keys]]:
        for name in ("reward_model", section) if section == "judge" else (section,):
            values = getattr(self, name) or {}
            if name != section:  # the judge is one model, whatever variants of the reward model there are
                values = {key: value for key, value in values.items() if key not in ("variants", "average")}
            yield f"{self.path}: {name}", values
        if round_number is not None:
            values = self.by_round.get(round_number, {}).get(section, {})
            yield f"{self.path}: by_round.{round_number}.{section}", values


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `key=value` overrides (dotted keys, YAML values), every key known and typed."""
    content = read_yaml(path)
    for override in overrides:
        _apply(override, content)
    if "path" in content:
        raise ConfigError(f"{path}: unknown key 'path'")
    recipe = parse(Recipe, {**content, "path": path}, where=str(path))
    return _resolve(recipe)


def _resolve(recipe: Recipe) -> Recipe:
    """Checks all sections' keys and types, and makes their paths absolute."""
    folder = recipe.path.absolute().parent
    resolved: dict[str, Any] = {"base_model": recipe.base_model and locate(recipe.base_model, folder)}
    for section in SECTIONS:
        if (values := getattr(recipe, section)) is not None:
            resolved[section] = _typed(section, values, folder, where=f"{recipe.path}: {section}")
    for number, sections in recipe.by_round.items():
        if not 0 <= number <= recipe.rounds:
            raise ConfigError(f"{recipe.path}: by_round.{number}: the run has rounds 0 to {recipe.rounds}")
        for section in sections:
            if section in ONCE:
                raise ConfigError(f"{recipe.path}: by_round.{number}.{section}: {section} runs once, before the rounds")
            if section == "evaluate_policy":
                raise ConfigError(f"{recipe.path}: by_round.{number}.{section}: all policies are judged the same way")
    resolved["by_round"] = {
        number: {
            section: _typed(section, values, folder, where=f"{recipe.path}: by_round.{number}.{section}")
            for section, values in sections.items()
        }
        for number, sections in recipe.by_round.items()
    }
    resolved["defaults"] = _typed_defaults(recipe.defaults, folder, where=f"{recipe.path}: defaults")
    return recipe.model_copy(update=resolved)


def _typed(section: Section, values: Keys, folder: Path, *, where: str) -> Keys:
    typed = check_section(section, values, where=where)
    known = stages()[STAGE_OF.get(section, section)].keys
    located = {name: _located(value, known[name], folder) for name, value in typed.items()}
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
    parse(Recipe, {"name": "variant", "path": Path(), **mix}, where=where)
    keys = {name: value for name, value in values.items() if name not in mix}
    if wrong := [name for name in keys if name in BESIDE_KEYS]:
        raise ConfigError(
            f"{where}.{wrong[0]}: a variant holds keys of its stage alone; say it in the section {section}"
        )
    return mix | _typed(section, keys, folder, where=where)


def _typed_defaults(values: Keys, folder: Path, *, where: str) -> Keys:
    everywhere = {name: key for stage in stages().values() for name, key in stage.keys.items()}
    for name in values:
        if name not in everywhere:
            raise ConfigError(f"{where}: unknown key {name!r}: no stage has it{nearest(str(name), list(everywhere))}")
    typed = {}
    for stage, description in stages().items():
        typed |= check_keys(stage, {k: v for k, v in values.items() if k in description.keys}, where=where)
    return {name: _located(value, everywhere[name], folder) for name, value in typed.items()}


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


def _apply(override: str, content: dict[str, Any]) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {override}: expected key=value, as in --set dpo.beta=0.2")
    try:
        value = load_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not YAML; put it in quotes") from None
    place: dict[Any, Any] = content
    *parents, last = (int(part) if part.isdigit() else part for part in name.split("."))
    for parent in parents:
        place[parent] = {} if place.get(parent) is None else place[parent]
        place = place[parent]
        if not isinstance(place, dict):
            raise ConfigError(f"--set {override}: {parent} is not a section")
    place[last] = value
