"""A recipe with every section of every round typed once. The plan and everything after it only read it.

A section is combined from layers, of which a later one wins: the recipe's `seed`, its `defaults`, the section itself,
and what `by_round` has for the round. A variant is one more layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from data_schemas.errors import ConfigError, UserError
from data_schemas.key_rules import check_average
from data_schemas.stage_keys import Keys, Values, stages
from pipeline.recipe.names import OTHER_MEANING, Section, all_sections, runs_once, stage_of, traits_of
from pipeline.recipe.sections import Launch, TypedSection, TypedVariant
from pipeline.recipe.settings import Settings


@dataclass(frozen=True)
class Variant:
    """One model of a section: its typed keys, and which data it is trained on (see `Mix`)."""

    keys: Values
    human_share: float
    dpo_batches: int


@dataclass(frozen=True)
class ResolvedSection:
    """A section in one round."""

    keys: Values  # typed, paths absolute; a key that no layer sets is left out and has the stage's default
    launch: Launch
    variants: Sequence[Variant]  # one that equals the section if it lists none
    average: Values  # keys of average_models; empty for a single variant
    is_in_file: bool  # whether the recipe has this section
    is_in_round: bool  # whether `by_round` has keys of it for this round


class Recipe(Settings):
    """The settings of a recipe and all its sections."""

    # Round -> section. The sections that run once, before the rounds, are in round 0.
    sections: Mapping[int, Mapping[Section, ResolvedSection]]

    def section(self, name: Section, round_number: int = 0) -> ResolvedSection:
        """A section in a round. Sections that run once have no round number."""
        return self.sections[round_number][name]

    @property
    def has_preferences(self) -> bool:
        """Whether there are preference pairs before round 1: from a file, or from a function that generates data."""
        data = self.section("data").keys
        return bool(data.get("preferences") or data.get("make_data"))

    @property
    def evaluates_policies(self) -> bool:
        """Whether policies are evaluated and compared: by a judge that the recipe names, or one trained on its pairs.

        A recipe that says nothing of an evaluation or a judge has none.
        """
        return self.section("evaluate_policy").is_in_file or self.has_judge

    @property
    def evaluates_tasks(self) -> bool:
        """Whether policies are evaluated on standard benchmarks, which the recipe gives."""
        return self.section("evaluate_tasks").is_in_file

    @property
    def has_judge(self) -> bool:
        """Whether the recipe names a judge, or has a section or a share of the pairs to train one."""
        is_trained = self.section("judge").is_in_file or bool(self.section("data").keys.get("judge_share"))
        return self.names_judge or is_trained

    @property
    def names_judge(self) -> bool:
        """Whether the recipe names a judge: a function or a model. Otherwise a judge is trained on separate pairs."""
        keys = self.section("evaluate_policy").keys
        return any(keys.get(name) for name in ("judge_function", "judge_model", "judge_llm"))

    def names_annotator(self, round_number: int) -> bool:
        """Whether the recipe names the annotator of a round: a function, models, or people who judge every prompt.

        A named annotator also annotates round 1. Otherwise the reward model of the round before annotates.
        """
        keys = self.section("annotate", round_number).keys
        names = ("annotator_function", "annotator_models", "annotator_llm")
        judges = any(keys.get(name) for name in names) or bool(keys.get("people") and not keys.get("people_budget"))
        return "annotate" in self.stages_of_round(round_number) and judges

    def asks_people_second(self, round_number: int) -> bool:
        """Whether people compare the answers of a round on which a model that judges first is least sure."""
        keys = self.section("annotate", round_number).keys
        return bool(keys.get("people") and keys.get("people_budget"))

    def takes_reward_model(self, name: Section, round_number: int) -> bool:
        """Whether rejection sampling or rl of a round reads the reward model of the rounds: its section says nothing
        of another one, and not `reward_model: null`."""
        keys = self.section(name, round_number).keys
        return name in self.stages_of_round(round_number) and "reward_model" not in keys

    def named_reward_models(self, round_number: int) -> list[str]:
        """The reward models that the recipe names and a round optimises: of rejection sampling, rl and annotators."""
        models, stages_of_round = list[str](), self.stages_of_round(round_number)
        if "rejection_sampling" in stages_of_round:
            keys = self.section("rejection_sampling", round_number).keys
            models += [keys.get("reward_model") or "", *(keys.get("other_reward_models") or [])]
        if "rl" in stages_of_round:
            models.append(self.section("rl", round_number).keys.get("reward_model") or "")
        if "annotate" in stages_of_round:
            models += self.section("annotate", round_number).keys.get("annotator_models") or []
        return [model for model in models if model]


@dataclass(frozen=True)
class TypedSections:
    """The sections of a recipe's file, each typed by itself."""

    defaults: Values
    sections: Mapping[Section, TypedSection]
    in_file: frozenset[Section]  # those that the file writes; the others are empty
    by_round: Mapping[int, Mapping[Section, TypedSection]]

    def layers(self, name: Section, round_number: int) -> list[TypedSection]:
        """The layers of a section in a round, the one that wins last."""
        layers = [self.sections[name]] if name in self.sections else []
        if name == "judge":  # a judge is a reward model; it is a single one, whatever variants that section lists
            layers.insert(0, replace(self.sections["reward_model"], variants=None, average=None))
        if name in self.by_round.get(round_number, {}):
            layers.append(self.by_round[round_number][name])
        return layers


