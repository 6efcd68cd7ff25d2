"""Which model a folder means: of a run its best policy, of a step the one that it wrote, or the folder itself."""

from pathlib import Path

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError
from pipeline.state import summary
from pipeline.state.summary import POLICY_STAGES, SUMMARY, Summary, trained_models


def model_of(name: str) -> str:
    """The model folder or hub name that `chat` loads. Raises UserError."""
    folder = Path(name)
    if not folder.exists():
        if name.count("/") == 1 and not folder.parent.exists():
            return name  # a hub name
        raise ConfigError(f"{name} does not exist")
    if (folder / SUMMARY).is_file():
        return str(folder / best_policy(folder, summary.read(folder))[1])
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
