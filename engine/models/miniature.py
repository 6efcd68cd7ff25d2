"""A model of two narrow layers with the architecture of another: what a library accepts of the one it accepts of both.

The preflight (commands/preflight.py) trains and samples it for a moment, to find what a stage would refuse.
"""

import copy

from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

NUM_LAYERS = 2
MAX_PARAMETERS = 300_000_000  # of a model that cannot be made narrow, and of the embeddings of a large vocabulary
# Tried in this order: first both are changed, then only the number of layers, as some architectures tie sizes together.
NARROW = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}
LISTS_BY_LAYER = ("layer_types", "no_rope_layers", "attention_layers", "mlp_layer_types")


class CannotBeSmall(Exception):
    """The architecture has no small form that this module can find."""


def small_config(config: PretrainedConfig, *, narrow: bool = True) -> PretrainedConfig:
    """A copy of the configuration with two layers and, if `narrow`, with narrow ones; ratios of heads are kept."""
    small = copy.deepcopy(config)
    small.num_hidden_layers = NUM_LAYERS
    for name in LISTS_BY_LAYER:
        if isinstance(listed := getattr(small, name, None), list):
            setattr(small, name, listed[:NUM_LAYERS])
    if not narrow:
        return small
    heads, pairs = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    for name, size in NARROW.items():
        if getattr(small, name, None) is not None:
            setattr(small, name, size)
    if heads and pairs:
        small.num_key_value_heads = NARROW["num_attention_heads"] if heads == pairs else 2
    return small


def small_model(config: PretrainedConfig) -> PreTrainedModel:
    """A causal model of the small configuration with random float32 weights. Raises CannotBeSmall."""
    reason: Exception | None = None
    for narrow in (True, False):
        try:
            small = small_config(config, narrow=narrow)
            if _num_parameters(small) > MAX_PARAMETERS:
                raise CannotBeSmall(f"two layers have more than {MAX_PARAMETERS:,} parameters")
            return AutoModelForCausalLM.from_config(small, dtype="float32")
        except Exception as error:  # an architecture may refuse the sizes in any way
            reason = error
    raise CannotBeSmall(str(reason)) from reason


def _num_parameters(config: PretrainedConfig) -> int:
    """Counted on a model without memory."""
    import torch

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()
