"""Which model a folder means: of a run its best policy, of a step the one that it wrote, or the folder itself."""

from pathlib import Path

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError
from pipeline.state import summary
from pipeline.state.summary import POLICY_STAGES, SUMMARY, trained_models


def model_of(name: str) -> str:
    """The model folder or hub name that `chat` loads. Raises UserError."""
    folder = Path(name)
    if not folder.exists():
        if name.count("/") == 1 and not folder.parent.exists():
            return name  # a hub name
        raise ConfigError(f"{name} does not exist")
    if (folder / SUMMARY).is_file():
        content = summary.read(folder)
        policies = [entry for entry in trained_models(content) if entry["stage"] in POLICY_STAGES]
        if (best := content["best_policy"]) is not None:
            return str(folder / best["folder"])
        if not policies or content["rounds"]:
            raise ConfigError(f"{name} has no finished policy yet; run the recipe to its end, or give a step's folder")
        return str(folder / policies[-1]["folder"])
    artifact = Artifact.read(folder)
    if artifact is not None and "model" in artifact.outputs:
        return str(folder / artifact.outputs["model"])
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{name} is not a model, a step or a run: no config.json, no record of a model, no {SUMMARY}")
    return name
