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

Every mistake is a ConfigError of one line. Paths are relative to the working directory, else to the recipe's folder.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_schemas.stage_keys import ConfigError, StageKey, check_keys, nearest, read_yaml, stages

Section = Literal["data", "pretrain", "prepare_base", "sft", "reward_model", "judge", "annotate", "rejection_sampling",
                  "dpo", "evaluate_policy"]  # fmt: skip
SECTIONS: tuple[Section, ...] = get_args(Section)
STAGE_OF: dict[str, str] = {"data": "prepare_data", "judge": "reward_model"}  # the others bear their stage's name
Keys = dict[str, Any]
T = TypeVar("T", bound=BaseModel)
ONCE: tuple[Section, ...] = ("data", "pretrain", "prepare_base", "judge")  # before the rounds
ALONE: tuple[Section, ...] = ("data", "prepare_base")  # always one process
GENERATING: tuple[Section, ...] = ("annotate", "rejection_sampling", "evaluate_policy")  # outside ZeRO, where it hangs


class Launch(BaseModel):
    """How stages are started. Never part of what makes a step the same step."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    profile: Literal["single", "ddp", "zero1", "zero2", "zero3", "zero3_offload"] = "single"
    num_processes: int = Field(default=1, ge=1)
    device: Literal["gpu", "cpu"] = "gpu"
    main_process_port: int | None = None  # a free one is taken where none is given


class Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")  # of the run, and of its folder
    rounds: int = Field(default=2, ge=0)
    base_model: str | None = None  # a folder or a hub name; without it the base is pretrained
    output_dir: str = "runs"  # relative to the working directory
    seed: int = 0
    launch: Launch = Launch()

    human_share: float = Field(default=1.0, ge=0.0, le=1.0)  # of the human instructions, mixed into SFT from round 1 on
    dpo_batches: int = Field(default=1, ge=1)  # how many of the most recent batches DPO trains on
    sft_from: Literal["base", "best"] = "base"  # the model that SFT starts from, from round 1 on
    annotate_policies: Literal["best", "best_two"] = "best_two"  # whose answers are compared

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

    def _layers(self, section: Section, round_number: int | None) -> Iterator[tuple[str, Keys]]:
        for name in ("reward_model", section) if section == "judge" else (section,):
            yield f"{self.path}: {name}", getattr(self, name) or {}
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
    return located


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
    """The typed keys of a section, its `launch` aside. One path stands for a list of one."""
    stage = STAGE_OF.get(section, section)
    known = stages()[stage].keys
    keys = {name: value for name, value in values.items() if name != "launch"}
    for name, value in keys.items():
        if name in known and known[name].role == "rows" and isinstance(value, str):
            keys[name] = [value]
    return check_keys(stage, keys, where=where)


def _located(value: Any, key: StageKey, folder: Path) -> Any:
    if isinstance(value, list):
        return [_located(item, key, folder) for item in value]
    if isinstance(value, str) and value.endswith(".jinja"):
        path = Path(locate(value, folder))
        return path.read_text(encoding="utf-8") if path.is_file() else value  # its text is what makes a step the same
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
        raise ConfigError(f"{where}: {place}={first['input']!r}: {first['msg']}{hint}") from None


def _apply(override: str, content: dict[str, Any]) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {override}: expected key=value, as in --set dpo.beta=0.2")
    try:
        value = yaml.safe_load(text)
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
