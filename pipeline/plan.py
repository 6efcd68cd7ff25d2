"""The plan of a run: a recipe becomes a list of steps. Making it runs nothing and reads no data: read this file first.

Inputs are references, so the plan and all fingerprints are known before anything has run. "The best policy so far" is
a reference to the evaluation that chooses it; the runner looks the model up at launch. A section with variants is
a step for each, and their average under the section's name: what comes later refers to that.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from data_schemas.errors import ConfigError
from data_schemas.key_rules import check_values
from data_schemas.stage_keys import check_required, stages
from pipeline.recipe.names import STAGE_OF, Keys, Section
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sections import Launch

# What a training stage's evaluation does not read: such a key changes the variants, never how they are measured.
ONLY_IN_TRAINING = (
    "seed",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "global_batch_size",
    "patience",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "eval_steps",
    "strengths",
    "max_similarity",
    "train_data_shares",
    "eval_data_shares",
)
# What the runner says about where and how a step runs.
RUNNER_KEYS = ("output_dir", "step", "run_group", "fingerprint", "policy_names", "use_cpu")


@dataclass(frozen=True)
class Output:
    """A named output of an earlier step. An optional one is left out where the step made no such rows."""

    step: str
    name: str
    optional: bool = False


@dataclass(frozen=True)
class BestPolicy:
    """The model that an evaluation ranks first (rank 0), second (rank 1), … of all policies so far."""

    step: str
    rank: int = 0


@dataclass(frozen=True)
class EvaluationFolder:
    """The whole folder of an evaluation: its answers and scores are compared with later ones."""

    step: str


@dataclass(frozen=True)
class File:
    """Raw rows: a file, a folder, or a hub name."""

    path: str


@dataclass(frozen=True)
class Model:
    """A model from outside the run: a folder, or a hub name."""

    path: str


Reference = Output | BestPolicy | EvaluationFolder | File | Model


@dataclass(frozen=True)
class Step:
    name: str  # "round-1.dpo"
    stage: str
    round: int | None
    section: Section
    keys: dict[str, Any]  # typed; what is not given is the stage's default
    inputs: dict[str, list[Reference]]
    launch: Launch


class Batch(NamedTuple):
    """One batch of preference pairs."""

    train: Output
    validation: Output


def rows(step: str, name: str, *, optional: bool = False) -> Batch:
    """`name`.train and `name`.validation of a step. Validation rows are optional: a small set may leave none."""
    return Batch(Output(step, f"{name}.train", optional), Output(step, f"{name}.validation", optional=True))


def make_plan(recipe: Recipe) -> list[Step]:
    """All steps in the order they run. Raises ConfigError where the recipe leaves a needed input open."""
    _check_rounds(recipe)
    steps: list[Step] = []

    def add(section: Section, number: int | None = None, *, name: str = "", inputs: dict[str, Any], **keys: Any) -> str:
        name = name or (section if number is None else f"round-{number}.{section}")
        return keep(_step(recipe, section, number, name=name, inputs=inputs, keys=keys))

    def keep(step: Step) -> str:
        for earlier in steps:  # a reward model without new pairs is the one of the round before
            if replace(earlier, name=step.name, round=step.round) == step:
                return earlier.name
        steps.append(step)
        return step.name

    def train(section: Section, number: int, *given: tuple[dict[str, Any], Keys]) -> Output:
        """A section's model. `given`: inputs and keys for each of its variants, or once for all of them."""
        variants = recipe.variants(section, number)
        name = f"round-{number}.{section}"
        trained: list[Step] = []
        for place, variant in enumerate(variants):
            inputs, keys = given[place % len(given)]
            trained.append(_step(variant, section, number, name=f"{name}.{place + 1}", inputs=inputs, keys=keys))
        *parts, last = _averaged(recipe, name, trained)
        steps.extend(parts)
        return Output(keep(last), "model")

    data = add("data", name="prepare_data", inputs={})
    prompts, documents, instructions = (rows(data, kind) for kind in ("prompts", "documents", "instructions"))
    drawn_from = {"prompts": prompts.train, "validation_prompts": prompts.validation}

    if recipe.base_model is None:
        pretrained = add("pretrain", inputs={"train_data": documents.train, "eval_data": documents.validation})
        raw_base: Reference = Output(pretrained, "model")
    else:
        raw_base = Model(recipe.base_model)
    base = Output(add("prepare_base", inputs={"model_name_or_path": raw_base}), "model")

    judge = {}  # a given judge decides where there is one, else a reward model that no round optimises
    if not judge_given(recipe):
        held_out = {
            "train_data": Output(data, "preferences.judge"),
            "eval_data": Output(data, "preferences.judge_validation", optional=True),
        }
        judge = {"judge_model": Output(add("judge", inputs={"model_name_or_path": base} | held_out), "model")}

    def evaluate(number: int, policy: Output, **comparison: Any) -> str:
        scored = {"prompts": Output(data, "evaluation_prompts"), "model_name_or_path": policy}
        return add("evaluate_policy", number, policy_step=policy.step, inputs=scored | judge | comparison)

    first_policy = base
    if recipe.first_sft:
        first_policy = train("sft", 0, ({"model_name_or_path": base} | _rows_of([instructions]), {}))
    evaluations = [evaluate(0, first_policy)]
    policies = [first_policy]
    batches = [rows(data, "preferences", optional=annotates_itself(recipe, 1))] if has_preferences(recipe) else []
    reward_model = None

    for number in range(1, recipe.rounds + 1):
        has = recipe.round_stages
        best = BestPolicy(evaluations[-1])
        answering = {"best": [best], "best_two": [best, BestPolicy(evaluations[-1], rank=1)][: len(evaluations)]}

        if "annotate" in has and (reward_model or annotates_itself(recipe, number)):
            answers = drawn_from | {"policies": answering[recipe.annotate_policies]}
            if not annotates_itself(recipe, number):
                answers |= {"annotator_models": reward_model}  # of the round before
            batches.append(rows(add("annotate", number, round=number, inputs=answers), "pairs"))

        if "reward_model" in has and (recipe.refit_reward_model or reward_model is None):
            reward_model = train("reward_model", number, ({"model_name_or_path": base} | _rows_of(batches), {}))

        winners = []
        if "rejection_sampling" in has:
            asked = drawn_from | {"policies": answering[recipe.sampling_policies]}
            asked |= {"reward_model": reward_model} if reward_model else {}
            winners = [rows(add("rejection_sampling", number, round=number, inputs=asked), "winners")]

        policy = best  # what is trained further
        if "sft" in has:
            start = {"model_name_or_path": best if recipe.sft_from == "best" else base}
            mixes = [mix.human_share for mix in recipe.variants("sft", number)]
            policy = train(
                "sft",
                number,
                *(
                    (
                        start | _rows_of([*winners, instructions] if share else winners),
                        {"train_data_shares": [1.0] * len(winners) + [share] if 0 < share < 1 else None},
                    )
                    for share in mixes
                ),
            )

        if "dpo" in has:
            start = {"model_name_or_path": policy}
            start |= {"reference_model": first_policy} if recipe.dpo_reference == "first" else {}
            policy = train(
                "dpo",
                number,
                *((start | _rows_of(batches[-mix.dpo_batches :]), {}) for mix in recipe.variants("dpo", number)),
            )

        if isinstance(policy, BestPolicy) or policy in policies:
            raise ConfigError(
                f"{recipe.path}: round {number} trains no new policy: round_stages has neither "
                "rejection_sampling with sft, nor dpo"
            )
        policies.append(policy)
        proxy = reward_model or next(map(Model, optimised_models(recipe, number)), None)
        earlier = [EvaluationFolder(name) for name in evaluations]
        evaluations.append(evaluate(number, policy, first_policy=first_policy, proxy_model=proxy, previous=earlier))
    return steps


