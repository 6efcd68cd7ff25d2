"""Small configurations with the architecture of a large one, and models of them.

The preflight (commands/preflight.py) trains and samples a small model for a moment, to find what a stage would refuse.
Packing (engine/packing/small_copy.py) compares its outputs on packed and padded rows.
"""

import copy

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

MIN_LAYERS, MAX_LAYERS = 2, 4
HEAD_SIZE = 16  # of a small model's heads
MAX_PARAMETERS = 300_000_000  # of a model that cannot be made narrow, and of the embeddings of a large vocabulary


class CannotBeSmall(Exception):
    """The architecture has no small form that this module can find."""


def keep_few_layers(config: PretrainedConfig) -> None:
    """Leaves the first layer of each kind, and MIN_LAYERS layers at least, in place."""
    kinds, count = getattr(config, "layer_types", None), config.num_hidden_layers
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)] if kinds else []
    others = [layer for layer in range(count) if layer not in firsts]
    kept = sorted(firsts[:MAX_LAYERS] + others[: max(0, MIN_LAYERS - len(firsts))])
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == count:
            setattr(config, name, [value[layer] for layer in kept])
    config.num_hidden_layers = len(kept)


def keep_few_heads(config: PretrainedConfig, *, head_size: int | None = None) -> None:
    """Leaves few heads, in place; groups of query heads that share a key stay groups. None: heads keep their size."""
    heads = config.num_attention_heads
    pairs = getattr(config, "num_key_value_heads", None) or heads
    size = head_size or getattr(config, "head_dim", None) or config.hidden_size // heads
    few_pairs = min(2, pairs)
    few_heads = few_pairs if heads == pairs else 2 * few_pairs
    config.num_attention_heads = few_heads
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = few_pairs
    if getattr(config, "head_dim", None):
        config.head_dim = size
    config.hidden_size = few_heads * size
    for name in ("intermediate_size", "n_inner", "ffn_dim"):
        if getattr(config, name, None):
            setattr(config, name, 2 * config.hidden_size)


def small_config(config: PretrainedConfig, *, narrow: bool = True) -> PretrainedConfig:
    """A copy of the configuration with few layers and, if `narrow`, few and small heads."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    keep_few_layers(text)
    if narrow:
        keep_few_heads(text, head_size=HEAD_SIZE)
    return small


def small_model(config: PretrainedConfig) -> PreTrainedModel:
    """A causal model of the small configuration with random float32 weights. Raises CannotBeSmall."""
    reason: Exception | None = None
    for narrow in (True, False):  # some architectures tie their sizes together and accept only fewer layers
        try:
            small = small_config(config, narrow=narrow)
            if _num_parameters(small) > MAX_PARAMETERS:
                raise CannotBeSmall(f"a few layers have more than {MAX_PARAMETERS:,} parameters")
            return AutoModelForCausalLM.from_config(small, dtype="float32")
        except Exception as error:  # an architecture may refuse the sizes in any way
            reason = error
    raise CannotBeSmall(str(reason)) from reason


def _num_parameters(config: PretrainedConfig) -> int:
    """Counted on a model without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()
