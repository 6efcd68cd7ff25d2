"""Prompts and answers that are longer than the model's positions."""

import pytest
from transformers import GPT2Config, LlamaConfig

from data_schemas.errors import ConfigError
from engine.runtime import notices
from engine.sampling.batching import check_context


@pytest.fixture(autouse=True)
def no_warnings():
    notices.start(None)


def test_answers_beyond_learned_positions_are_refused():
    """Such a model fails at the first position that it does not have."""
    config = GPT2Config(n_positions=64)
    assert check_context(config, longest=60, max_new_tokens=4) == 64
    with pytest.raises(
        ConfigError, match=r"of up to 60 tokens \+ max_new_tokens=5 exceed .* 64 positions; set max_new_tokens: 4 or"
    ):
        check_context(config, longest=60, max_new_tokens=5)
    with pytest.raises(ConfigError, match="64 positions; leave out longer prompts"):
        check_context(config, longest=64, max_new_tokens=1)
    assert not notices.kept()


def test_answers_beyond_rotary_positions_are_a_warning_and_their_scaling_counts():
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert (
        check_context(LlamaConfig(max_position_embeddings=64, rope_parameters=scaled), longest=60, max_new_tokens=5)
        == 128
    )
    assert not notices.kept()
    assert check_context(LlamaConfig(max_position_embeddings=64), longest=60, max_new_tokens=5) == 64
    assert notices.kept() == ["prompts of up to 60 tokens + max_new_tokens=5 exceed the model's context of 64 tokens"]
