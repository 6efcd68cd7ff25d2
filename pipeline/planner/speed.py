"""How long a step takes: by finished steps of the same stage on the same hardware, else by stated shares of the peak.

The shares are those of published runs: 35 % of the bf16 peak for 7B and more, 20 to 25 % for 1B, 10 % below 0.3B, each
within 40 % (docs/planner.md lists the sources). Generation is bounded by reading weights and cache once a token.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from data_schemas.stage_keys import stages, with_defaults
from pipeline.planner.devices import Device
from pipeline.planner.shapes import Shape
from pipeline.planner.work import Work
from pipeline.steps import Step

Basis = Literal["measured", "utilisation", "none"]
SPREAD = 0.4  # around the middle of a stated share
LEARNT_SPREAD = 0.15  # around what finished steps took, where there is one of them
CPU_SHARES = (0.05, 0.6)  # of the measured float32 product
CPU_UPDATE_SECONDS, GPU_UPDATE_SECONDS = (0.01, 0.15), (0.02, 0.3)  # of an optimizer step, beside its products
BANDWIDTH_SHARES = (0.1, 0.5)  # of the peak, while tokens are generated
STARTUP_SECONDS = {"cpu": (3.0, 20.0), "gpu": (15.0, 90.0)}  # imports, and the start of the launcher
LOADING = (0.2e9, 2e9)  # bytes of weights a second that are read or written


@dataclass(frozen=True)
class Seconds:
    """A range of seconds, and what it is taken from."""

    low: float
    high: float
    basis: Basis
    num_learnt: int = 0  # finished steps that it was learnt from

    @property
    def middle(self) -> float:
        """The geometric mean of the range: a step may as well take half as long as twice as long."""
        return math.sqrt(max(self.low, 1e-9) * max(self.high, 1e-9))


@dataclass(frozen=True)
class FinishedStep:
    """What a finished step took."""

    stage: str
    hardware: str
    processes: int
    parameters: int
    flops: float
    working_seconds: float  # training, evaluation, generation and scoring
    other_seconds: float  # start, loading, saving


def share_of_peak(parameters: int) -> float:
    """The middle of the share of a GPU's bf16 peak that training a model of this size reaches."""
    known = ((0.3e9, 0.10), (1e9, 0.225), (7e9, 0.35))
    if parameters <= known[0][0]:
        return known[0][1]
    for (small, low), (large, high) in itertools.pairwise(known):
        if parameters <= large:
            return low + (high - low) * math.log(parameters / small) / math.log(large / small)
    return known[-1][1]


def seconds_of(
    step: Step,
    work: Work,
    shape: Shape,
    device: Device | None,
    *,
    parameters: int,
    finished: Iterable[FinishedStep] = (),
) -> Seconds | None:
    """How long a step takes; None where its device is not known."""
    if device is None:
        return None
    processes = step.launch.num_processes
    alike = [
        other
        for other in finished
        if other.stage == step.stage
        and other.hardware == device.name
        and other.processes == processes
        and abs(other.parameters - parameters) <= 0.1 * parameters
    ]
    if alike:
        return _learnt(work, alike)
    startup, loading = STARTUP_SECONDS["cpu" if device.is_cpu else "gpu"], 4 * parameters
    low, high = startup[0] + loading / LOADING[1], startup[1] + loading / LOADING[0]
    if not stages()[step.stage].traits.imports_torch:
        return Seconds(0.2, startup[0] + work.rows * 1e-3 + 30, "utilisation")
    if work.flops:
        shortest, longest = _of_work(step, work, shape, device, parameters=parameters)
        low, high = low + shortest, high + longest
    return Seconds(low, high, "utilisation")


def _learnt(work: Work, alike: Sequence[FinishedStep]) -> Seconds:
    """By the operations a second of the finished steps, and the time that they took for everything else."""
    other = sum(step.other_seconds for step in alike) / len(alike)
    rates = [step.working_seconds / step.flops for step in alike if step.flops]
    if not rates or not work.flops:
        seconds = [step.working_seconds + step.other_seconds for step in alike]
        return Seconds(min(seconds) * (1 - LEARNT_SPREAD), max(seconds) * (1 + LEARNT_SPREAD), "measured", len(alike))
    low, high = (other + rate * work.flops for rate in (min(rates), max(rates)))
    return Seconds(low * (1 - LEARNT_SPREAD), high * (1 + LEARNT_SPREAD), "measured", len(alike))


def _of_work(step: Step, work: Work, shape: Shape, device: Device, *, parameters: int) -> tuple[float, float]:
    """The shortest and the longest time of the arithmetic and of reading memory."""
    processes = step.launch.num_processes
    peak = device.peak or 1e11
    middle = share_of_peak(parameters)
    low_share, high_share = CPU_SHARES if device.is_cpu else (middle * (1 - SPREAD), middle * (1 + SPREAD))
    spread = 1 if device.is_cpu else processes  # processes on one CPU share its cores
    update = CPU_UPDATE_SECONDS if device.is_cpu else GPU_UPDATE_SECONDS
    shortest = work.hardware_flops / (peak * high_share * spread) + work.updates * update[0]
    longest = work.hardware_flops / (peak * low_share * spread) + work.updates * update[1]
    if work.new_tokens:
        keys = with_defaults(step.stage, step.keys)
        width = 4 if device.is_cpu else 2
        batch = keys.get("generation_batch_size") or keys.get("global_batch_size") or 1
        reads = work.new_tokens / batch * parameters * width
        reads += shape.cache(work.new_tokens * work.mean_context, width=width)
        shortest += reads / (device.bandwidth * BANDWIDTH_SHARES[1] * spread)
        longest += reads / (device.bandwidth * BANDWIDTH_SHARES[0] * spread)
    return shortest, longest