def resolve(settings: Settings, typed: TypedSections) -> Recipe:
    """The recipe of all rounds. Raises ConfigError where the average of a section does not fit its variants."""
    sections: dict[int, dict[Section, ResolvedSection]] = {
        number: {
            name: _resolve_section(settings, typed, name, number)
            for name in all_sections()
            if not number or not runs_once(name)
        }
        for number in range(settings.rounds + 1)
    }
    return Recipe(**{name: getattr(settings, name) for name in Settings.model_fields}, sections=sections)


def _resolve_section(settings: Settings, typed: TypedSections, name: Section, round_number: int) -> ResolvedSection:
    layers = typed.layers(name, round_number)
    known = stages()[stage_of(name)].keys
    others = OTHER_MEANING.get(stage_of(name), ())
    keys: Keys = {"seed": settings.seed} | {key: value for key, value in typed.defaults.items() if key not in others}
    for layer in layers:
        keys |= layer.keys
    keys = {key: value for key, value in keys.items() if key in known}
    listed = next((layer.variants for layer in reversed(layers) if layer.variants is not None), None)
    average = next((layer.average for layer in reversed(layers) if layer.average is not None), None)
    variants = tuple(
        Variant(
            MappingProxyType({**keys, **variant.keys}),
            human_share=variant.mix.get("human_share", settings.human_share),
            dpo_batches=variant.mix.get("dpo_batches", settings.dpo_batches),
        )
        for variant in listed or [TypedVariant({}, {})]
    )
    if average and _is_trained(settings, name, round_number):
        _check_average(average, None if listed is None else len(listed), where=f"{settings.path}: {name}.average")
    return ResolvedSection(
        keys=MappingProxyType(keys),
        launch=_launch(settings, name, layers),
        variants=variants,
        average=MappingProxyType(average if average and len(variants) > 1 else {}),
        is_in_file=name in typed.in_file,
        is_in_round=name in typed.by_round.get(round_number, {}),
    )


def _launch(settings: Settings, name: Section, layers: Sequence[TypedSection]) -> Launch:
    """The recipe's `launch`, overridden by the section's and by the round's.

    For a stage that generates, a profile of the recipe's `launch` that divides the model (ZeRO, FSDP2) is replaced by
    DDP; one of the section's own `launch` is not.
    """
    launch: Keys = settings.launch.model_dump(exclude_unset=True)
    if traits_of(name).one_process:
        launch = {"device": settings.launch.device}
    if traits_of(name).kind == "generates" and settings.launch.divides_states:
        launch["profile"] = "ddp"
    for layer in layers:
        launch |= layer.launch
    return Launch(**launch)


def _is_trained(settings: Settings, name: Section, round_number: int) -> bool:
    if settings.stages is not None:
        return name in settings.stages
    if round_number == 0:
        return name == "sft" and settings.first_sft
    if name == "reward_model" and not settings.refit_reward_model and round_number > 1:
        return False
    return name in settings.stages_of_round(round_number)


def _check_average(average: Values, num_variants: int | None, *, where: str) -> None:
    """Raises ConfigError where the keys of an average do not fit the number of variants (None: none are listed)."""
    if num_variants is None:
        section = where.rpartition(": ")[2].removesuffix(".average")
        raise ConfigError(f"{where}: there is nothing to average; list two models or more as {section}.variants")
    if num_variants == 1:
        return
    try:
        check_average(average, num_variants)
    except UserError as error:
        raise ConfigError(f"{where}: {error}") from None
