"""Logs how many processes run a stage, on what, and what each optimizer step is divided into.

    2 processes on cpu with ZeRO-2; global_batch_size 32 = 2 processes x 8 rows x 2 accumulation steps

`accelerate launch` takes a user's own config where none is named; the line shows what came of it.
"""

import logging
import os
from pathlib import Path

import yaml

from data_schemas.stage_keys import Values
from engine.runtime import notices, training_precision, world

log = logging.getLogger(__name__)


def report(values: Values) -> None:
    """Logs the line, for the resolved keys of a stage, and warns if accelerate's config asks for processes in vain."""
    processes = world.num_processes()
    divided = _divided_by()
    text = f"{_count(processes, 'process', 'processes')} on {'cpu' if training_precision.is_on_cpu(values) else 'gpu'}"
    text += f" with {divided}" if divided else ""
    if "gradient_accumulation_steps" in values:
        rows, accumulation = values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
        text += (
            f"; global_batch_size {processes * rows * accumulation} = {_count(processes, 'process', 'processes')} x "
            f"{_count(rows, 'row', 'rows')} x {_count(accumulation, 'accumulation step', 'accumulation steps')}"
        )
    log.info("%s", text)
    asked = _processes_in_own_config()
    if processes == 1 and asked > 1:
        notices.warn(
            log,
            "one process runs, but accelerate's config has num_processes: %d; accelerate launch starts several with a "
            "distributed_type of MULTI_GPU, which also works with use_cpu: true, or of DEEPSPEED: run accelerate "
            "config, or give it a file of configs/accelerate with --config_file",
            asked,
        )


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _divided_by() -> str:
    """What accelerate's config asks for: FSDP, or a ZeRO stage, `ZeRO-config file` where DeepSpeed's own file has it.

    The engine that really wraps the model is logged when training begins (engine/training/wrapping.py).
    """
    if world.is_fsdp_asked_for():
        return "FSDP"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        return ""
    return f"ZeRO-{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', 'config file')}"


def _processes_in_own_config() -> int:
    """num_processes in the config that `accelerate launch` reads by itself; 1 where it did not start this process.

    The runner and `--config_file` name another one; a stage started by hand with one process is not asked about.
    """
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "ALIGNLOOP_RUNNER_PID" in os.environ:
        return 1
    from accelerate.commands.config.config_args import default_config_file  # it depends on HF_HOME

    try:
        return int(yaml.safe_load(Path(default_config_file).read_text(encoding="utf-8"))["num_processes"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return 1  # without a file, or with one that accelerate itself would not read
