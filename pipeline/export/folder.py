"""`alignloop export`: a finished step's model as a plain transformers folder, with a model card.

Nothing is copied unless every file of the model has the hash of its record. The folder appears complete or not at all.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError, DataError, StageError
from data_schemas.files import space_hint, sync
from data_schemas.text import nearest, shown
from pipeline.launch.command_line import ROOT
from pipeline.state import summary
from pipeline.state.models import best_policy
from pipeline.state.summary import Summary

CARD = "README.md"
ADAPTER, ADAPTER_BASE = "adapter_config.json", "adapter_base.json"  # of engine/models/adapters.py
MERGE = "engine.models.merging"


@dataclass(frozen=True)
class ExportedModel:
    """The model of a finished step."""

    run: Path
    summary: Summary
    step: str
    folder: Path  # of the step
    record: Artifact

    @property
    def model(self) -> Path:
        return self.folder / self.record.outputs["model"]

    @property
    def is_adapter(self) -> bool:
        """Whether the step kept an adapter (at_end: keep), which the export merges into its base."""
        return ADAPTER in self.files

    @property
    def files(self) -> list[str]:
        """The model's files in the record, relative to its folder, without the card that its stage wrote."""
        paths = [Path(name) for name in self.record.files if (self.folder / name).is_relative_to(self.model)]
        names = [str(path.relative_to(self.record.outputs["model"])) for path in paths]
        return [name for name in names if name != CARD]


def find_model(run: Path, name: str | None) -> ExportedModel:
    """The model of the step with this name, or the run's best policy.

    Raises ConfigError for a step that does not exist, is not finished or has no model, and DataError for a damaged
    record or summary.
    """
    content = summary.read(run)
    step = name if name is not None else best_policy(run, content)[0]
    entries = {entry["name"]: entry for entry in content["steps"]}
    if step not in entries:
        hint = nearest(step, list(entries)) or f"; `status {run}` lists them"
        raise ConfigError(f"--policy {shown(step)}: {run} has no such step{hint}")
    folder = entries[step]["folder"]
    record = Artifact.read(run / folder) if folder else None
    if folder is None or record is None:
        raise ConfigError(
            f"{step} of {run} has no record, so it is not finished; `run` with --until {step} finishes it"
        )
    if (record.stage, record.fingerprint) != (entries[step]["stage"], entries[step]["fingerprint"]):
        raise DataError(
            f"{run / folder} is not the {step} of {run}/{summary.SUMMARY}; run the recipe again to rewrite it"
        )
    if "model" not in record.outputs:
        raise ConfigError(f"{step} of {run} wrote no model; expected a step that trains one, as in round-1.dpo")
    return ExportedModel(run, content, step, run / folder, record)


def check_model(exported: ExportedModel) -> None:
    """Raises DataError where the model's files are not those of the record, or are not a complete model."""
    record, folder = exported.record, exported.folder
    if outside := [name for name in (*record.files, *record.outputs.values()) if ".." in Path(name).parts]:
        raise DataError(
            f"{folder}: its record names {shown(outside[0])}, which is outside of the folder; do not use it"
        )
    if record.sha256.keys() != record.files.keys():
        raise DataError(
            f"{folder}: its record does not have the hash of every file, as it is of an older version; move the folder "
            "away, and `run` runs the step again"
        )
    if damage := record.damage(folder):
        raise DataError(f"{folder}: {damage[0]}; move the folder away, and `run` runs the step again")
    if exported.is_adapter and ADAPTER_BASE not in exported.files:
        raise DataError(f"{exported.model} is a LoRA adapter; expected a complete model: merge it into its base first")


def check_target(target: Path, run: Path) -> None:
    """Raises ConfigError where the folder of the export exists and is not empty, or is inside of the run."""
    if (run / "summary.json").is_file() and target.resolve().is_relative_to(run.resolve()):
        raise ConfigError(f"{target} is inside of the run {run}; give a folder outside of it")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConfigError(f"{target} exists and is not a folder; give a folder that does not exist yet")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"{target} exists and is not empty; give a folder that does not exist yet")


def _merge(adapter: Path, target: Path) -> None:
    """Writes the complete model of an adapter and its base, in a process with torch."""
    # -P: a folder named engine/ in the working directory would mask ours.
    command = [sys.executable, "-P", "-m", MERGE, str(adapter.absolute()), str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StageError(f"the adapter in {adapter} was not merged: {cause}")


def write_folder(exported: ExportedModel, target: Path, card: str) -> None:
    """Copies the model's files into a partial folder, or merges its adapter, adds the card, and renames it."""
    target = target.absolute()
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        if space_hint(error):
            raise
        raise ConfigError(f"{target} cannot be created ({error.strerror}); give a folder elsewhere") from None
    try:
        if exported.is_adapter:
            _merge(exported.model, partial)
        (partial / CARD).write_text(card, encoding="utf-8")
        for name in [] if exported.is_adapter else exported.files:
            copy = partial / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(exported.model / name, copy)
        for path in [partial, *partial.rglob("*")]:
            sync(path)
        partial.rename(target)  # onto an empty folder, or none
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
        raise
