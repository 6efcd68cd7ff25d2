"""summary.json: the state of every step, and the table by round. It is rewritten after every change."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Literal, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError, DataError
from data_schemas.field_errors import place_and_problem
from data_schemas.files import read_json, write_atomically
from data_schemas.stage_keys import stages
from data_schemas.text import shown
from pipeline.state.costs import Cost, read_cost
from pipeline.state.recipe_changes import recipe_changes
from pipeline.state.run import Run, StepState
from pipeline.state.samples import SampleAnswer, is_judged, samples_of
from pipeline.steps import Step, is_average_across_rounds, source_steps

SUMMARY = "summary.json"
TAGGED = "tag/"  # how the names of an evaluation's numbers by tag begin, see engine/judging/groups.py


class StepEntry(TypedDict):
    """A step in the summary."""

    name: str
    stage: str
    round: int | None
    folder: str | None  # relative to the run's folder
    fingerprint: str | None
    state: str
    seconds: float
    metrics: Mapping[str, object]
    # A summary of an older version lacks the following.
    warnings: NotRequired[list[str]]  # of the step's record
    inputs: NotRequired[list[str]]  # the steps that it reads from, by the plan
    problem: NotRequired[str]  # why a failed step failed
    cost: NotRequired[Cost | None]  # the estimate beside what was measured; null where nothing was estimated


class BestEntry(TypedDict):
    """The best policy in the summary."""

    step: str
    folder: str
    score: float


class TrainedModel(TypedDict):
    """A model that a step of the run has trained."""

    step: str
    stage: str
    folder: str  # of the model, relative to the run's folder
    loss_before: float | None  # on held-out rows
    loss_after: float | None
    accuracy: float | None  # share of the held-out pairs whose chosen answer is preferred


class RecipeEntry(TypedDict):
    """The recipe of the run."""

    file: str
    content: Mapping[str, object]  # of the file, with the settings of the command line
    changes: list[str]  # what differs from the recipe of the run before in the same folder
    shows_samples: bool  # whether a report may contain prompts and answers


class Summary(TypedDict):
    """The content of summary.json."""

    name: str
    state: str
    steps: list[StepEntry]
    # `round` (null where there are no rounds), `policy`, the columns that stages declare, `reasons` for nulls, `by_tag`
    # where the prompts have tags, and `tasks` where policies are evaluated on tasks: the numbers of every task, by the
    # names of the step's record
    rounds: list[dict[str, object]]
    best_policy: BestEntry | None
    samples: NotRequired[list[SampleAnswer]]  # only of an evaluation without a judge
    recipe: NotRequired[RecipeEntry]  # a summary of an older version has none


POLICY_STAGES = ("sft", "dpo", "rl")
State = Literal["pending", "running", "ran", "reused", "resumed", "skipped", "interrupted", "failed", "waiting"]


def read(folder: Path) -> Summary:
    """The summary of the run in a folder. Raises ConfigError where there is none, DataError where it is damaged."""
    path = folder / SUMMARY
    if not path.exists():
        raise ConfigError(f"{folder} has no {SUMMARY}; expected the folder of a run, as in runs/demo")
    try:
        summary = TypeAdapter(Summary).validate_python(read_json(path))
        _check(summary)
    except (ValidationError, ValueError) as error:
        problem = place_and_problem(error.errors()[0], "the file") if isinstance(error, ValidationError) else error
        raise DataError(f"{path} is not the summary of a run; run the recipe again to rewrite it ({problem})") from None
    # A summary of an older version lacks the columns that were added since.
    for row in summary["rounds"]:
        row |= {column: row.get(column) for column in ("policy", *(column for column, _, _ in columns()))}
    return summary


def _check(summary: Summary) -> None:
    """Raises ValueError for what the types do not say: stages that exist, and folders inside of the run's."""
    folders = [step["folder"] for step in summary["steps"]]
    if wrong := [step["stage"] for step in summary["steps"] if step["stage"] not in stages()]:
        raise ValueError(f"there is no stage {shown(wrong[0])}")
    if summary["best_policy"] is not None:
        folders.append(summary["best_policy"]["folder"])
    for name in filter(None, folders):
        if "\0" in name or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise ValueError(f"the folder {shown(name)} is not inside of the run's")
    if wrong_rounds := [row for row in summary["rounds"] if not isinstance(row.get("round", ""), int | None)]:
        raise ValueError(f"rounds contains {shown(wrong_rounds[0])}, which has no number of a round")


