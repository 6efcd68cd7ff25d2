"""Which engine wraps the model in training, read from the wrapped model itself.

What was asked for may be something else: on a CPU accelerate runs an FSDP config as plain DDP, without a word.
"""

import torch
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from data_schemas.errors import ConfigError
from engine.runtime import world

FSDP2 = "FSDP2"


def engine_of(model: torch.nn.Module) -> str:
    """DDP, DeepSpeed ZeRO-n, FSDP2 (torch's fully_shard) or FSDP1; `none` for a model that nothing wraps."""
    if isinstance(model, DistributedDataParallel):
        return "DDP"
    if isinstance(model, FullyShardedDataParallel):
        return "FSDP1"
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        return FSDP2
    stage = getattr(model, "zero_optimization_stage", None)  # of DeepSpeedEngine; its import takes seconds
    return f"DeepSpeed ZeRO-{stage()}" if callable(stage) else "none"


def check_engine(engine: str) -> None:
    """Raises ConfigError where accelerate was asked for FSDP and another engine wraps the model."""
    if world.is_fsdp_asked_for() and not engine.startswith("FSDP"):
        raise ConfigError(
            f"the profile asks for FSDP, and the engine that wraps the model is {engine}, since FSDP needs two "
            "processes on GPUs or more; use profile ddp or zero3"
        )
