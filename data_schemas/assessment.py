"""The file of `alignloop assess`: instructions, candidates that answer them, and who judges the answers.

instructions: prompts.jsonl
judge: {llm: large}                 # or {function: module:function}, or {task: ifeval}
candidates:
  base: {model: models/base}
  base with a system prompt: {model: models/base, system: Answer briefly.}
  few-shot: {model: models/base, examples: dialogs.jsonl, num_examples: 3}
  large: {endpoint: large}
  tuned: {model: runs/mine, training_cost: 40}
gpu_hour_price: 2.5                 # of the machine that runs the models, in the currency of the endpoints
endpoints: {large: {base_url: https://api.example.com/v1, model: large, price: {input: 2.5, output: 10}}}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from data_schemas.endpoints import parse_endpoints
from data_schemas.errors import ConfigError
from data_schemas.field_errors import problem_of_field
from data_schemas.text import nearest, shown
from data_schemas.yaml_files import read_yaml

JudgedTask = Literal["ifeval", "gsm8k", "function_calls"]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Candidate(Part):
    """One way to answer: a model or an endpoint, with a system prompt or solved examples."""

    model: str | None = None  # a folder of a model, of a step or of a run, or a hub name
    endpoint: str | None = None
    system: str | None = Field(default=None, min_length=1)
    examples: str | None = None  # a file of dialogs, the first of which precede each instruction
    num_examples: int = Field(default=3, ge=1, le=1000)
    training_cost: float | None = Field(default=None, ge=0, allow_inf_nan=False)  # given: it is trained

    @property
    def is_trained(self) -> bool:
        return self.training_cost is not None


class Judge(Part):
    """Who compares the answers: one of the three."""

    task: JudgedTask | None = None  # the instructions are in its form, and its own checks score each answer
    function: str | None = None  # module:function(prompt, answer, ended) -> score
    llm: str | None = None  # a model's folder, or the name of an endpoint: compares two answers, in both orders
    rubric: str | None = None  # of an LLM judge


class Assessment(Part):
    instructions: list[str]
    judge: Judge
    candidates: dict[str, Candidate] = Field(min_length=2)
    baseline: str = ""  # the candidate with which the others are compared; empty: the first
    num_instructions: int | None = Field(default=None, ge=1)  # the first ones; null: all
    gpu_hour_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    endpoints: dict[str, Any] = {}

    @field_validator("instructions", mode="before")
    @classmethod
    def _as_list(cls, given: object) -> object:
        return [given] if isinstance(given, str) else given

    @property
    def compared_with(self) -> str:
        return self.baseline or next(iter(self.candidates))


def load_assessment(path: Path) -> Assessment:
    """The content of the file, with paths that exist beside it made absolute.

    Raises ConfigError for a file that is missing, is not YAML, or contradicts itself.
    """
    content = read_yaml(path)
    try:
        assessment = Assessment.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_problem(error)}") from None
    _check(assessment, where=str(path))
    return _located(assessment, path.absolute().parent)


def with_models(assessment: Assessment, folders: Mapping[str, str]) -> Assessment:
    """The assessment with the folder of each candidate's model, where its name is that of a run or a step."""
    candidates = {
        name: candidate.model_copy(update={"model": folders[name]}) if name in folders else candidate
        for name, candidate in assessment.candidates.items()
    }
    return assessment.model_copy(update={"candidates": candidates})


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place, name = ".".join(map(str, first["loc"])), str(first["loc"][-1])
    if first["type"] == "extra_forbidden":
        known = {"candidates": Candidate, "judge": Judge}.get(str(first["loc"][0]), Assessment)
        return f"unknown key {place!r}{nearest(name, list(known.model_fields))}"
    if first["type"] == "missing":
        return f"{place} is missing"
    return f"{place}={shown(first['input'])}: {problem_of_field(first)}"


def _check(assessment: Assessment, *, where: str) -> None:
    endpoints = parse_endpoints(assessment.endpoints, where=f"{where}: endpoints")
    judges = [name for name in ("task", "function", "llm") if getattr(assessment.judge, name)]
    if len(judges) != 1:
        found = " and ".join(judges) or "none"
        raise ConfigError(f"{where}: judge: expected one of task, function and llm, found {found}")
    if assessment.judge.rubric and judges != ["llm"]:
        raise ConfigError(f"{where}: judge.rubric is for an LLM judge; leave it out, or give judge.llm")
    for name, candidate in assessment.candidates.items():
        if (candidate.model is None) == (candidate.endpoint is None):
            raise ConfigError(f"{where}: candidates.{name}: expected either model or endpoint")
        if candidate.endpoint is not None and candidate.endpoint not in endpoints:
            hint = nearest(candidate.endpoint, list(endpoints))
            raise ConfigError(
                f"{where}: candidates.{name}.endpoint={candidate.endpoint!r} is not among `endpoints`{hint}"
            )
    if assessment.compared_with not in assessment.candidates:
        hint = nearest(assessment.baseline, list(assessment.candidates))
        raise ConfigError(f"{where}: baseline={assessment.baseline!r} is not among `candidates`{hint}")


def _located(assessment: Assessment, folder: Path) -> Assessment:
    def locate(name: str | None) -> str | None:
        return str(folder / name) if name and not Path(name).exists() and (folder / name).exists() else name

    candidates = {
        name: candidate.model_copy(update={"model": locate(candidate.model), "examples": locate(candidate.examples)})
        for name, candidate in assessment.candidates.items()
    }
    judge = assessment.judge
    if judge.llm not in assessment.endpoints:
        judge = judge.model_copy(update={"llm": locate(judge.llm)})
    files = [locate(name) for name in assessment.instructions]
    return assessment.model_copy(update={"candidates": candidates, "judge": judge, "instructions": files})
