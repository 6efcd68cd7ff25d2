"""The tokenizer of a model that only answers: one of our own models, or an unchanged chat model of a hub.

Most of the hub's chat models pad with their end token. A training stage refuses them, since a loss that masks padding
by its id would never see the end of an answer. Sampling, and log-probs of given answers, mask padding by length.
"""

from transformers import PreTrainedTokenizerBase

from data_schemas.errors import DataError
from engine.models.loading import load_tokenizer
from engine.tokens.rendering import DEFAULT_DATE, with_fixed_date, writes_date
from engine.tokens.template import end_of_turn


def load_policy_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, with the end token and the date that prepare_base would give it.

    Where the tokenizer has no pad token, batches are filled with the end token. Raises DataError for a model without a
    chat template or an end token, ConfigError for a template that cannot be used.
    """
    tokenizer = load_tokenizer(path, needs_pad=False)
    if writes_date(tokenizer.chat_template):
        tokenizer.chat_template = with_fixed_date(str(tokenizer.chat_template), DEFAULT_DATE)
    tokenizer.eos_token = end_of_turn(tokenizer) or tokenizer.eos_token
    if tokenizer.eos_token_id is None:
        raise DataError(f"{path} has no end token, and its chat template closes a turn without a special token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
