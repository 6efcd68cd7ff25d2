"""Runs a stage with FSDP2 on CPU processes: torch's own fully_shard over gloo, which accelerate gives only to GPUs.

    accelerate launch --config_file fsdp2.yaml --num_processes 2 tests/fsdp2_on_cpu.py stages/sft.py --config sft.yaml

accelerate takes its engine for FSDP where several GPUs are distributed over; here several CPU processes count too. What
wraps, trains, gathers and saves the model is unchanged.
"""

import runpy
import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

original = AcceleratorState.__init__


def with_fsdp_on_cpu(self: AcceleratorState, *arguments, fsdp_plugin=None, **options) -> None:
    original(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = with_fsdp_on_cpu
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
