"""What this machine can run, without torch: its GPUs, cores, programs and precisions."""

import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from data_schemas import bfloat16
from data_schemas.errors import ConfigError, UserError
from data_schemas.vllm_keys import check_interpreter
from pipeline.launch.command_line import available_cores
from pipeline.recipe.names import traits_of
from pipeline.recipe.resolved import Recipe
from pipeline.recipe.sections import Launch
from pipeline.steps import Step


def place_of_launch(recipe: Recipe, step: Step) -> str:
    return f"{recipe.path}: {step.section}.launch" if step.launch != recipe.launch else f"{recipe.path}: launch"


def check_machine(recipe: Recipe, steps: Sequence[Step]) -> None:
    """Raises ConfigError where this machine can't run a step, because a GPU, the wrapper command or vLLM is missing."""
    for step in steps:
        command = shlex.split(step.launch.wrapper or "")
        if command and not shutil.which(command[0]):
            raise ConfigError(
                f"{place_of_launch(recipe, step)}: wrapper: the command {command[0]!r} is not found on this machine"
            )
        runs_elsewhere = step.launch.wrapper is not None or traits_of(step.section).one_process
        if step.launch.device == "gpu" and not runs_elsewhere and not has_gpu():
            raise ConfigError(
                f"{place_of_launch(recipe, step)}: this machine has no GPU; "
                "to use the CPU, set launch: {device: cpu} in the recipe"
            )
        for name, endpoint in (step.keys.get("endpoints") or {}).items():
            variable = endpoint.get("api_key_env")
            if variable and not os.environ.get(variable, "").strip() and step.launch.wrapper is None:
                raise ConfigError(
                    f"{recipe.path}: endpoints.{name}.api_key_env: the environment variable {variable} is not set; "
                    "export the key before the run"
                )
        if step.keys.get("engine") == "vllm" and not runs_elsewhere:
            try:
                check_interpreter(step.keys["vllm"]["python"])
            except UserError as error:
                raise ConfigError(f"{recipe.path}: {step.section}.{error}") from None


def emulated_precision(steps: Sequence[Step]) -> list[str]:
    """A sentence for each key that makes steps compute in bfloat16 on a CPU that only emulates it."""
    if bfloat16.cpu_has_bfloat16():
        return []
    here = [step for step in steps if step.launch.device == "cpu" and step.launch.wrapper is None]
    here = [step for step in here if step.stage != "prepare_base"]  # it only writes weights
    sentences = []
    for key, value, remedy in (("bf16", True, "false"), ("dtype", "bfloat16", "float32")):
        sections = dict.fromkeys(step.section for step in here if step.keys.get(key) == value)
        if sections:
            sentences.append(
                f"{key}: {str(value).lower()} (in {', '.join(sections)}) is only emulated by this CPU, which has no "
                f"bfloat16 instructions, and takes several times as long; set {key}: {remedy}"
            )
    return sentences


def check_devices(launch: Launch, *, where: str) -> None:
    devices, processes = launch.devices, launch.num_processes
    if devices is None:
        return
    if len(set(devices)) < len(devices) or len(devices) < processes or min(devices) < 0:
        raise ConfigError(
            f"{where}.devices={devices}: expected at least num_processes={processes} different numbers, as in [0, 1]"
        )
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = [int(part) for part in listed.split(",") if part.isdigit()]
    available, kind = (available_cores(), "cores") if launch.device == "cpu" else (gpus, "GPUs in CUDA_VISIBLE_DEVICES")
    if available and not set(devices) <= set(available):
        raise ConfigError(f"{where}.devices={devices}: the available {kind} are {', '.join(map(str, available))}")


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA or AMD GPU that CUDA_VISIBLE_DEVICES does not hide. Needs no torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    devices = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
    return devices or shutil.which("nvidia-smi") is not None
