"""Samples answers in this process: by continuous batching, or by `generate()` for models that it does not support."""

import hashlib
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from engine.models import precision
from engine.models.loading import identity_of, load_causal
from engine.models.policy_tokenizer import load_policy_tokenizer
from engine.runtime import notices, out_of_memory, progress, timing
from engine.runtime.journal import in_batches
from engine.runtime.stage import Stage
from engine.runtime.world import device_of
from engine.sampling.answers import Answer, GeneratedAnswer, Policy, SampleRequest, SamplingSettings, end_tokens
from engine.sampling.batching import (
    EncodedRequest,
    answer_in_length_order,
    check_context,
    encode_requests,
    longest_prompt,
)
from engine.sampling.decoding import DecodingRequest, SamplingLimits, generate_answers, supports_shared_prompts
from engine.sampling.packed_weights import packed_weights
from engine.sampling.token_choice import choose

# Shapes: A = answers of a group, B = answers in a batch, T = prompt tokens (left-padded), N = new tokens at most,
# V = vocabulary.
GROUP_BATCHES = 4  # batches whose answers form a group: slots go unused only at the end of a group
log = logging.getLogger(__name__)


def noise(seed: str, prompt_id: str, k: int, length: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for one answer, one for each position, [length]."""
    key = hashlib.sha256(f"{seed}/{prompt_id}/{k}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big"))).random(length)


@dataclass(frozen=True)
class PromptRequests:
    """The tokens of a prompt, and the requests for answers to it."""

    ids: list[int]
    requests: list[SampleRequest]


class TransformersEngine:
    """Samples from a model of transformers that is loaded in this process."""

    def __init__(
        self,
        stage: Stage,
        name: str,
        policy: Policy,
        settings: SamplingSettings,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.stage, self.name, self.policy, self.settings = stage, name, policy, settings
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, stage: Stage, name: str, policy: Policy, settings: SamplingSettings) -> Self:
        """The engine with the policy's model on this process's device. `name` is that of the journal."""
        tokenizer = load_policy_tokenizer(policy.path)
        model = load_causal(policy.path, dtype=settings.dtype)
        model.to(device_of(settings.use_cpu))  # pyright: ignore[reportArgumentType]
        return cls(stage, name, policy, settings, model=model.eval(), tokenizer=tokenizer)

    @timing.part("generate")
    def sample(self, requests: Sequence[SampleRequest]) -> list[Answer]:
        """One answer for each request, in order. Raises StageError where the device's memory is full."""
        encoded = encode_requests(self.tokenizer, requests)
        longest = longest_prompt(encoded)
        check_context(self.model.config, longest=longest, max_new_tokens=self.settings.max_new_tokens)
        if not precision.has_fast_matmul(self.model.device, self.model.dtype):
            notices.warn(log, "this CPU emulates bfloat16, which takes several times as long; set dtype: float32")
        group = GroupGenerator(
            self.model,
            self.tokenizer,
            self.settings,
            end_ids=end_tokens(self.model, self.tokenizer),
            longest=longest + self.settings.max_new_tokens,
        )
        return answer_in_length_order(encoded, self.policy, lambda ordered: self._generate(group, ordered))

    def _generate(self, generator: "GroupGenerator", ordered: Sequence[EncodedRequest]) -> list[GeneratedAnswer]:
        """Groups of complete prompts, divided among the processes; each is generated once and kept in the journal."""
        prompts: dict[str, PromptRequests] = {}
        for one in ordered:
            prompts.setdefault(one.prompt_id, PromptRequests(one.ids, [])).requests.append(one.request)
        rows = [(one.ids, one.prompt_id, one.request.k, one.request.temperature) for one in ordered]
        model_identity = identity_of(str(self.model.config.name_or_path))
        content = (model_identity, "by prompt", self.settings.identity, sorted(generator.end_ids), *rows)
        batch_size = self.settings.batch_size
        most_answers = max((len(prompt.requests) for prompt in prompts.values()), default=1)
        group_size = max(1, GROUP_BATCHES * batch_size // most_answers)  # prompts
        with (
            packed_weights(self.model),
            out_of_memory.explain_out_of_memory("generation_batch_size", batch_size, hint=out_of_memory.IDENTITY),
        ):
            by_prompt = in_batches(
                self.stage,
                self.name,
                list(prompts.values()),
                generator.generate,
                size=group_size,
                content=content,
                doing="generating answers",
                unit="answers",
                num_units=lambda prompt: len(prompt.requests),
            )
        return list(itertools.chain.from_iterable(by_prompt))


class GroupGenerator:
    """Generates the answers to a group of prompts."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: SamplingSettings,
        *,
        end_ids: set[int],
        longest: int,
    ) -> None:
        """`longest` is the length of the longest prompt with its answer, in tokens."""
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.end_ids, self.longest = end_ids, longest

    @cached_property
    def shares_prompts(self) -> bool:
        """Whether the model is supported by continuous batching: tried once, at the first group that is not kept."""
        is_supported = supports_shared_prompts(self.model, longest=self.longest)
        if not is_supported:
            notices.warn(
                log, "this model's attention is not supported by the fast sampler; falling back to generate(), slower"
            )
        return is_supported

    def generate(self, prompts: Sequence[PromptRequests]) -> list[list[GeneratedAnswer]]:
        """The answers to each prompt, in the order of its requests."""
        requests = self._decoding_requests(prompts)
        decode = self.by_continuous_batching if self.shares_prompts else self.by_generate
        answers = iter([self._to_answer(ids) for ids in decode([prompt.ids for prompt in prompts], requests)])
        return [list(itertools.islice(answers, len(prompt.requests))) for prompt in prompts]

    def _decoding_requests(self, prompts: Sequence[PromptRequests]) -> list[DecodingRequest]:
        return [
            DecodingRequest(
                number,
                self.settings.temperature_of(request),
                noise(self.settings.seed, request.prompt.prompt_id, request.k, self.settings.max_new_tokens),
            )
            for number, prompt in enumerate(prompts)
            for request in prompt.requests
        ]

    def by_continuous_batching(
        self, prompts: Sequence[list[int]], requests: Sequence[DecodingRequest]
    ) -> list[list[int]]:
        """The tokens of each answer, the end token included."""
        limits = SamplingLimits(
            max_new_tokens=self.settings.max_new_tokens,
            end_ids=self.end_ids,
            top_p=self.settings.top_p,
            num_slots=self.settings.batch_size,
        )
        return generate_answers(self.model, prompts, requests, limits)

    def by_generate(self, prompts: Sequence[list[int]], requests: Sequence[DecodingRequest]) -> list[list[int]]:
        """The same answers by transformers' generate(), whose batches last as long as their longest answer."""
        size = self.settings.batch_size
        answers: list[list[int]] = []
        for start in range(0, len(requests), size):
            answers += self._generate_batch(prompts, requests[start : start + size])
            progress.advance(len(requests[start : start + size]))
        return answers

    def stream(self, prompt: PromptRequests, streamer: BaseStreamer) -> GeneratedAnswer:
        """The answer to a prompt with one request, by generate(); `streamer` gets its tokens while it is generated."""
        (request,) = self._decoding_requests([prompt])
        (ids,) = self._generate_batch([prompt.ids], [request], streamer)
        return self._to_answer(ids)

    def _generate_batch(
        self,
        prompts: Sequence[list[int]],
        requests: Sequence[DecodingRequest],
        streamer: BaseStreamer | None = None,
    ) -> list[list[int]]:
        rows, pad, device = [prompts[one.prompt] for one in requests], self.tokenizer.pad_token_id, self.model.device
        width = max(map(len, rows))
        # Padding must be on the left: generate() continues from the last column.
        ids_BT = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        chooser = NoiseProcessor(
            torch.from_numpy(np.stack([one.noise_N for one in requests])).to(device),
            torch.tensor([one.temperature for one in requests], dtype=torch.float64, device=device),
            num_prompt_tokens=width,
            top_p=self.settings.top_p,
        )
        with torch.no_grad():
            output = self.model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=ids_BT.to(device),
                attention_mask=mask_BT.to(device),
                logits_processor=LogitsProcessorList([chooser]),
                do_sample=False,
                max_new_tokens=self.settings.max_new_tokens,
                eos_token_id=sorted(self.end_ids),
                pad_token_id=pad,
                streamer=streamer,
            )
        return [self._through_end_token(row) for row in output[:, width:].tolist()]

    def _through_end_token(self, row: list[int]) -> list[int]:
        end = next((place + 1 for place, token in enumerate(row) if token in self.end_ids), len(row))
        return row[:end]

    def _to_answer(self, ids: list[int]) -> GeneratedAnswer:
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return {"text": text, "ids": ids, "ended": ids[-1] in self.end_ids}


class NoiseProcessor(LogitsProcessor):
    """Leaves generate() one token for each row: the one that the uniform number of its position chooses."""

    def __init__(
        self, noise_BN: torch.Tensor, temperature_B: torch.Tensor, *, num_prompt_tokens: int, top_p: float
    ) -> None:
        self.noise_BN, self.temperature_B, self.start, self.top_p = noise_BN, temperature_B, num_prompt_tokens, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Tokens so far [B, T + generated], logits [B, V] -> 0 for the chosen token, minus infinity elsewhere."""
        noise_B = self.noise_BN[:, input_ids.shape[1] - self.start]
        chosen_B = choose(scores, noise_B, self.temperature_B, top_p=self.top_p)
        return torch.full_like(scores, -math.inf).scatter(1, chosen_B[:, None], 0.0)
