"""The memory of a training step, measured on tensors without content."""

from data_schemas.cost_request import Probe, ProbeAnswer


def measure(probe: Probe) -> ProbeAnswer:
    return {"peak": 0, "activations": 0, "logits": 0, "parameters": 0, "trainable": 0, "seconds": 0, "problem": "to do"}
