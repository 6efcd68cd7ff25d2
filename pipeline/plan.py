"""The plan of a run: a recipe becomes a list of steps. Making it runs nothing and reads no data: read this file first.

Inputs are references, so the plan and all fingerprints are known before anything has run. "The best policy so far" is
a reference to the evaluation that chooses it; the runner looks the model up at launch.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from data_schemas.stage_keys import ConfigError, check_required, stages
from pipeline.recipe import STAGE_OF, Keys, Launch, Recipe, Section

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
    steps: list[Step] = []

    def add(section: Section, number: int | None = None, *, name: str = "", inputs: dict[str, Any], **keys: Any) -> str:
        name = name or (section if number is None else f"round-{number}.{section}")
        steps.append(_step(recipe, section, number, name=name, inputs=inputs, keys=keys))
        return name

    data = add("data", name="prepare_data", inputs={})
    prompts, documents, instructions = (rows(data, kind) for kind in ("prompts", "documents", "instructions"))
    drawn_from = {"prompts": prompts.train, "validation_prompts": prompts.validation}

    if recipe.base_model is None:
        pretrained = add("pretrain", inputs={"train_data": documents.train, "eval_data": documents.validation})
        raw_base: Reference = Output(pretrained, "model")
    else:
        raw_base = Model(recipe.base_model)
    base = Output(add("prepare_base", inputs={"model_name_or_path": raw_base}), "model")

    judge = None  # a judge function decides where there is one, else a reward model that no round optimises
    if not recipe.section("evaluate_policy").get("judge_function"):
        held_out = {"train_data": Output(data, "preferences.judge"),
                    "eval_data": Output(data, "preferences.judge_validation", optional=True)}  # fmt: skip
        judge = Output(add("judge", inputs={"model_name_or_path": base} | held_out), "model")

    def evaluate(number: int, policy: str, **comparison: Any) -> str:
        scored = {"prompts": Output(data, "evaluation_prompts"), "model_name_or_path": Output(policy, "model")}
        return add("evaluate_policy", number, policy_step=policy, inputs=scored | {"judge_model": judge} | comparison)

    sft = add("sft", 0, inputs={"model_name_or_path": base, "train_data": instructions.train,
                                "eval_data": instructions.validation})  # fmt: skip
    first_policy = Output(sft, "model")
    evaluations = [evaluate(0, sft)]
    batches: list[Batch] = []

    for number in range(1, recipe.rounds + 1):
        best = BestPolicy(evaluations[-1])
        second = [BestPolicy(evaluations[-1], rank=1)] if recipe.annotate_policies == "best_two" and number > 1 else []

        function = recipe.section("annotate", number).get("annotator_function")
        if number == 1 and has_preferences(recipe):
            batches.append(rows(data, "preferences", optional=bool(function)))
        if function or number > 1:  # in round 1 there is no reward model yet: the human pairs are its batch
            annotator = None if function else Output(f"round-{number - 1}.reward_model", "model")
            answers = drawn_from | {"policies": [best, *second], "annotator_model": annotator}
            batches.append(rows(add("annotate", number, round=number, inputs=answers), "pairs"))

        reward_data = {"model_name_or_path": base} | _rows_of(batches)
        reward_model = Output(add("reward_model", number, inputs=reward_data), "model")

        asked = drawn_from | {"model_name_or_path": best, "reward_model": reward_model}
        winners = rows(add("rejection_sampling", number, round=number, inputs=asked), "winners")

        sft_data = _rows_of([winners, instructions] if recipe.human_share else [winners])
        sft_data |= {"model_name_or_path": best if recipe.sft_from == "best" else base}
        shares = [1.0, recipe.human_share] if recipe.human_share else None
        sft = Output(add("sft", number, inputs=sft_data, train_data_shares=shares), "model")

        dpo_data = {"model_name_or_path": sft} | _rows_of(batches[-recipe.dpo_batches :])
        dpo = add("dpo", number, inputs=dpo_data)

        earlier = [EvaluationFolder(name) for name in evaluations]
        evaluations.append(evaluate(number, dpo, first_policy=first_policy, proxy_model=reward_model, previous=earlier))
    return steps


def has_preferences(recipe: Recipe) -> bool:
    """Whether the run has human preference pairs: from a file, or (where it makes some) from the data maker."""
    return bool(recipe.data.get("preferences") or recipe.data.get("make_data"))


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
    for key in given:
        if key in inputs or key in keys or key in RUNNER_KEYS:
            way_out = "say launch: {device: cpu}" if key == "use_cpu" else "leave it out"
            raise ConfigError(f"{recipe.path}: {section}.{key} is set by the plan; {way_out}")
    for key, value in given.items():
        if known[key].role in ("rows", "model") and value is not None:
            kind = File if known[key].role == "rows" else Model
            references[key] = [kind(path) for path in (value if isinstance(value, list) else [value])]
    own = {key: value for key, value in given.items() if key not in references}
    step = Step(name, stage, number, section, own | keys, references, recipe.launch_of(section, number))
    check_required(stage, step.keys | step.inputs, where=f"{recipe.path}: {section}")
    return step
