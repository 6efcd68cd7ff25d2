"""Answers sampled in this process, by the continuous-batching loop or by `generate()`."""

import hashlib
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from engine.models import precision
from engine.models.loading import identity_of
from engine.runtime import out_of_memory, timing
from engine.runtime.arguments import GenerationArguments
from engine.runtime.journal import in_batches
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer, SampleRequest, end_tokens
from engine.sampling.decoding import DecodingRequest, supports_shared_prompts, write_answers
from engine.sampling.packed_weights import packed_weights
from engine.sampling.token_choice import choose
from engine.tokens.template import encode_prompt

log = logging.getLogger(__name__)


# Answers written together, in batches of the size asked for: only where the last ones are written, rows stay empty.
GROUP_BATCHES = 4


def noise(seed: str, prompt_id: str, k: int, length: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for one answer, [length]: one for each position."""
    key = hashlib.sha256(f"{seed}/{prompt_id}/{k}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big"))).random(length)


class _Sample(LogitsProcessor):
    """Leaves generate() one token a row: the one that its uniform number chooses."""

    def __init__(
        self, noise_BN: torch.Tensor, temperature_B: torch.Tensor, *, num_prompt_tokens: int, top_p: float
    ) -> None:
        self.noise_BN, self.temperature_B, self.start, self.top_p = noise_BN, temperature_B, num_prompt_tokens, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        noise_B = self.noise_BN[:, input_ids.shape[1] - self.start]
        chosen_B = choose(scores, noise_B, self.temperature_B, top_p=self.top_p)
        return torch.full_like(scores, -math.inf).scatter(1, chosen_B[:, None], 0.0)


@timing.part("generate")
def sample(
    stage: Stage,
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asks: Sequence[SampleRequest],
    arguments: GenerationArguments,
    *,
    purpose: str,
) -> list[Answer]:
    """One answer for each ask, in order. `purpose` keeps the noise of different uses of one seed apart."""
    encoded = {
        ask.prompt.prompt_id: encode_prompt(tokenizer, ask.prompt.prompt, tools=ask.prompt.tools) for ask in asks
    }
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, encoded.values()), default=0)
    if limit and longest + arguments.max_new_tokens > limit:
        log.warning(
            "prompts of up to %d tokens + max_new_tokens=%d pass the model's %d positions",
            longest,
            arguments.max_new_tokens,
            limit,
        )
    if not precision.has_fast_matmul(model.device, model.dtype):
        log.warning("this CPU only emulates bfloat16, which takes several times as long: set dtype: float32")
    writer = _Writer(model, tokenizer, arguments, seed=f"{arguments.seed}/{purpose}", longest=longest)
    # Prompts of like length together; the order is part of the step's identity, not of how it is run.
    order = sorted(
        range(len(asks)), key=lambda i: (len(encoded[asks[i].prompt.prompt_id]), asks[i].prompt.prompt_id, asks[i].k)
    )
    items: dict[str, _Item] = {}
    for i in order:
        prompt_id = asks[i].prompt.prompt_id
        items.setdefault(prompt_id, _Item(encoded[prompt_id], [])).asks.append(asks[i])
    rows = [(item.ids, ask.prompt.prompt_id, ask.k, ask.temperature) for item in items.values() for ask in item.asks]
    settings = (arguments.dtype, writer.seed, arguments.temperature, arguments.top_p, arguments.max_new_tokens)
    content = (identity_of(str(model.config.name_or_path)), "by prompt", settings, sorted(writer.end_ids), *rows)
    most = max((len(item.asks) for item in items.values()), default=1)
    size = max(1, GROUP_BATCHES * arguments.generation_batch_size // most)
    with (
        packed_weights(model),
        out_of_memory.explain_out_of_memory(
            "generation_batch_size", arguments.generation_batch_size, hint=out_of_memory.IDENTITY
        ),
    ):
        by_prompt = in_batches(stage, name, list(items.values()), writer.write, size=size, content=content)
    answers: list[Answer | None] = [None] * len(asks)
    for position, result in zip(order, itertools.chain.from_iterable(by_prompt), strict=True):
        answers[position] = Answer(**result)
    return [answer for answer in answers if answer is not None]


@dataclass(frozen=True)
class _Item:
    """A prompt's tokens, and the answers to it that are wanted."""

    ids: list[int]
    asks: list[SampleRequest]


class _Writer:
    """Writes the answers to a group of prompts: by our own loop, or by generate() where a model does not go with it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        arguments: GenerationArguments,
        *,
        seed: str,
        longest: int,
    ) -> None:
        self.model, self.tokenizer, self.arguments = model, tokenizer, arguments
        self.seed, self.longest, self.end_ids = seed, longest + arguments.max_new_tokens, end_tokens(model, tokenizer)

    @cached_property
    def shares_prompts(self) -> bool:
        """Found out at the first group that is not done yet."""
        goes = supports_shared_prompts(self.model, longest=self.longest)
        if not goes:
            log.warning("this model does not go with shared prompts: generate() writes its answers, which is slower")
        return goes

    def write(self, items: Sequence[_Item]) -> list[list[dict[str, Any]]]:
        """For each prompt its answers, as Answer's fields."""
        asks = [(number, ask) for number, item in enumerate(items) for ask in item.asks]
        noise_AN = [noise(self.seed, ask.prompt.prompt_id, ask.k, self.arguments.max_new_tokens) for _, ask in asks]
        own = self.arguments.temperature
        temperatures = [own if ask.temperature is None else ask.temperature for _, ask in asks]
        wanted = [
            DecodingRequest(number, temperature, noise_N)
            for (number, _), temperature, noise_N in zip(asks, temperatures, noise_AN, strict=True)
        ]
        write = self._share if self.shares_prompts else self._generate
        texts = iter([self._answer(ids) for ids in write([item.ids for item in items], wanted)])
        return [list(itertools.islice(texts, len(item.asks))) for item in items]

    def _share(self, prompts: Sequence[list[int]], wanted: Sequence[DecodingRequest]) -> list[list[int]]:
        return write_answers(
            self.model,
            prompts,
            wanted,
            max_new_tokens=self.arguments.max_new_tokens,
            end_ids=self.end_ids,
            top_p=self.arguments.top_p,
            num_live=self.arguments.generation_batch_size,
        )

    def _generate(self, prompts: Sequence[list[int]], wanted: Sequence[DecodingRequest]) -> list[list[int]]:
        size = self.arguments.generation_batch_size
        found: list[list[int]] = []
        for start in range(0, len(wanted), size):
            found += self._generate_batch(prompts, wanted[start : start + size])
        return found

    def _generate_batch(self, prompts: Sequence[list[int]], wanted: Sequence[DecodingRequest]) -> list[list[int]]:
        rows, pad, device = [prompts[one.prompt] for one in wanted], self.tokenizer.pad_token_id, self.model.device
        width = max(map(len, rows))
        # Padding must be on the left: generate() continues from the last column.
        ids_BT = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        sampler = _Sample(
            torch.from_numpy(np.stack([one.noise_N for one in wanted])).to(device),
            torch.tensor([one.temperature for one in wanted], dtype=torch.float64, device=device),
            num_prompt_tokens=width,
            top_p=self.arguments.top_p,
        )
        with torch.no_grad():
            output = self.model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=ids_BT.to(device),
                attention_mask=mask_BT.to(device),
                logits_processor=LogitsProcessorList([sampler]),
                do_sample=False,
                max_new_tokens=self.arguments.max_new_tokens,
                eos_token_id=sorted(self.end_ids),
                pad_token_id=pad,
            )
        ends = [
            next((at + 1 for at, token in enumerate(row) if token in self.end_ids), len(row))
            for row in output[:, width:].tolist()
        ]
        return [row[:end] for row, end in zip(output[:, width:].tolist(), ends, strict=True)]

    def _answer(self, ids: list[int]) -> dict[str, Any]:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return {"text": text, "ids": ids, "ended": ids[-1] in self.end_ids}