def has_preferences(recipe: Recipe) -> bool:
    """Whether the run has human preference pairs: from a file, or (where it makes some) from the data maker."""
    return bool(recipe.data.get("preferences") or recipe.data.get("make_data"))


def judge_given(recipe: Recipe) -> bool:
    """Whether the recipe names its judge, a function or a model; else one is trained on pairs of its own."""
    keys = recipe.section("evaluate_policy")
    return bool(keys.get("judge_function") or keys.get("judge_model"))


def annotates_itself(recipe: Recipe, number: int) -> bool:
    """Whether the round's annotator is given: then it annotates round 1 too, where no reward model is trained yet."""
    keys = recipe.section("annotate", number)
    return "annotate" in recipe.round_stages and bool(keys.get("annotator_function") or keys.get("annotator_models"))


def optimised_models(recipe: Recipe, number: int) -> list[str]:
    """The reward models from outside the run that the round optimises: the sampler's, then the annotators'."""
    sampler, annotators = recipe.section("rejection_sampling", number), recipe.section("annotate", number)
    models = [sampler.get("reward_model")] if "rejection_sampling" in recipe.round_stages else []
    models += annotators.get("annotator_models") or [] if "annotate" in recipe.round_stages else []
    return [model for model in models if model]


def _check_rounds(recipe: Recipe) -> None:
    """Raises ConfigError for what a round's stages need and nothing gives."""
    has, where = recipe.round_stages, f"{recipe.path}: round_stages"
    for number in range(1, recipe.rounds + 1):
        given = recipe.section("rejection_sampling", number).get("reward_model")
        if "rejection_sampling" in has and "reward_model" not in has and not given:
            raise ConfigError(
                f"{where}: rejection_sampling has no reward model: add reward_model, "
                "or give rejection_sampling.reward_model"
            )
        if "annotate" in has and "reward_model" not in has and not annotates_itself(recipe, number):
            raise ConfigError(
                f"{where}: annotate has no annotator: give annotate.annotator_function or "
                "annotate.annotator_models, or add reward_model"
            )
    if "annotate" in has and not {"reward_model", "dpo"} & set(has):
        raise ConfigError(f"{where}: nothing trains on the pairs of annotate: add dpo or reward_model, or leave it out")
    if "rejection_sampling" in has and "sft" not in has:
        raise ConfigError(f"{where}: nothing trains on the winners of rejection_sampling: add sft, or leave it out")
    if "sft" in has and "rejection_sampling" not in has and not recipe.human_share:
        raise ConfigError(f"{where}: sft has no rows: add rejection_sampling, or human_share > 0")
    pairs_for = next((stage for stage in has if stage in ("reward_model", "dpo")), None)
    if recipe.rounds and pairs_for and not has_preferences(recipe) and not annotates_itself(recipe, 1):
        if "annotate" in has:
            missing = "annotate.annotator_function or data.preferences is missing: who compares answers?"
        else:
            missing = f"data.preferences is missing: {pairs_for} has no pairs"
        raise ConfigError(f"{recipe.path}: {missing}")