def changes_since(folder: Path, content: Mapping[str, object]) -> list[str]:
    """What differs from the recipe of the run before in the same folder; of the same recipe, what differed then."""
    try:
        before = read(folder).get("recipe")
    except (ConfigError, DataError):
        return []
    if before is None:
        return []
    return recipe_changes(before["content"], content) or before["changes"]


def write(folder: Path, run: Run, state: str) -> None:
    """Writes summary.json into the run's folder, atomically. `state` is that of the whole run."""
    fingerprints = {name: identity.fingerprint for name, identity in run.identities.items()}
    content = make(run.recipe.name, state, run.steps, run.states, fingerprints)
    content["recipe"] = {
        "file": str(run.recipe.path),
        "content": run.recipe.content,
        "changes": run.recipe_changes,
        "shows_samples": run.recipe.report.samples,
    }
    write_atomically(folder / SUMMARY, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def make(
    name: str,
    state: str,
    steps: Sequence[Step],
    states: Mapping[str, StepState],
    fingerprints: Mapping[str, str | None],
) -> Summary:
    """The content of summary.json."""
    entries: list[StepEntry] = [
        {
            "name": step.name,
            "stage": step.stage,
            "round": step.round,
            "folder": _folder_name(states[step.name].folder),
            "fingerprint": fingerprints[step.name],
            "state": states[step.name].state,
            "seconds": round(states[step.name].seconds, 2),
            "metrics": artifact.metrics if (artifact := states[step.name].artifact) else {},
            "warnings": artifact.warnings if artifact else [],
            "inputs": source_steps(step),
            "cost": read_cost(states[step.name].folder, states[step.name].seconds) if artifact else None,
        }
        for step in steps
    ]
    for entry in entries:
        if entry["state"] == "failed":
            entry["problem"] = states[entry["name"]].problem
    evaluations = [step for step in steps if step.stage == "evaluate_policy" and is_judged(step)]
    rounds = [_round_row(step, steps, states) for step in evaluations]
    best = None
    for evaluation in evaluations:
        if (artifact := states[evaluation.name].artifact) and artifact.choices:
            best = _best(artifact, states)
    summary: Summary = {"name": name, "state": state, "steps": entries, "rounds": rounds, "best_policy": best}
    if samples := samples_of(steps, states):
        summary["samples"] = samples
    return summary


def trained_models(summary: Summary) -> list[TrainedModel]:
    """The models of the finished steps that train, and averages of them, in the order of the plan.

    The stage of an average is that of the models that it is made of.
    """
    stage_of: dict[str, str] = {}  # of the finished models, by step
    for entry in summary["steps"]:
        parts = [stage_of[name] for name in entry.get("inputs", []) if name in stage_of]
        of_variants = [stage for name, stage in stage_of.items() if name.startswith(f"{entry['name']}.")]
        if entry["metrics"] and stages()[entry["stage"]].traits.kind == "trains":
            stage_of[entry["name"]] = entry["stage"]
        elif entry["metrics"] and entry["stage"] == "average_models" and parts:
            stage_of[entry["name"]] = next(iter(of_variants), parts[-1])
    return [
        {
            "step": entry["name"],
            "stage": stage_of[entry["name"]],
            "folder": f"{entry['folder']}/model",
            "loss_before": _number(entry["metrics"].get("eval_loss_at_step_0")),
            "loss_after": _number(entry["metrics"].get("eval_loss")),
            "accuracy": _first_number(entry["metrics"], ("eval_accuracy", "eval_rewards/accuracies")),
        }
        for entry in summary["steps"]
        if entry["name"] in stage_of
    ]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _first_number(metrics: Mapping[str, object], names: Sequence[str]) -> float | None:
    return next((number for name in names if (number := _number(metrics.get(name))) is not None), None)


def _best(evaluation: Artifact, states: Mapping[str, StepState]) -> BestEntry:
    choice = evaluation.choices[0]
    policy = states[choice.step]
    model = policy.artifact.outputs.get("model", ".") if policy.artifact else "."
    return {"step": choice.step, "folder": f"{_folder_name(policy.folder)}/{model}", "score": choice.score}


def _round_row(evaluation: Step, steps: Sequence[Step], states: Mapping[str, StepState]) -> dict[str, object]:
    """The numbers of one round, and the reason for each that is null."""
    # The last step of a section has its numbers: of a section with variants, the average.
    of_sections = [step for step in steps if step.round == evaluation.round and not is_average_across_rounds(step)]
    artifacts = {step.section: states[step.name].artifact for step in of_sections}
    row: dict[str, object] = {"round": evaluation.round, "policy": evaluation.keys.get("policy_step")}
    reasons: dict[str, str] = {}
    planned = {step.section for step in steps}
    for column, section, metric in columns():
        if section not in planned and not stages()[section].traits.in_every_round:
            continue
        artifact = artifacts.get(section)
        row[column] = artifact.metrics.get(metric) if artifact else None
        if row[column] is None:
            skipped = states[evaluation.name].state == "skipped"
            why = states[evaluation.name].why if skipped else _reason(section, metric, artifacts, evaluation)
            reasons[column] = why
    judged, tasks = artifacts.get(evaluation.section), artifacts.get("evaluate_tasks")
    by_tag = metrics_by_tag(judged.metrics) if judged else {}
    row |= {"by_tag": by_tag} if by_tag else {}
    if tasks is None:
        return row | {"reasons": reasons}
    own = tasks.metrics
    to_best = {name: value for name, value in judged.metrics.items() if "_vs_best" in name} if judged else {}
    to_best = {name: value for name, value in to_best.items() if name.partition("_vs_")[0] in own}
    return row | {"tasks": own | to_best, "reasons": reasons}


def metrics_by_tag(metrics: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """The numbers of an evaluation by its prompts' tags: tag -> metric -> number."""
    found: dict[str, dict[str, object]] = {}
    for name, value in metrics.items():
        if name.startswith(TAGGED):
            tag, _, metric = name.removeprefix(TAGGED).rpartition("/")
            found.setdefault(tag, {})[metric] = value
    return found


def columns() -> list[tuple[str, str, str]]:
    """(column, stage that measures it, metric) from the stages' traits; those of the evaluation first."""
    described = sorted(stages().items(), key=lambda item: item[1].traits.runs != "after_round")
    return [
        (column, stage, metric)
        for stage, description in described
        for column, metric in description.traits.summary_columns.items()
    ]


def _reason(section: str, metric: str, artifacts: Mapping[str, Artifact | None], evaluation: Step) -> str:
    if section not in artifacts:
        return f"{'the run' if evaluation.round is None else f'round {evaluation.round}'} has no {section}"
    artifact = artifacts[section]
    if artifact is None:
        return f"{section} has not finished"
    if metric in artifact.reasons:
        return artifact.reasons[metric]
    if "_vs_" in metric or metric == "kl_to_first":
        return f"{section} did not measure it" if evaluation.round else "there is no earlier policy"
    if metric == "gold_mean" and not evaluation.keys.get("judge_function"):
        return "no judge function: there is no gold score"
    if metric == "proxy_mean" and not evaluation.round:
        return f"{'the run' if evaluation.round is None else 'round 0'} optimised no reward model"
    return f"{section} did not measure it"


def _folder_name(folder: Path | None) -> str | None:
    return folder.name if folder else None
