"""What a recipe calls the stages. All else that the pipeline knows of a stage is in its traits (stage_keys.json)."""

from data_schemas.stage_keys import StageTraits, stages

Section = str  # "dpo"; the section of a recipe that configures a stage
# Others are named after their stage.
STAGE_OF: dict[Section, str] = {"data": "prepare_data", "judge": "reward_model", "curate_sft": "curate"}
SECOND_OF_A_STAGE = ("judge", "curate_sft")  # sections of a stage that has another section already

# Keys that mean something else in a stage than in all others, so `defaults` does not set them there: TRL's
# pad_to_multiple_of pads rows, that of prepare_base the vocabulary.
OTHER_MEANING = {"prepare_base": ("pad_to_multiple_of",)}


def stage_of(section: Section) -> str:
    """The stage that a section configures."""
    return STAGE_OF.get(section, section)


def traits_of(section: Section) -> StageTraits:
    return stages()[stage_of(section)].traits


def all_sections() -> list[Section]:
    """Every section that a recipe may have, in the order of the loop.

    `judge` is a second reward model, and `curate_sft` the curation of what SFT is trained on in a round.
    """
    section_of = {stage: section for section, stage in STAGE_OF.items() if section not in SECOND_OF_A_STAGE}
    sections = [section_of.get(name, name) for name, stage in stages().items() if stage.traits.runs != "by_plan"]
    return [*sections, *SECOND_OF_A_STAGE]


def runs_once(section: Section) -> bool:
    """Whether the section runs once, before the rounds."""
    return section == "judge" or (traits_of(section).runs == "once" and section != "curate_sft")


def may_have_variants(section: Section) -> bool:
    return section != "judge" and traits_of(section).has_variants


def stages_of_a_round() -> list[str]:
    """The stages that a round may have, in the order they run; evaluate_policy follows them."""
    return [name for name, stage in stages().items() if stage.traits.runs == "in_round"]


def stages_of_one_pass() -> list[str]:
    """The stages that a run without rounds may have, in the order they run."""
    return [
        name
        for name, stage in stages().items()
        if (stage.traits.kind == "trains" and stage.traits.runs != "by_plan") or stage.traits.runs == "after_round"
    ]


def stages_of_every_round() -> list[str]:
    """The stages that a round has where the recipe does not list them."""
    return [name for name in stages_of_a_round() if stages()[name].traits.in_every_round]
