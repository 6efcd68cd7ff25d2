"""Sampling answers. One seam: prompts in, answers out, whatever generates them.

The noise of an answer comes from (seed, prompt id, k, position) alone, and batches are formed before they are divided
among processes: any number of processes gives the same answers, another batch size changes rounding at most.
"""

import hashlib
import itertools
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data_schemas.reading import read_prompts
from data_schemas.rows import Prompt
from engine import memory, precision, timing
from engine.arguments import GenerationArguments
from engine.choosing import choose
from engine.decoding import Wanted, goes_with_shared_prompts, write_answers
from engine.journal import in_batches
from engine.models import identity_of, load_causal, load_tokenizer
from engine.packed_weights import packed_weights
from engine.stage import Stage
from engine.template import encode_prompt

# Shapes: B = answers in a batch, T = prompt tokens (left-padded), V = vocabulary, N = new tokens at most.
log = logging.getLogger(__name__)
# Answers written together, in batches of the size asked for: only where the last ones are written, rows stay empty.
GROUP_BATCHES = 4


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted: the k-th of its prompt."""

    prompt: Prompt
    k: int
    temperature: float | None = None  # None: the stage's own


@dataclass(frozen=True)
class Answer:
    text: str
    ids: list[int]  # the end token included, where it ended
    ended: bool  # by the end token, not by max_new_tokens


def device_of(use_cpu: bool) -> torch.device:
    """This process's device; a stage that generates holds whole models, outside of ZeRO."""
    if use_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def draw_prompts(
    prompts: Sequence[Prompt], count: int | None, *, seed: int, purpose: str, round: int = 1
) -> list[Prompt]:
    """`count` prompts (None: all) in an order drawn by seed and purpose; each round takes the next ones, then wraps."""
    order = sorted(prompts, key=lambda row: hashlib.sha256(f"{seed}/{purpose}/{row.prompt_id}".encode()).digest())
    if count is None or count >= len(order):
        return order
    start = (max(round, 1) - 1) * count % len(order)
    return (order + order)[start : start + count]


@timing.part("load")
def draw_both_sides(
    train: tuple[list[str], int | None],
    validation: tuple[list[str] | None, int | None],
    *,
    seed: int,
    purpose: str,
    round: int,
) -> list[tuple[str, Prompt]]:
    """Prompts of the round, each with its side ("train", "validation"), from (files, how many) of the two sides."""
    drawn: list[tuple[str, Prompt]] = []
    for side, (files, count) in (("train", train), ("validation", validation)):
        rows = read_prompts(files).rows if files else []
        drawn += [(side, row) for row in draw_prompts(rows, count, seed=seed, purpose=purpose, round=round)]
    return drawn


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
    asks: Sequence[Ask],
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
        log.warning("prompts of up to %d tokens + max_new_tokens=%d pass the model's %d positions", longest,
                    arguments.max_new_tokens, limit)  # fmt: skip
    if not precision.multiplies(model.device, model.dtype):
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
        memory.named("generation_batch_size", arguments.generation_batch_size, hint=memory.IDENTITY),
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
    asks: list[Ask]


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
        goes = goes_with_shared_prompts(self.model, longest=self.longest)
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
            Wanted(number, temperature, noise_N)
            for (number, _), temperature, noise_N in zip(asks, temperatures, noise_AN, strict=True)
        ]
        write = self._share if self.shares_prompts else self._generate
        texts = iter([self._answer(ids) for ids in write([item.ids for item in items], wanted)])
        return [list(itertools.islice(texts, len(item.asks))) for item in items]

    def _share(self, prompts: Sequence[list[int]], wanted: Sequence[Wanted]) -> list[list[int]]:
        return write_answers(
            self.model,
            prompts,
            wanted,
            max_new_tokens=self.arguments.max_new_tokens,
            end_ids=self.end_ids,
            top_p=self.arguments.top_p,
            num_live=self.arguments.generation_batch_size,
        )

    def _generate(self, prompts: Sequence[list[int]], wanted: Sequence[Wanted]) -> list[list[int]]:
        size = self.arguments.generation_batch_size
        found: list[list[int]] = []
        for start in range(0, len(wanted), size):
            found += self._generate_batch(prompts, wanted[start : start + size])
        return found

    def _generate_batch(self, prompts: Sequence[list[int]], wanted: Sequence[Wanted]) -> list[list[int]]:
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
        ends = [next((at + 1 for at, token in enumerate(row) if token in self.end_ids), len(row))
                for row in output[:, width:].tolist()]  # fmt: skip
        return [row[:end] for row, end in zip(output[:, width:].tolist(), ends, strict=True)]

    def _answer(self, ids: list[int]) -> dict[str, Any]:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return {"text": text, "ids": ids, "ended": ids[-1] in self.end_ids}


def sample_in_turn(
    stage: Stage,
    policies: Sequence[str],
    prompts: Sequence[tuple[Prompt, float | None]],
    arguments: GenerationArguments,
    *,
    num_answers: int,
    purpose: str,
) -> list[list[Answer]]:
    """`num_answers` answers of each (prompt, temperature): answer k from policy k, from the first after the last."""
    answers: dict[tuple[int, int], Answer] = {}  # (number of the prompt, k)
    for side, path in enumerate(policies):
        mine = [(place, k) for place in range(len(prompts)) for k in range(side, num_answers, len(policies))]
        asks = [Ask(prompts[place][0], k, prompts[place][1]) for place, k in mine]
        tokenizer = load_tokenizer(path)
        if arguments.engine == "vllm":
            from engine.vllm_engine import sample_by_vllm  # it imports from here

            found = sample_by_vllm(stage, f"answers-{side}", path, tokenizer, asks, arguments, purpose=purpose)
        else:
            device = device_of(arguments.use_cpu)
            policy = load_causal(path, dtype=arguments.dtype).to(device).eval()  # pyright: ignore[reportArgumentType]
            found = sample(stage, f"answers-{side}", policy, tokenizer, asks, arguments, purpose=purpose)
            del policy
        answers |= dict(zip(mine, found, strict=True))
    return [[answers[place, k] for k in range(num_answers)] for place in range(len(prompts))]


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
