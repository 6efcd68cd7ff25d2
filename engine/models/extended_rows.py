"""Rows of the embeddings for the tokens that extend a tokenizer, and the loss of a model before and after it."""

import math
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engine.runtime import progress

# Shapes: V = rows of the embeddings, H = hidden size, T = tokens of a text.

NUM_TEXTS, MAX_CHARACTERS = 32, 1000  # that the loss is measured on: a large model on a CPU reads them in minutes


def initialise_rows(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]]) -> None:
    """Sets a new token's rows, in place, to the mean of the rows of its pieces: in the embeddings and in the head."""
    head = model.get_output_embeddings()
    weights = {id(weight): weight for weight in (_weight(model.get_input_embeddings()), _weight(head))}
    with torch.no_grad():
        for weight_VH in weights.values():
            old_VH = weight_VH.float()
            for token, of_token in pieces.items():
                weight_VH[token] = old_VH[list(of_token)].mean(0).to(weight_VH.dtype)


def _weight(module: torch.nn.Module | None) -> torch.Tensor:
    weight = getattr(module, "weight", None)
    assert isinstance(weight, torch.Tensor)
    return weight


@progress.activity("measuring the loss per byte")
def loss_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Negative log-likelihood in nats for each UTF-8 byte of the first texts, which tokenizers can be compared by.

    Every text begins after the tokenizer's end token, so that its first token is counted too.
    """
    start = tokenizer.eos_token_id
    assert isinstance(start, int)
    total, num_bytes = 0.0, 0
    for text in (text[:MAX_CHARACTERS] for text in texts[:NUM_TEXTS]):
        ids_T = torch.tensor([[start, *tokenizer(text, add_special_tokens=False)["input_ids"]]])  # pyright: ignore
        with torch.no_grad():
            logits_TV = model(input_ids=ids_T.to(model.device)).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits_TV, ids_T[0, 1:].to(model.device), reduction="sum"))
        num_bytes += len(text.encode())
    return total / num_bytes if num_bytes else math.nan
