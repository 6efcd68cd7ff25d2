"""This process among the others: rank, number of processes, device."""

import os

import torch


def device_of(use_cpu: bool) -> torch.device:
    """This process's device; a stage that generates holds whole models, outside of ZeRO."""
    if use_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
