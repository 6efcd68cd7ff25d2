"""The variants of a section in the plan, with a step that averages their models; and averages of policies of different
rounds."""

from collections.abc import Sequence
from dataclasses import replace

from data_schemas.stage_keys import Keys, Values, stages
from pipeline.recipe.resolved import ResolvedSection
from pipeline.recipe.sections import Launch
from pipeline.steps import Output, Reference, Step, with_open_precision

# Keys of training that the evaluation of a trained model does not read, so variants that differ in them are
# evaluated in the same way.
ONLY_IN_TRAINING = (
    "seed",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "global_batch_size",
    "patience",
    "keep",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "eval_steps",
    "strengths",
    "max_similarity",
    "level_margins",
    "train_data_shares",
    "eval_data_shares",
)


def with_average(name: str, variants: Sequence[Step], section: ResolvedSection) -> list[Step]:
    """The distinct variants, followed by the step `name` that averages their models.

    Variants may be equal in one round, as when they differ only in how many batches they read and there is one batch.
    Equal variants are trained once and have the sum of their weights. If all are equal, the result is that one step
    under the name `name`, and nothing is averaged.
    """
    weights = section.average.get("weights")
    distinct: list[Step] = []
    weight_of: list[float] = []
    for place, step in enumerate(variants):
        weight = weights[place] if isinstance(weights, list) else 1.0
        known = [(other.keys, other.inputs) for other in distinct]
        if (step.keys, step.inputs) in known:
            weight_of[known.index((step.keys, step.inputs))] += weight
        else:
            distinct.append(step)
            weight_of.append(weight)
    if len(distinct) == 1:
        return [replace(distinct[0], name=name)]
    average = dict(section.average)
    if isinstance(weights, list):
        average["weights"] = weight_of
    return [*distinct, _average_step(name, distinct, average, section.keys)]


def average_across_rounds(
    name: str, round_number: int, trained: Step, policies: Sequence[Reference], weights: list[float]
) -> Step:
    """The step average_models of policies, of which the step `trained` wrote the last. It is not measured
    on held-out rows: the round's evaluation measures it."""
    keys = {**_runtime_keys(trained.keys), "weights": weights}
    one = {"profile": "single", "num_processes": 1, "num_machines": 1, "wrapper": None}  # it computes no loss
    launch = trained.launch.model_copy(update=one)
    return Step(name, "average_models", round_number, trained.section, keys, {"models": [*policies]}, launch)


def _runtime_keys(values: Values) -> Keys:
    """The values that average_models has too and that are no part of a step's identity."""
    known = stages()["average_models"].keys
    return {key: value for key, value in values.items() if key in known and known[key].role == "runtime"}


def _launch(part: Step) -> Launch:
    """How an average is launched: it evaluates without training, for which FSDP2 does not wrap a model."""
    return part.launch.model_copy(update={"profile": "ddp"}) if part.launch.profile == "fsdp2" else part.launch


def _average_step(name: str, parts: Sequence[Step], average: Values, values: Values) -> Step:
    """The step average_models. It is evaluated on the held-out rows of all its parts, with the section's `values`."""
    first = parts[0]
    values = with_open_precision(first.stage, values, first.launch)
    known_to_parts = stages()[first.stage].keys
    keys = _runtime_keys(values) | dict(average)
    keys |= {
        "averaged_stage": first.stage,
        "part_names": [part.name for part in parts],
        "stage_keys": {
            key: value
            for key, value in values.items()
            if known_to_parts[key].role == "identity" and key not in ONLY_IN_TRAINING
        },
    }
    inputs: dict[str, list[Reference]] = {"models": [Output(part.name, "model") for part in parts]}
    for side in ("train_data", "eval_data"):
        inputs[side] = list(dict.fromkeys(reference for part in parts for reference in part.inputs[side]))
    if first.stage == "dpo":
        inputs["reference_model"] = first.inputs.get("reference_model", first.inputs["model_name_or_path"])
    return Step(name, "average_models", first.round, first.section, keys, inputs, _launch(first))
