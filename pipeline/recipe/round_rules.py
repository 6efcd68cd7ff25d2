"""What the stages of a round need from each other and from the recipe."""

from data_schemas.errors import ConfigError
from pipeline.recipe.resolved import Recipe


def check_rounds(recipe: Recipe) -> None:
    """Raises ConfigError where a stage of a round lacks its input, or no other stage uses its output."""
    for number in range(1, recipe.rounds + 1):
        _check_inputs(recipe, number)
        _check_curation_for_sft(recipe, number)
    _check_first_pairs(recipe)


def _check_inputs(recipe: Recipe, number: int) -> None:
    stages, where = recipe.stages_of_round(number), f"{recipe.path}: {recipe.key_of_stages(number)}"
    has_reward_model = any("reward_model" in recipe.stages_of_round(earlier) for earlier in range(1, number + 1))
    named_reward_model = recipe.section("rejection_sampling", number).keys.get("reward_model")
    if "rejection_sampling" in stages and not has_reward_model and not named_reward_model:
        raise ConfigError(
            f"{where}: rejection_sampling has no reward model: add reward_model, "
            "or give rejection_sampling.reward_model"
        )
    if "annotate" in stages and not has_reward_model and not recipe.names_annotator(number):
        raise ConfigError(
            f"{where}: annotate has no annotator: give annotate.annotator_function, "
            "annotate.annotator_models or annotate.people, or add reward_model"
        )
    if "rl" in stages and not has_reward_model and not _names_reward(recipe, number):
        raise ConfigError(
            f"{where}: rl has no reward: add reward_model, or give rl.reward_model or rl.reward_functions"
        )
    if "annotate" in stages and not {"reward_model", "dpo"} & set(stages):
        raise ConfigError(f"{where}: nothing trains on the pairs of annotate: add dpo or reward_model, or leave it out")
    if "rejection_sampling" in stages and "sft" not in stages:
        raise ConfigError(f"{where}: nothing trains on the winners of rejection_sampling: add sft, or leave it out")
    if "sft" in stages and "rejection_sampling" not in stages and not recipe.human_share:
        raise ConfigError(f"{where}: sft has no rows: add rejection_sampling, or human_share > 0")


def _check_curation_for_sft(recipe: Recipe, number: int) -> None:
    """Raises ConfigError where SFT takes a share of the human rows that a curation of winners and human rows cannot."""
    shares = {variant.human_share for variant in recipe.section("sft", number).variants}
    if recipe.section("curate_sft", number).is_in_file and (len(shares) > 1 or not shares <= {0.0, 1.0}):
        raise ConfigError(
            f"{recipe.path}: human_share={max(shares - {1.0}):g} takes a part of the human rows, and curate_sft "
            "writes them and the winners into one file; leave one of the two out"
        )


def _names_reward(recipe: Recipe, round_number: int) -> bool:
    keys = recipe.section("rl", round_number).keys
    return bool(keys.get("reward_model") or keys.get("reward_functions"))


def _check_first_pairs(recipe: Recipe) -> None:
    """Raises ConfigError where a round trains on preference pairs and there are none."""
    trained_on_pairs = {"reward_model", "dpo"}
    for number in range(1, recipe.rounds + 1):
        stages = recipe.stages_of_round(number)
        if recipe.has_preferences or recipe.names_annotator(number):
            return
        if not (readers := [stage for stage in stages if stage in trained_on_pairs]):
            continue
        if "annotate" in stages:
            raise ConfigError(
                f"{recipe.path}: annotate.annotator_function or data.preferences is missing: who compares answers? "
                "`stages` names the steps that need none, as in stages: [sft]"
            )
        raise ConfigError(f"{recipe.path}: data.preferences is missing: {readers[0]} has no pairs")
