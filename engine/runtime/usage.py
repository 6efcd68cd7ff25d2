"""What a stage used: the device, how many processes, and the most memory that its first process held.

It describes how a step ran, not its result, so it is in outcome.json and not in the record. The planner learns from it
(pipeline/planner/history.py) and compares it with its estimate.
"""

import resource
import sys
from typing import TypedDict

from data_schemas.hardware import cpu_name
from engine.runtime import world


class Usage(TypedDict):
    device: str  # name of the GPU or CPU
    processes: int
    peak_memory: int  # bytes of the first process: allocated on its GPU, or resident on a CPU


def used(*, on_cpu: bool) -> Usage:
    """What this process has used so far. `on_cpu`: whether its stage computes on the CPU."""
    torch = sys.modules.get("torch")  # a stage that only reads rows does not import it
    if torch is not None and not on_cpu and torch.cuda.is_available():
        device, peak = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        device, peak = cpu_name(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"device": device, "processes": world.num_processes(), "peak_memory": int(peak)}
