"""A request for an answer, and the answer."""

from dataclasses import dataclass
from typing import Any

from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data_schemas.rows import Prompt


@dataclass(frozen=True)
class SampleRequest:
    """One answer that is wanted: the k-th of its prompt."""

    prompt: Prompt
    k: int
    temperature: float | None = None  # None: the stage's own


@dataclass(frozen=True)
class Answer:
    text: str
    ids: list[int]  # the end token included, where it ended
    ended: bool  # by the end token, not by max_new_tokens


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end an answer: the template's end of a turn, and the model's own."""
    return ends_of(model.generation_config, tokenizer)


def ends_of(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    own: Any = generation.eos_token_id if generation else None
    return {
        int(token)
        for token in [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
        if token is not None
    }  # pyright: ignore[reportArgumentType]
