"""Small models with the architecture of large ones."""

import pytest
import torch
from transformers import AutoConfig

from engine.models.miniature import CannotBeSmall, small_config, small_model

# The sizes are those of published models of the family, or in the same ratios.
LARGE = {
    "llama": {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336},
    "qwen2": {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "use_sliding_window": False},
    "qwen3": {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    "mistral": {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8},
    "gemma2": {"hidden_size": 2304, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
    "gemma3_text": {"hidden_size": 2304, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
    "phi3": {"hidden_size": 3072, "num_attention_heads": 32, "num_key_value_heads": 32},
    "gpt_neox": {"hidden_size": 2048, "num_attention_heads": 16},
    "gpt2": {"n_embd": 768, "n_head": 12},
    "olmo2": {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32},
}


@pytest.mark.parametrize("family", sorted(LARGE))
def test_a_small_model_has_two_layers_and_reads_the_whole_vocabulary(family):
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(family, vocab_size=1000, **LARGE[family], **special)
    model = small_model(config)
    assert model.config.model_type == family
    assert model.config.num_hidden_layers == 2
    assert model.num_parameters() < 20_000_000
    assert model(torch.tensor([[3, 999, 5]])).logits.shape == (1, 3, 1000)
    assert config.num_hidden_layers > 2  # the configuration that was given is unchanged


def test_grouped_queries_stay_grouped():
    grouped = AutoConfig.for_model("llama", num_attention_heads=32, num_key_value_heads=8)
    plain = AutoConfig.for_model("llama", num_attention_heads=32, num_key_value_heads=32)
    assert (small_config(grouped).num_attention_heads, small_config(grouped).num_key_value_heads) == (4, 2)
    assert (small_config(plain).num_attention_heads, small_config(plain).num_key_value_heads) == (2, 2)


def test_an_architecture_that_cannot_be_built_has_no_small_model():
    config = AutoConfig.for_model("t5", vocab_size=1000)  # not a causal model
    with pytest.raises(CannotBeSmall):
        small_model(config)