def _rows_of(batches: list[Batch]) -> dict[str, Any]:
    return {"train_data": [batch.train for batch in batches], "eval_data": [batch.validation for batch in batches]}


def _step(
    recipe: Recipe, section: Section, number: int | None, *, name: str, inputs: dict[str, Any], keys: Keys
) -> Step:
    """One step: the section's keys, with those of them that name files or models as inputs, and the plan's own."""
    stage = STAGE_OF.get(section, section)
    known = stages()[stage].keys
    given = recipe.section(section, number)
    references: dict[str, list[Reference]] = {}
    for key, value in inputs.items():
        if value is not None:
            references[key] = value if isinstance(value, list) else [value]
    for key, value in given.items():
        if value is not None and (key in inputs or key in keys or key in RUNNER_KEYS):
            way_out = "say launch: {device: cpu}" if key == "use_cpu" else "leave it out"
            raise ConfigError(f"{recipe.path}: {section}.{key} is set by the plan; {way_out}")
    for key, value in given.items():
        if known[key].role in ("rows", "model") and value is not None:
            kind = File if known[key].role == "rows" else Model
            references[key] = [kind(path) for path in (value if isinstance(value, list) else [value])]
    own = {key: value for key, value in given.items() if key not in references}
    own |= {key: value for key, value in keys.items() if value is not None}
    step = Step(name, stage, number, section, own, references, recipe.launch_of(section, number))
    check_required(stage, step.keys | step.inputs, where=f"{recipe.path}: {section}")
    check_values(stage, step.keys | step.inputs, where=f"{recipe.path}: {section}")
    return step


def _averaged(recipe: Recipe, name: str, variants: list[Step]) -> list[Step]:
    """The variants, and as the step `name` their average; a single one bears that name itself.

    Variants that are one and the same in this round (other batches, where there is one) are trained once.
    """
    distinct: list[Step] = []
    weight_of: list[float] = []
    average = recipe.average(variants[0].section, variants[0].round or 0)
    weights = average.get("weights")
    for place, step in enumerate(variants):
        weight = weights[place] if isinstance(weights, list) else 1.0
        same = [(other.keys, other.inputs) for other in distinct]
        if (step.keys, step.inputs) in same:
            weight_of[same.index((step.keys, step.inputs))] += weight
        else:
            distinct.append(step)
            weight_of.append(weight)
    if len(distinct) == 1:
        return [replace(distinct[0], name=name)]
    if isinstance(weights, list):
        average = average | {"weights": weight_of}
    return [*distinct, _average_step(recipe, name, distinct, average)]


def _average_step(recipe: Recipe, name: str, parts: list[Step], average: Keys) -> Step:
    """The step average_models, which measures on the held-out rows of all its parts with the section's own keys."""
    first = parts[0]
    own = recipe.section(first.section, first.round)
    known, known_to_stage = stages()["average_models"].keys, stages()[first.stage].keys
    keys = {key: value for key, value in own.items() if key in known and known[key].role == "runtime"}
    keys |= average | {
        "averaged_stage": first.stage,
        "part_names": [part.name for part in parts],
        "stage_keys": {
            key: value
            for key, value in own.items()
            if known_to_stage[key].role == "identity" and key not in ONLY_IN_TRAINING
        },
    }
    inputs: dict[str, list[Reference]] = {"models": [Output(part.name, "model") for part in parts]}
    for side in ("train_data", "eval_data"):
        inputs[side] = list(dict.fromkeys(reference for part in parts for reference in part.inputs[side]))
    if first.stage == "dpo":
        inputs["reference_model"] = first.inputs.get("reference_model", first.inputs["model_name_or_path"])
    return Step(name, "average_models", first.round, first.section, keys, inputs, first.launch)
