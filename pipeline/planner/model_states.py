"""The bytes of weights, gradients and optimizer states on each device, and in the memory of the host.

With mixed precision under DeepSpeed a parameter has 2 bytes of weights, 2 of gradients, and 12 of the optimizer:
float32 weights and Adam's two moments (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1). Without
DeepSpeed, `bf16` is autocast: weights, gradients and moments are float32, 4 + 4 + 8. Over g processes

    ddp, single   16            zero2   2 + 14 / g
    zero1         4 + 12 / g    zero3   16 / g    fsdp2   16 / g (4 + 4 + 8, all divided)

bytes for each trained parameter. A frozen parameter (LoRA) has weights only, in the precision in which the model is
loaded; the matrices of a quantised base (QLoRA) have four bits and their scales. Offload keeps 16 bytes in the host's
memory and on the GPU only the layers that are computed.
"""

from dataclasses import dataclass
from typing import Literal

Profile = Literal["single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"]
# Bits of a quantised weight (QLoRA, arXiv 2305.14314, section 3): a float32 scale for each 64 weights, or scales that
# are quantised themselves.
FOUR_BITS, NESTED_BITS = 4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256)
PINNED = 1.5  # DeepSpeed's own estimators: buffers of pinned memory, as a multiple of what is offloaded


@dataclass(frozen=True)
class TrainedModel:
    """A model with the parameters that a step trains."""

    parameters: int
    trainable: int
    largest_layer: int  # parameters that are gathered at the same time under ZeRO-3 and FSDP2
    quantised: int = 0  # of the frozen parameters
    quantised_bits: float = FOUR_BITS  # of each of them
    frozen_width: int = 4  # bytes of each other frozen parameter, without ZeRO in mixed precision

    @property
    def frozen(self) -> int:
        return self.parameters - self.trainable


@dataclass(frozen=True)
class ModelStates:
    """Bytes on each device, and on each machine's host."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float = 0.0  # the layers that ZeRO-3 or FSDP2 has gathered
    host: float = 0.0

    @property
    def device(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.gathered


def model_states(
    model: TrainedModel, *, profile: Profile, processes: int, machines: int = 1, mixed: bool = True
) -> ModelStates:
    """The model states of a step with AdamW. `mixed`: bf16 or fp16 rather than float32, which matters under ZeRO, and
    for the layers that FSDP2 has gathered."""
    is_deepspeed = profile.startswith("zero")
    zero = int(profile[4]) if is_deepspeed else 3 if profile == "fsdp2" else 0  # what is divided
    width = 2 if is_deepspeed and mixed else 4  # bytes of a weight and of a gradient
    moments = 12 if is_deepspeed and mixed else 8
    frozen_width = width if is_deepspeed and mixed else model.frozen_width
    frozen = model.quantised * model.quantised_bits / 8 + (model.frozen - model.quantised) * frozen_width
    weights, gradients = model.trainable * width + frozen, model.trainable * width
    optimizer = model.trainable * moments
    gathered = 2 * model.largest_layer * (2 if mixed else 4) if zero == 3 and processes > 1 else 0.0
    if profile == "zero3_offload":
        host = PINNED * (weights + gradients + optimizer) / machines
        return ModelStates(0.0, 0.0, 0.0, 2.0 * model.largest_layer * width, host)
    return ModelStates(
        weights=weights / (processes if zero == 3 else 1),
        gradients=gradients / (processes if zero >= 2 else 1),
        optimizer=optimizer / (processes if zero else 1),
        gathered=gathered,
    )
