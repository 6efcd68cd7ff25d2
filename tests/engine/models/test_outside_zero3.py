"""Complete models in a process under ZeRO-3, which divides what transformers loads or constructs."""

import pytest
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from engine.models.loading import deepspeed_of, outside_zero3

ZERO3 = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}


@pytest.fixture(autouse=True)
def nothing_is_divided_afterwards():
    yield
    unset_hf_deepspeed_config()


class Plugin:
    """accelerate's, which alone has the configuration before there is a trainer."""

    def __init__(self, config: object) -> None:
        self.dschf = config


def test_models_are_complete_inside_and_divided_again_afterwards(tmp_path):
    training = TrainingArguments(str(tmp_path), use_cpu=True)
    assert deepspeed_of(training) is None
    config = HfDeepSpeedConfig(ZERO3)
    training.deepspeed_plugin = Plugin(config)  # pyright: ignore[reportAttributeAccessIssue]
    assert deepspeed_of(training) is config
    with pytest.raises(OSError), outside_zero3(deepspeed_of(training)):
        assert not is_deepspeed_zero3_enabled()
        raise OSError
    assert is_deepspeed_zero3_enabled()


def test_without_deepspeed_nothing_changes(tmp_path):
    config = HfDeepSpeedConfig(ZERO3)
    with outside_zero3(None):
        assert is_deepspeed_zero3_enabled()
    del config
