"""Samples answers from a model in memory, such as the policy between two optimizer steps.

The same decoder as that of the generating stages (engine/sampling). The noise of an answer depends only on (seed,
purpose, prompt, k), and prompts are divided into groups before the groups are divided among processes. Nothing is kept
on disk: a window that is repeated after an interruption has the same answers.
"""

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_schemas.rows import Prompt
from engine.runtime import out_of_memory, progress, timing, world
from engine.sampling.answers import Answer, GeneratedAnswer, SampleRequest, SamplingSettings, end_tokens
from engine.sampling.batching import EncodedRequest, encode_requests
from engine.sampling.packed_weights import packed_weights
from engine.sampling.transformers_engine import GROUP_BATCHES, GroupGenerator, PromptRequests

# A context in which a model can be called without its wrappers.
ReadyModel = Callable[[], AbstractContextManager[PreTrainedModel]]


class Rollouts(ABC):
    """Answers to prompts from a model in training. The prompts are divided into groups, and those among the processes,
    so that a process's own requests depend on nothing but the prompts."""

    settings: SamplingSettings
    tokenizer: PreTrainedTokenizerBase
    group_batches: int  # batches of answers in a group

    @timing.part("generate")
    def sample(self, prompts: Sequence[Prompt], *, num_answers: int, purpose: str) -> list[list[Answer]]:
        """`num_answers` answers to each prompt, in order, with the noise of this purpose. All processes call this.

        Raises StageError where the device's memory is full.
        """
        seed = f"{self.settings.seed}/{purpose}"
        requests = [SampleRequest(prompt, k) for prompt in prompts for k in range(num_answers)]
        encoded = encode_requests(self.tokenizer, requests)
        by_prompt = [encoded[start : start + num_answers] for start in range(0, len(requests), num_answers)]
        order = sorted(range(len(prompts)), key=lambda place: (len(by_prompt[place][0].ids), prompts[place].prompt_id))
        size = max(1, self.group_batches * self.settings.batch_size // num_answers)  # prompts
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        own = groups[world.rank() :: world.num_processes()]
        with progress.activity("generating answers", total=sum(map(len, own)) * num_answers, unit="answers"):
            found = self.generate([[by_prompt[place] for place in group] for group in own], seed=seed)
        answers = dict(gather_object(list(zip(itertools.chain.from_iterable(own), found, strict=True))))
        return [
            [Answer(prompt=prompt, k=k, **answer) for k, answer in enumerate(answers[place])]
            for place, prompt in enumerate(prompts)
        ]

    @abstractmethod
    def generate(
        self, groups: Sequence[Sequence[Sequence[EncodedRequest]]], *, seed: str
    ) -> list[Sequence[GeneratedAnswer]]:
        """The answers to this process's groups of prompts, prompt by prompt; a prompt is one request for each answer.
        All processes call this, also those without a group."""

    @abstractmethod
    def close(self) -> None:
        """Ends the processes that the sampler has started."""


class LiveSampler(Rollouts):
    """Samples from the model that `ready_model` yields."""

    group_batches = GROUP_BATCHES

    def __init__(
        self,
        ready_model: ReadyModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: SamplingSettings,
        *,
        longest: int,
        packs_weights: bool,
    ) -> None:
        """`longest` is the length of the longest prompt with its answer, in tokens. Under DeepSpeed the weights
        are views of its buffers and must not be packed."""
        self.ready_model, self.tokenizer, self.settings = ready_model, tokenizer, settings
        self.longest, self.packs_weights = longest, packs_weights
        self._generator: GroupGenerator | None = None

    def generate(
        self, groups: Sequence[Sequence[Sequence[EncodedRequest]]], *, seed: str
    ) -> list[Sequence[GeneratedAnswer]]:
        settings = replace(self.settings, seed=seed)
        with (
            self.ready_model() as model,
            packed_weights(model) if self.packs_weights else contextlib.nullcontext(),
            out_of_memory.explain_out_of_memory(
                "generation_batch_size", settings.batch_size, hint=out_of_memory.IDENTITY
            ),
        ):
            generator = self._generator_for(model, settings)
            asked = [[PromptRequests(one[0].ids, [each.request for each in one]) for one in group] for group in groups]
            return [answers for group in asked for answers in generator.generate(group)]

    def close(self) -> None:
        pass

    def _generator_for(self, model: PreTrainedModel, settings: SamplingSettings) -> GroupGenerator:
        """One generator for all windows, which tries once whether it supports the model."""
        if self._generator is None:
            ends = end_tokens(model, self.tokenizer)
            self._generator = GroupGenerator(model, self.tokenizer, settings, end_ids=ends, longest=self.longest)
        self._generator.model, self._generator.settings = model, settings
        return self._generator


def flat(answers: Sequence[Sequence[Answer]]) -> list[Answer]:
    """The answers of all prompts, prompt by prompt."""
    return list(itertools.chain.from_iterable(answers))
