"""In which precision a stage trains where `bf16` is left open, and what a user should know of it.

The choice is made before the stage's identity is written, so the identity holds it (data_schemas/bfloat16.py).
"""

import logging
import os
import sys

from data_schemas import bfloat16
from data_schemas.stage_keys import Keys, Values
from engine.runtime import notices

log = logging.getLogger(__name__)


def resolve(stage: str, values: Values) -> Keys:
    """The values with `bf16: true` where it is left open and the device of this process has bfloat16.

    An average is evaluated with the keys of the stage that trained its parts, where the same holds.
    """
    if stage == "average_models":
        if not (averaged_stage := values.get("averaged_stage")):
            return dict(values)
        inner = values.get("stage_keys") or {}
        chosen = _resolve(averaged_stage, inner, on_cpu=is_on_cpu(values))
        return {**values, "stage_keys": chosen} if chosen != inner else dict(values)
    return _resolve(stage, values, on_cpu=is_on_cpu(values))


def _resolve(stage: str, values: Values, *, on_cpu: bool) -> Keys:
    is_open = bfloat16.is_open(stage, values)
    return bfloat16.with_precision(stage, values, has_bfloat16=is_open and _has_bfloat16(on_cpu=on_cpu))


def report(stage: str, given: Values, resolved: Values) -> None:
    """Logs the precision where it was left open, and warns of one that this CPU only emulates."""
    on_cpu = is_on_cpu(given)
    if bfloat16.is_open(stage, given):
        device, chosen = "CPU" if on_cpu else "GPU", bool(resolved.get("bf16"))
        log.info(
            "bf16 is left open: the stage trains in %s, since this %s %s bfloat16",
            "bf16" if chosen else "fp32",
            device,
            "has" if chosen else "does not have",
        )
    if resolved.get("bf16") and on_cpu and not bfloat16.cpu_has_bfloat16():
        notices.warn(
            log,
            "bf16: true is only emulated by this CPU, which has no bfloat16 instructions (AVX512-BF16 or AMX), and "
            "takes several times as long as fp32; set bf16: false, which is part of the step's identity",
        )


def _has_bfloat16(*, on_cpu: bool) -> bool:
    if on_cpu:
        return bfloat16.cpu_has_bfloat16()
    return bool(sys.modules["torch"].cuda.is_bf16_supported(including_emulation=False))


def is_on_cpu(values: Values) -> bool:
    """Whether the stage computes on the CPU. One that uses a model has imported torch."""
    if values.get("use_cpu") or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return True
    torch = sys.modules.get("torch")
    return torch is None or not torch.cuda.is_available()
