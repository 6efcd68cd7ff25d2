"""Runs a stage, in this process or as a program, and reads its output."""

import contextlib
import functools
import gc
import importlib
import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_schemas.artifact import Artifact
from tests.patience import PATIENCE

ROOT = Path(__file__).parent.parent
# Keys that every stage of the tests gets; a test's own keys override them.
COMMON = {"use_cpu": True, "report_to": "none", "seed": 7}
TRAINING = {
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "global_batch_size": 8,
    "max_steps": 3,
    "eval_steps": 2,
    "save_strategy": "no",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
}


def stage_keys(stage: str, **keys: Any) -> dict[str, Any]:
    """COMMON, and TRAINING if the stage trains, overridden by a test's own keys. Paths become text."""
    trains = stage in ("pretrain", "sft", "reward_model", "dpo", "rl")
    values = COMMON | (TRAINING if trains else {}) | keys
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


@functools.cache
def module_of(stage: str) -> Any:
    """Imports a stage. Garbage collections of later runs skip everything that was imported by then."""
    module = importlib.import_module(f"stages.{stage}")
    gc.collect()
    gc.freeze()
    return module


def call_stage(stage: str, folder: Path, **keys: Any) -> int:
    """Runs a stage in this process, which saves the imports; returns its exit code."""
    from data_schemas.key_rules import check_values
    from data_schemas.stage_keys import check_keys, check_required
    from engine.runtime import stage as stage_module

    module = module_of(stage)
    values = check_keys(stage, stage_keys(stage, **keys) | {"output_dir": str(folder)}, where=stage)
    check_required(stage, values, where=stage)
    check_values(stage, values, where=stage)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")  # if it is not set, accelerate takes all cores
            return stage_module._run(stage, module.ARGUMENTS, module.main, values, getattr(module, "DEFAULTS", {}))
    finally:
        mine, root.handlers = set(root.handlers) - set(handlers), handlers
        root.setLevel(level)
        for handler in mine:
            with contextlib.suppress(OSError):  # what did not fit on a full disk
                handler.close()


def run_here(stage: str, folder: Path, **keys: Any) -> Artifact:
    """Runs a stage in this process and returns its record."""
    code = call_stage(stage, folder, **keys)
    record = Artifact.read(folder)
    assert code == 0 and record is not None, (folder / "log.txt").read_text()[-3000:]
    return record


Launched = subprocess.CompletedProcess[str]


def launch(
    stage: str,
    folder: Path,
    *,
    profile: str = "single",
    processes: int = 1,
    env: dict[str, str] | None = None,
    program: Path | None = None,
    **keys: Any,
) -> Launched:
    """Runs a stage as a program: plain Python, or through accelerate with a profile and CPU processes. `program` is
    given the stage and its arguments, and runs it."""
    from pipeline.launch import command_line
    from pipeline.plan import Step
    from pipeline.recipe.sections import Launch

    folder.mkdir(parents=True, exist_ok=True)
    values = stage_keys(stage, **keys) | {"output_dir": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    how = Launch(profile=profile, num_processes=processes, device="cpu")  # pyright: ignore[reportArgumentType]
    step = Step(name=stage, stage=stage, round=None, section="", keys={}, inputs={}, launch=how)  # pyright: ignore[reportArgumentType]
    command = command_line.launch_command(step, folder)
    if program is not None:
        command.insert(command.index(str(command_line.ROOT / "stages" / f"{stage}.py")), str(program))
    environment = command_line.environment(step, folder, folder) | (env or {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


def metrics_of(folder: Path) -> dict[tuple[int, str], float]:
    """metrics.jsonl as (step, key) -> value. A (step, key) that occurs twice is an error."""
    values: dict[tuple[int, str], float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        step = row.pop("step")
        for key, value in row.items():
            assert (step, key) not in values, f"{key} of step {step} stands twice"
            values[step, key] = value
    return values


def weights_of(folder: Path) -> dict[str, Any]:
    """Every tensor of a saved model."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
