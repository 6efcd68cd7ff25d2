"""Tokens of the chat template that the base model has never seen: LoRA leaves their embeddings as they are.

prepare_base gives every token without a row the same one, the mean of the others. As long as two tokens have the same
row in the head, their logits are the same everywhere, and no adapter of another layer can teach one of them, for
example the end of a turn. Training all weights tells them apart; with LoRA their rows have to be trained too.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_schemas.errors import ConfigError
from data_schemas.rows import Message
from engine.models.loading import gathered
from engine.tokens.template import render

# Shapes: V = rows of the embeddings, H = hidden size.

SAME_ROW = 0.01  # of a row's norm: the mean is computed once in the base's precision and once in that of training
log = logging.getLogger(__name__)


def untrained_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the chat template's special tokens whose rows nothing has trained, in order.

    Such a row is the same as that of another token, or the mean of all rows before the first of these tokens.
    """
    tokens = template_tokens(tokenizer)
    weight_VH = model.get_input_embeddings().weight
    assert isinstance(weight_VH, torch.Tensor)
    with gathered(weight_VH), torch.no_grad():
        tokens = [token for token in tokens if token < len(weight_VH)]
        found = {token for token in tokens if int((weight_VH == weight_VH[token]).all(dim=1).sum()) > 1}
        for first in tokens:
            mean_H = weight_VH[:first].float().mean(dim=0)
            distances = {token: float((weight_VH[token].float() - mean_H).norm()) for token in tokens if token >= first}
            found |= {token for token, distance in distances.items() if distance <= SAME_ROW * float(mean_H.norm())}
    return sorted(found)


def template_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the special tokens that the chat template writes, and of the end token, in order."""
    if not tokenizer.chat_template:
        return []
    text = str(tokenizer.chat_template)
    turns = [Message(role=role, content="text") for role in ("system", "user", "assistant", "user")]
    for dialog in (turns, turns[1:]):  # some templates refuse a system turn
        with contextlib.suppress(ConfigError):
            text += render(tokenizer, dialog, generation_prompt=True)
            break
    added = {token: str(content) for token, content in tokenizer.added_tokens_decoder.items()}
    found = {token for token, content in added.items() if content in text and token != tokenizer.pad_token_id}
    return sorted(found | {end for end in [tokenizer.eos_token_id] if isinstance(end, int)})


def names_of_embeddings(model: PreTrainedModel) -> list[str]:
    """The names of the modules that hold a row for each token: the embeddings, and a head that is not tied to them."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = head is None or head.weight is embeddings.weight
    return list(_names_of(model, [embeddings] if is_tied else [embeddings, head]))


def _names_of(model: PreTrainedModel, modules: Iterable[torch.nn.Module | None]) -> Iterator[str]:
    for wanted in modules:
        for name, module in model.named_modules():
            if module is wanted:
                yield name.rpartition(".")[2]
                break


def give_head_its_bias(model: torch.nn.Module) -> None:
    """Lets TRL's fused head read `bias` of a head with trained rows, in place: PEFT's wrapper only has its `weight`."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    original = getattr(head, "original_module", None)
    if original is not None and not hasattr(head, "bias"):
        head.__dict__["bias"] = original.bias  # not by setattr, which would save a parameter twice
