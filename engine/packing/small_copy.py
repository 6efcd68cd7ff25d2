"""A small float32 copy of a model's architecture, on which packed and padded rows are compared.

Rounding can't be told from wrong attention on the model itself: in bf16 the log-probs of a real model with 30 layers
differ by more between two correct ways to compute them than between a correct and a wrong mask. In float32, and with
random weights of variance 1, a wrong mask changes every output clearly.

The copy has the class of the model and its configuration: head sizes, groups of key and value heads, kinds of layers,
capped scores, positions. It has one layer of each kind, few heads, a small vocabulary, and sliding windows of
WINDOW tokens, so that a short sequence is longer than its window.
"""

import copy
import logging
from typing import cast

import torch
from transformers import PretrainedConfig, PreTrainedModel

from engine.models.miniature import keep_few_heads, keep_few_layers
from engine.packing import row_attention

WINDOW = 3
VOCABULARY = 64
MAX_PARAMETERS = 50_000_000  # of a copy; a larger one would take seconds
log = logging.getLogger(__name__)


def small_copy(model: PreTrainedModel, device: torch.device) -> PreTrainedModel | None:
    """The copy in evaluation mode on the device; None where the architecture can't be made small.

    The state of the random generators is not changed.
    """
    for narrow in (True, False):  # some architectures tie their sizes together and accept only fewer layers
        try:
            config = small_config(model.config, narrow=narrow)
            architecture = cast("type[PreTrainedModel]", type(model))
            with torch.device("meta"):
                size = sum(weight.numel() for weight in architecture(config).parameters())
            if size > MAX_PARAMETERS:
                continue
            with torch.random.fork_rng(devices=[]):
                made = architecture(config).float().to(device)  # pyright: ignore[reportArgumentType]
        except Exception as error:  # the constructor of an architecture may refuse sizes in any way
            log.debug("no small copy of %s: %s", type(model).__name__, error)
            continue
        _draw(made)
        return made.eval()
    return None


def small_config(config: PretrainedConfig, *, narrow: bool) -> PretrainedConfig:
    """A copy of the configuration with few layers and short windows; with `narrow` also with few heads."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    row_attention.disable(text)  # of the model itself, if its own calls are enabled already
    for name in small.sub_configs:  # an image encoder, which is not called
        part = getattr(small, name, None)
        if part is not None and part is not text and getattr(part, "num_hidden_layers", None):
            part.num_hidden_layers = 1
    keep_few_layers(text)
    for name in ("sliding_window", "attention_chunk_size"):
        if getattr(text, name, None):
            setattr(text, name, WINDOW)
    text.vocab_size = VOCABULARY
    text.pad_token_id, text.bos_token_id, text.eos_token_id = 0, 1, 1
    if narrow:
        keep_few_heads(text)
    return small


def _draw(model: torch.nn.Module) -> None:
    """Draws every matrix so that its products have a variance of 1. The same shapes get the same numbers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                drawn = torch.randn(weight.shape, generator=generator) * weight.size(-1) ** -0.5
                weight.copy_(drawn)
