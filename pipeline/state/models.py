"""Which model a folder means: of a run its best policy or newest reward model, of a step the one that it wrote, or the
folder itself."""

from collections.abc import Callable
from pathlib import Path

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError
from data_schemas.files import absent
from data_schemas.hub import is_hub_name
from pipeline.state import summary
from pipeline.state.summary import POLICY_STAGES, SUMMARY, StepEntry, Summary, trained_models

REWARD_MODEL = "reward_model"  # the stage, and the last part of its steps' names; variants have other last parts


def model_of(name: str) -> str:
    """The model folder or hub name of a policy. Raises UserError."""
    return _model_of(name, lambda run, content: best_policy(run, content)[1])


def reward_model_of(name: str) -> str:
    """The model folder or hub name of a reward model. Raises UserError."""
    return _model_of(name, _newest_reward_model)


def _model_of(name: str, of_run: Callable[[Path, Summary], str]) -> str:
    folder = Path(name)
    if not folder.exists():
        if is_hub_name(name):
            return name
        raise ConfigError(f"{name} {absent(folder)}")
    if (folder / SUMMARY).is_file():
        return str(folder / of_run(folder, summary.read(folder)))
    artifact = Artifact.read(folder)
    if artifact is not None and "model" in artifact.outputs:
        return str(folder / artifact.outputs["model"])
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{name} is not a model, a step or a run: no config.json, no record of a model, no {SUMMARY}")
    return name


def best_policy(run: Path, content: Summary) -> tuple[str, str]:
    """The step of a run's best policy, and its model, relative to the run: of a run without a judge the last policy.

    Raises ConfigError where none is finished, or none of those that a judge will compare is evaluated yet.
    """
    policies = [entry for entry in trained_models(content) if entry["stage"] in POLICY_STAGES]
    if (best := content["best_policy"]) is not None:
        return best["step"], best["folder"]
    if not policies or content["rounds"]:
        raise ConfigError(f"{run} has no finished policy yet; run the recipe to its end, or give one of its steps")
    return policies[-1]["step"], policies[-1]["folder"]


def evaluation_with(name: str) -> str | None:
    """The folder of the finished evaluation in which a run's newest reward model scored the policy's answers beside a
    judge; None where there is none, or the name is not that of a run. Raises UserError as `reward_model_of` does."""
    run = Path(name)
    if not (run / SUMMARY).is_file():
        return None
    content = summary.read(run)
    round_name = _newest_step(run, content)["name"].rpartition(".")[0]
    found = [
        entry
        for entry in content["steps"]
        if entry["name"] == f"{round_name}.evaluate_policy" and entry["metrics"].get("best_by_proxy") is not None
    ]
    return str(run / str(found[0]["folder"])) if found else None


def _newest_reward_model(run: Path, content: Summary) -> str:
    """The folder of the newest reward model, relative to the run's."""
    return f"{_newest_step(run, content)['folder']}/model"


def _newest_step(run: Path, content: Summary) -> StepEntry:
    """The step of the last finished reward model; an average counts in place of its parts.

    One that was trained as the judge counts only where there is no other.
    """
    finished = [entry for entry in content["steps"] if entry["folder"] and entry["metrics"]]
    of_rounds = [entry for entry in finished if entry["name"].rpartition(".")[2] == REWARD_MODEL]
    found = of_rounds or [entry for entry in finished if entry["stage"] == REWARD_MODEL]
    if not found:
        raise ConfigError(f"{run} has no finished reward model; run the recipe further, or give a step's folder")
    return found[-1]
