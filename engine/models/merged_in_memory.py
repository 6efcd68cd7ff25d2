"""Adds an adapter to the weights of a model that is loaded, by the same arithmetic as into a folder (merging.py)."""

import contextlib

import torch
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from data_schemas.errors import DataError
from engine.models.adapters import Adapter


def merge_into(model: PreTrainedModel, adapter: Adapter) -> None:
    """Adds the adapter to the model's weights, in place. Under ZeRO-3 each weight is gathered in turn."""
    prefix = "" if hasattr(model, model.base_model_prefix) else f"{model.base_model_prefix}."
    adapter = adapter_for(model, adapter)
    missing = adapter.names
    for name, weight in model.named_parameters():
        with gathered(weight, changes=True), torch.no_grad():
            if weight.is_floating_point() and weight.numel():
                weight.copy_(adapter.merged(prefix + name, weight))
        missing -= {prefix + name}
    if missing and not prefix:  # a body without its head
        raise DataError(f"the adapter's weight {min(missing)} is not in its base")


def adapter_for(model: PreTrainedModel, adapter: Adapter) -> Adapter:
    """The adapter by the names of the model's weights: a head that is tied to the embeddings has theirs."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return adapter
    name = next(name for name, weight in model.named_parameters() if weight is embeddings.weight)
    return adapter.with_tied_head(name)


def gathered(weight: torch.Tensor, *, changes: bool = False) -> contextlib.AbstractContextManager[object]:
    """Inside, a weight that ZeRO-3 divides among processes is complete. `changes`: the first process may write it."""
    if not is_deepspeed_zero3_enabled():
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([weight], modifier_rank=0 if changes else None)
