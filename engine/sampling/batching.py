"""Requests in the order in which engines generate: prompts of similar length together, each prompt's answers together.

The order depends only on the requests, so it is part of a step's identity and not of how the step is run.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from data_schemas.errors import ConfigError
from engine.runtime import notices
from engine.sampling.answers import Answer, GeneratedAnswer, Policy, SampleRequest
from engine.tokens.positions import has_rotary_positions, max_positions
from engine.tokens.template import encode_prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedRequest:
    """A request with the tokens of its prompt, the generation prompt included."""

    request: SampleRequest
    ids: list[int]

    @property
    def prompt_id(self) -> str:
        return self.request.prompt.prompt_id


def encode_requests(tokenizer: PreTrainedTokenizerBase, requests: Sequence[SampleRequest]) -> list[EncodedRequest]:
    """The requests in order, each distinct prompt encoded once."""
    prompts = {request.prompt.prompt_id: request.prompt for request in requests}
    ids = {name: encode_prompt(tokenizer, prompt.prompt, tools=prompt.tools) for name, prompt in prompts.items()}
    return [EncodedRequest(request, ids[request.prompt.prompt_id]) for request in requests]


def longest_prompt(encoded: Sequence[EncodedRequest]) -> int:
    """Tokens of the longest prompt; 0 without requests."""
    return max((len(one.ids) for one in encoded), default=0)


def answer_in_length_order(
    encoded: Sequence[EncodedRequest],
    policy: Policy,
    generate: Callable[[list[EncodedRequest]], Sequence[GeneratedAnswer]],
) -> list[Answer]:
    """Calls `generate` on all requests, sorted by prompt length; returns the answers in the order of the requests."""

    def sort_key(index: int) -> tuple[int, str, int]:
        one = encoded[index]
        return len(one.ids), one.prompt_id, one.request.k

    order = sorted(range(len(encoded)), key=sort_key)
    generated = generate([encoded[index] for index in order])
    by_index = dict(zip(order, generated, strict=True))
    return [
        Answer(prompt=one.request.prompt, k=one.request.k, policy=policy.name, **by_index[index])
        for index, one in enumerate(encoded)
    ]


def check_context(
    config: PretrainedConfig, *, longest: int, max_new_tokens: int, key: str = "max_new_tokens"
) -> int | None:
    """The model's context length in tokens, None where it has no limit; a warning is logged where answers exceed it.
    `key` is what the stage calls `max_new_tokens`.

    Raises ConfigError where they do and the model has no rotary positions: it would fail there.
    """
    limit = max_positions(config)
    if limit and longest + max_new_tokens > limit:
        found = f"prompts of up to {longest} tokens + {key}={max_new_tokens} exceed the model's"
        if not has_rotary_positions(config):
            remedy = f"set {key}: {limit - longest} or less" if longest < limit else "leave out longer prompts"
            raise ConfigError(f"{found} {limit} positions; {remedy}")
        notices.warn(log, "%s context of %d tokens", found, limit)
    return limit
