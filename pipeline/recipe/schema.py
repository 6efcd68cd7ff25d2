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

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, field_validator

from data_schemas.errors import ConfigError, UserError
from data_schemas.key_rules import check_average
from data_schemas.stage_keys import load_yaml, read_yaml, stages
from pipeline.recipe.names import (
    ALONE,
    GENERATING,
    MIX_KEYS,
    ONCE,
    ROUND_STAGES,
    SECTIONS,
    STAGE_OF,
    Keys,
    RoundStage,
    Section,
)
from pipeline.recipe.sections import Launch, Mix, check_section, locate, parse, typed_defaults, typed_section


class Recipe(Mix, BaseModel):
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")  # of the run, and of its folder
    rounds: int = Field(default=2, ge=0)
    base_model: str | None = None  # a folder or a hub name; without it the base is pretrained
    output_dir: str = "runs"  # relative to the working directory
    seed: int = 0
    launch: Launch = Launch()

    first_sft: bool = True  # round 0 trains the first policy; false: it is base_model, a chat model already
    round_stages: list[RoundStage] = list(ROUND_STAGES)  # what a round has
    refit_reward_model: bool = True  # each round, on all batches so far; false: round 1's serves all
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
        except UserError as error:
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
            resolved[section] = typed_section(section, values, folder, where=f"{recipe.path}: {section}")
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
            section: typed_section(section, values, folder, where=f"{recipe.path}: by_round.{number}.{section}")
            for section, values in sections.items()
        }
        for number, sections in recipe.by_round.items()
    }
    resolved["defaults"] = typed_defaults(recipe.defaults, folder, where=f"{recipe.path}: defaults")
    return recipe.model_copy(update=resolved)


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
