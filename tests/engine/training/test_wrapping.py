"""Which engine wraps a model is read from the model; that of DeepSpeed is in tests/test_distributed.py."""

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from data_schemas.errors import ConfigError
from engine.training.wrapping import check_engine, engine_of


@pytest.fixture
def group(tmp_path):
    """A process group of this process only."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_the_engine_of_a_model(group, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert engine_of(torch.nn.Linear(2, 2)) == "none"
    assert engine_of(DistributedDataParallel(torch.nn.Linear(2, 2))) == "DDP"
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    fully_shard(model[0])
    fully_shard(model)
    assert engine_of(model) == "FSDP2"


class Engine(torch.nn.Module):
    def zero_optimization_stage(self) -> int:
        return 3


def test_the_zero_stage_is_that_of_deepspeed():
    assert engine_of(Engine()) == "DeepSpeed ZeRO-3"


def test_an_engine_that_was_not_asked_for_is_refused(monkeypatch):
    check_engine("DDP")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_engine("FSDP2")
    for other in ("DDP", "none"):
        with pytest.raises(ConfigError, match=f"asks for FSDP, and the engine that wraps the model is {other}, since"):
            check_engine(other)
