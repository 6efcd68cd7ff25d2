"""The sizes of the models of a run: of its base model, of the one that reward models start from, of those that score
answers, and of the one that writes paraphrases."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from data_schemas.check_request import ModelSource
from data_schemas.cost_request import ModelAnswer
from data_schemas.errors import ConfigError
from data_schemas.files import read_json
from data_schemas.stage_keys import Keys, with_defaults
from pipeline.launch import preview
from pipeline.planner.questions import Estimator
from pipeline.planner.shapes import KNOWN, Shape
from pipeline.state.run import Run
from pipeline.steps import REWARD_BASE, Model, Step

Note = Callable[[str], None]  # takes a sentence on what the numbers rest on
WRITER = "paraphrase_llm"  # the input of the stage paraphrase whose answers are not those of a policy


class UnknownSizes(ConfigError):
    """The sizes of the base model are not known on this machine."""


@dataclass(frozen=True)
class SizedModel:
    """A model of a run."""

    shape: Shape
    config: Keys
    parameters: int
    width: int  # bytes of a saved parameter
    name: str


def base_model(run: Run, asks: Estimator | None, note: Note) -> SizedModel:
    """The base model of a run. Raises UnknownSizes."""
    source = _source(run)
    model, problem = _sized(source, asks, note)
    if model is None:
        name = source.get("path", "the model that pretrain builds")
        raise UnknownSizes(f"{run.recipe.path}: base_model: the sizes of {name} are not known: {problem}")
    prepared = next((step.keys.get("dtype") for step in run.steps if step.stage == "prepare_base"), None)
    return replace(model, width=_width(prepared)) if prepared else model


def writer_of(step: Step, asks: Estimator | None, note: Note) -> SizedModel | None:
    """The model that writes the paraphrases of a step; None for an endpoint, and where its sizes are not known."""
    reference = step.inputs[WRITER][0]
    if not isinstance(reference, Model):
        return None
    model, problem = _sized({"path": reference.path}, asks, note)
    if model is None:
        note(f"{step.section}.{WRITER}: the sizes of {reference.path} are not known: {problem}")
    return model


def reward_base_of(run: Run, asks: Estimator | None, note: Note) -> SizedModel | None:
    """The model from outside that the run's reward models start from; None where there is none or its sizes are not
    known."""
    step = next((step for step in run.steps if step.name == REWARD_BASE), None)
    reference = step.inputs["model_name_or_path"][0] if step else None
    if not isinstance(reference, Model):
        return None
    model = outside_model(reference, "reward_model_from", asks, note)
    prepared = step.keys.get("dtype") if step else None
    return replace(model, width=_width(prepared)) if model and prepared else model


def outside_model(reference: Model, key: str, asks: Estimator | None, note: Note) -> SizedModel | None:
    """The model that a key names, beside the base model; None, and a note, where its sizes are not known."""
    model, problem = _sized({"path": reference.path}, asks, note)
    if model is None:
        note(f"{key}: the sizes of {reference.path} are not known, so base_model's are taken: {problem}")
    return model


def _sized(source: ModelSource, asks: Estimator | None, note: Note) -> tuple[SizedModel | None, str]:
    """The model, or why its sizes are not known."""
    name = source.get("path", "the model that pretrain builds")
    answer = asks.model(source) if asks else known_model(source)
    shape = Shape.of(answer["config"])
    if shape is None and asks:
        known = known_model(source)
        if not known["problem"]:
            note(f"{name} can't be read here: its sizes are from the planner's own table")
            answer, shape = known, Shape.of(known["config"])
    if shape is None:
        return None, answer["problem"] or "it has no sizes of a decoder"
    dtype = answer["config"].get("dtype") or answer["config"].get("torch_dtype")
    return SizedModel(shape, answer["config"], answer["parameters"], _width(dtype), name), ""


def _width(dtype: object) -> int:
    return 2 if "16" in str(dtype or "float32") else 4


def _source(run: Run) -> ModelSource:
    """Where the sizes of the base model are; an architecture has the vocabulary of the tokenizer that is trained."""
    source = preview.model_source(run)
    if "architecture" not in source:
        return source
    pretrain = next(step for step in run.steps if step.stage == "pretrain")
    vocabulary = with_defaults("pretrain", pretrain.keys)["vocab_size"]
    return {"architecture": {"vocab_size": vocabulary, **source["architecture"]}}


def known_model(source: ModelSource) -> ModelAnswer:
    """The sizes of a model without torch: of a folder's config.json, an architecture, or the planner's table."""
    path = source.get("path")
    config: Keys = dict(source.get("architecture", {}))
    if path is not None:
        config = read_json(Path(path) / "config.json") or dict(KNOWN.get(path, {}))
    shape = Shape.of(config)
    if shape is None:
        return {"config": {}, "parameters": 0, "problem": "its config.json can't be read on this machine"}
    return {"config": config, "parameters": shape.parameters(), "problem": ""}
