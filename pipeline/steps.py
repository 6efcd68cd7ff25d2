"""What a plan consists of: steps, and references to what they read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from data_schemas import bfloat16
from data_schemas.endpoints import ENDPOINT_KEYS, Endpoint
from data_schemas.errors import ConfigError
from data_schemas.key_rules import check_values
from data_schemas.sources import Source, SourceValue
from data_schemas.stage_keys import Keys, Values, check_required, stages
from pipeline.recipe.names import Section, stage_of
from pipeline.recipe.resolved import Recipe
from pipeline.recipe.sections import Launch

# Keys that the runner sets when it starts a step.
RUNNER_KEYS = ("output_dir", "step", "run_group", "fingerprint", "policy_names", "use_cpu", "endpoints")

# Inputs whose models score every answer of a step.
SCORERS = ("reward_model", "other_reward_models", "judge_model", "proxy_model", "annotator_models", "second_opinion")
REWARD_BASE = "prepare_reward_base"  # the step that prepares the model from outside that reward models start from
REMEDIES = {"use_cpu": "set launch: {device: cpu}", "endpoints": "write `endpoints` beside the sections"}


@dataclass(frozen=True)
class Output:
    """A named output of an earlier step. An optional one is left out if the step wrote no such rows."""

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
    """The complete folder of an evaluation: later evaluations compare their answers and scores with its own."""

    step: str


@dataclass(frozen=True)
class File:
    """Raw rows: a file, a folder, or a hub name, and what a config gives besides the path (data_schemas/sources.py)."""

    path: str
    options: Values = field(default_factory=dict)

    @property
    def source(self) -> Source:
        return Source(self.path, **self.options)


@dataclass(frozen=True)
class Model:
    """A model from outside the run: a folder, or a hub name."""

    path: str


@dataclass(frozen=True)
class Served:
    """A model behind an endpoint of the recipe. Its name at the server is its identity, the endpoint's name is not."""

    name: str
    endpoint: Endpoint


Reference = Output | BestPolicy | EvaluationFolder | File | Model | Served
# Key of a stage -> where its value comes from. None: the plan decides that the key has no value.
Inputs = Mapping[str, Reference | Sequence[Reference] | None]


@dataclass(frozen=True)
class Step:
    name: str  # "round-1.dpo"
    stage: str
    round: int | None
    section: Section
    keys: Keys  # typed; a key that is not here has the stage's default
    inputs: dict[str, list[Reference]]
    launch: Launch


def is_average_across_rounds(step: Step) -> bool:
    """Whether the step averages policies of different rounds, and not the variants of a section."""
    return step.stage == "average_models" and "averaged_stage" not in step.keys


def source_steps(step: Step) -> list[str]:
    """The steps that a step reads from, each once. For the best policy so far it is the step that chooses it."""
    references = (item for items in step.inputs.values() for item in items)
    return list(dict.fromkeys(item.step for item in references if not isinstance(item, File | Model | Served)))


class Split(NamedTuple):
    """The training rows and the validation rows that a step writes."""

    train: Output
    validation: Output


def split_of(step: str, name: str, *, optional: bool = False) -> Split:
    """`name`.train and `name`.validation of a step. Validation rows are optional: few rows may leave none."""
    return Split(Output(step, f"{name}.train", optional), Output(step, f"{name}.validation", optional=True))


def training_inputs(splits: Sequence[Split]) -> dict[str, Sequence[Reference]]:
    return {"train_data": [split.train for split in splits], "eval_data": [split.validation for split in splits]}


def make_step(
    recipe: Recipe,
    section: Section,
    round_number: int | None,
    *,
    name: str,
    values: Values,
    inputs: Inputs,
    keys: Values,
) -> Step:
    """A step with the `values` of its section, and with the inputs and keys that the plan sets.

    Values that name files or models become inputs. Raises ConfigError for a value that the plan or the runner sets, a
    required key without a value, and values that are not supported together.
    """
    stage, where = stage_of(section), f"{recipe.path}: {section}"
    known = stages()[stage].keys
    references: dict[str, list[Reference]] = {}
    for key, given in inputs.items():
        if given is not None:
            references[key] = list(given) if isinstance(given, Sequence) else [given]
    for key, value in values.items():
        if value is not None and (key in inputs or key in keys or key in RUNNER_KEYS):
            remedy = REMEDIES.get(key, "leave it out")
            raise ConfigError(f"{where}.{key} is set by the plan; {remedy}")
    for key, value in values.items():
        if known[key].role in ("rows", "model") and value is not None:
            items = value if isinstance(value, list) else [value]
            references[key] = [
                file_of(item) if known[key].role == "rows" else _model(recipe, key, item) for item in items
            ]
    step_keys = {key: value for key, value in values.items() if key not in references}
    step_keys |= {key: value for key, value in keys.items() if value is not None}
    served = [item for items in references.values() for item in items if isinstance(item, Served)]
    if served:
        step_keys["endpoints"] = {item.name: item.endpoint.model_dump(exclude_unset=True) for item in served}
    launch = recipe.section(section, round_number or 0).launch
    step_keys = with_open_precision(stage, step_keys, launch)
    step = Step(name, stage, round_number, section, step_keys, references, launch)
    check_required(stage, step.keys | step.inputs, where=where)
    check_values(stage, step.keys | step.inputs, where=where)
    return step


def with_open_precision(stage: str, values: Values, launch: Launch) -> Keys:
    """The values, with `bf16: true` where it is left open and the device that the step is launched on has bfloat16."""
    if not bfloat16.is_open(stage, values):
        return dict(values)
    if launch.device == "cpu":
        has_bfloat16 = bfloat16.cpu_has_bfloat16()
    else:  # the GPUs of other machines are not known here
        has_bfloat16 = launch.wrapper is not None or bfloat16.gpus_have_bfloat16()
    return bfloat16.with_precision(stage, values, has_bfloat16=has_bfloat16)


def _model(recipe: Recipe, key: str, name: str) -> Reference:
    is_endpoint = key in ENDPOINT_KEYS and name in recipe.endpoints
    return Served(name, recipe.endpoints[name]) if is_endpoint else Model(name)


def file_of(value: SourceValue) -> File:
    """The rows that a value of a recipe names."""
    source = Source.of(value)
    return File(source.path, source.options())
