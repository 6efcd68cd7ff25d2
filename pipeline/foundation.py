"""What the rounds of a plan share: the data, the base model, and the judge."""

from dataclasses import dataclass

from pipeline.builder import Plan
from pipeline.recipe.resolved import Recipe
from pipeline.steps import REWARD_BASE, Inputs, Model, Output, Reference, Split

# Keys of prepare_base that are about base_model itself.
OF_BASE_MODEL = ("model_revision", "extend_tokenizer", "num_new_tokens")


@dataclass(frozen=True)
class Foundation:
    """What all rounds share."""

    base: Output
    reward_base: Output  # what reward models start from where they do not start from a policy
    instructions: Split  # written by people
    prompts: Inputs  # prompt inputs of the stages that generate answers
    evaluation: Inputs | None  # of every evaluation: held-out prompts and the judge; None: the recipe has no judge


def plan_data_and_base(plan: Plan) -> Foundation:
    """The steps before round 0: data, base model, and a judge if the recipe names none."""
    recipe = plan.recipe
    data = plan_data(plan, is_evaluated=recipe.evaluates_policies, is_pretrained=recipe.section("pretrain").is_in_file)
    prompts = plan.split("prompts")
    base = plan_base(plan)
    reward_base = base
    trains_reward_model = any("reward_model" in recipe.stages_of_round(number + 1) for number in range(recipe.rounds))
    if recipe.reward_base and trains_reward_model:
        reward_base = prepare(plan, Model(recipe.reward_base), name=REWARD_BASE)
    evaluation = plan_judge(plan, data, base) if recipe.evaluates_policies else None
    return Foundation(
        base=base,
        reward_base=reward_base,
        instructions=plan.split("instructions"),
        prompts={"prompts": prompts.train, "validation_prompts": prompts.validation},
        evaluation=evaluation,
    )


def plan_data(plan: Plan, *, is_evaluated: bool, is_pretrained: bool) -> str:
    """The step that prepares the data, and those that curate its training rows and paraphrase its training prompts if
    the recipe has sections for it. Returns the name of the first."""
    data = plan.add_data(is_evaluated=is_evaluated)
    section = plan.recipe.section("curate")
    if section.is_in_file:
        given = plan.recipe.base_model
        tokenizer = Model(given) if given else None
        if given and not is_pretrained and section.keys.get("mix_tokens"):
            tokenizer = plan_base(plan)  # its chat template is the one that the rows will have
        plan.curate_data(data, tokenizer)
    if plan.recipe.section("paraphrase").is_in_file:
        plan.paraphrase_prompts()
    return data


def plan_base(plan: Plan) -> Output:
    """The base model: given, pretrained from random weights, or given and pretrained further. Then it is prepared.

    A given model whose tokenizer is extended is prepared first, so that its new tokens are pretrained.
    """
    recipe = plan.recipe
    given = None if recipe.base_model is None else Model(recipe.base_model)
    if given is None:
        return prepare(plan, plan_pretraining(plan, None))
    if not recipe.section("pretrain").is_in_file:
        return prepare(plan, given)
    if recipe.section("prepare_base").keys.get("extend_tokenizer"):
        return plan_pretraining(plan, prepare(plan, given))
    return prepare(plan, plan_pretraining(plan, given))


def prepare(plan: Plan, model: Reference, *, name: str = "prepare_base") -> Output:
    """The prepared model. Keys that are of `base_model` alone do not hold for another one."""
    needs_system = {"needs_system_role": True} if has_system_prompts(plan.recipe) else {}
    return Output(
        plan.add(
            "prepare_base",
            name=name,
            without=OF_BASE_MODEL if name == REWARD_BASE else (),
            inputs={"model_name_or_path": model},
            keys=needs_system,
        ),
        "model",
    )


def plan_pretraining(plan: Plan, start: Reference | None) -> Output:
    """The step that pretrains a model from `start`; None: from random weights."""
    documents = plan.split("documents")
    inputs: dict[str, Reference] = {"train_data": documents.train, "eval_data": documents.validation}
    if start is not None:
        inputs["model_name_or_path"] = start
    return Output(plan.add("pretrain", inputs=inputs), "model")


def plan_judge(plan: Plan, data: str, base: Output) -> Inputs:
    """What every evaluation reads: the held-out prompts, and a judge that is trained if the recipe names none."""
    evaluation: dict[str, Reference] = {"prompts": Output(data, "evaluation_prompts")}
    if not plan.recipe.names_judge:
        inputs = {
            "model_name_or_path": base,
            "train_data": Output(data, "preferences.judge"),  # pairs that no reward model of a round is trained on
            "eval_data": Output(data, "preferences.judge_validation", optional=True),
        }
        evaluation["judge_model"] = Output(plan.add("judge", inputs=inputs), "model")
    return evaluation


def has_system_prompts(recipe: Recipe) -> bool:
    """Whether a round samples answers under system messages, which the base model's chat template must support."""
    return any(
        "rejection_sampling" in recipe.stages_of_round(number)
        and recipe.section("rejection_sampling", number).keys.get("system_prompts")
        for number in range(1, recipe.rounds + 1)
    )
