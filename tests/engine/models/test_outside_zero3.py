"""Complete models in a process under ZeRO-3, which divides what transformers loads or constructs."""

import pytest
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from engine.models.loading import outside_zero3

ZERO3 = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}


@pytest.fixture(autouse=True)
def nothing_is_divided_afterwards():
    yield
    unset_hf_deepspeed_config()


def test_models_are_complete_inside_and_divided_again_afterwards():
    config = HfDeepSpeedConfig(ZERO3)
    with pytest.raises(OSError), outside_zero3():
        assert not is_deepspeed_zero3_enabled()
        raise OSError
    assert is_deepspeed_zero3_enabled() and config.is_zero3()


def test_without_deepspeed_nothing_changes():
    with outside_zero3():
        assert not is_deepspeed_zero3_enabled()
    assert not is_deepspeed_zero3_enabled()
