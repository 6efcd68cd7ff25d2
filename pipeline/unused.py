"""What a recipe says that its plan does not use: nothing that a user writes is dropped silently."""

from collections.abc import Iterator, Sequence

from data_schemas.endpoints import request_hints
from data_schemas.errors import ConfigError
from pipeline.recipe.names import all_sections, runs_once
from pipeline.recipe.resolved import Recipe
from pipeline.steps import REWARD_BASE, Step

# Rows of the section `data` -> the stages that read them, or whose inputs are drawn from them.
READERS = {
    "documents": {"pretrain"},
    "instructions": {"sft", "annotate", "rejection_sampling", "rl", "evaluate_policy"},
    "preferences": {"reward_model", "dpo", "annotate", "rejection_sampling", "rl", "evaluate_policy"},
    "prompts": {"annotate", "rejection_sampling", "rl", "evaluate_policy"},
}


def check_unused(recipe: Recipe, steps: Sequence[Step]) -> list[str]:
    """A sentence for each section and kind of rows that no step of the plan uses, and for each field of an endpoint's
    `request` that its server may not know.

    Raises ConfigError instead where the recipe lists its `stages`: then the section and the list contradict each other.
    """
    unused = list(_unused(recipe, steps))
    if unused and recipe.stages is not None:
        raise ConfigError(f"{recipe.path}: {unused[0]}; add its stage to `stages`, or leave it out")
    return unused + [
        hint for name, one in recipe.endpoints.items() for hint in request_hints(one, where=f"endpoints.{name}")
    ]


def _without_effect(recipe: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    """A sentence for each key whose condition no round of the plan meets."""
    dpo = [step for step in steps if step.stage == "dpo"]
    if recipe.dpo_batch_decay < 1 and not any("train_data_shares" in step.keys for step in dpo):
        why = "DPO is trained on one batch of pairs in every round; see dpo_batches" if dpo else "no round runs dpo"
        yield f"dpo_batch_decay is not used: {why}"
    if recipe.sft_batches > 1 and not any(step.stage == "sft" and step.round for step in steps):
        yield "sft_batches is not used: no round runs sft"
    if recipe.reward_base and not any(step.name == REWARD_BASE for step in steps):
        yield "reward_model_from is not used: no round trains a reward model"
    for name in ("annotate", "rejection_sampling"):
        ordered = [step for step in steps if step.stage == name and step.keys.get("prompt_order") == "hardest_first"]
        if ordered and not any("earlier_candidates" in step.inputs for step in ordered):
            yield f"{name}.prompt_order is not used: no round before has rejection_sampling, whose rewards it needs"


def _unused(recipe: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    used = {step.section for step in steps}
    has_no_round = recipe.stages is None and not recipe.rounds  # `rounds: 0` says itself what is left out
    for name in all_sections():
        if has_no_round and not runs_once(name):
            continue
        if recipe.section(name).is_in_file and name not in used:
            yield f"the section {name} is not used: no step of this recipe runs it"
    run = {(step.section, step.round) for step in steps}
    for number, sections in recipe.sections.items():
        for name, section in sections.items():
            if section.is_in_round and name in used and (name, number) not in run:
                yield f"by_round.{number}.{name} is not used: round {number} runs no step of {name}"
    if not has_no_round:
        yield from _without_effect(recipe, steps)
    data = recipe.section("data").keys
    for kind, stages in READERS.items():
        if kind == "preferences" and data.get("chosen_as_instructions"):
            stages = stages | {"sft"}
        if data.get(kind) and not stages & {step.stage for step in steps}:
            yield f"data.{kind} is not used: no step of this recipe reads it"
