"""Samples answers from a model in memory, such as the policy between two optimizer steps.

The same decoder as that of the generating stages (engine/sampling). The noise of an answer depends only on (seed,
purpose, prompt, k), and prompts are divided into groups before the groups are divided among processes. Nothing is kept
on disk: a window that is repeated after an interruption has the same answers.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_schemas.rows import Prompt
from engine.runtime import out_of_memory, progress, timing, world
from engine.sampling.answers import Answer, GeneratedAnswer, SampleRequest, SamplingSettings, end_tokens
from engine.sampling.batching import encode_requests
from engine.sampling.packed_weights import packed_weights
from engine.sampling.transformers_engine import GROUP_BATCHES, GroupGenerator, PromptRequests

# A context in which a model can be called without its wrappers.
ReadyModel = Callable[[], AbstractContextManager[PreTrainedModel]]


class LiveSampler:
    """Samples from the model that `ready_model` yields."""

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

    @timing.part("generate")
    def sample(self, prompts: Sequence[Prompt], *, num_answers: int, purpose: str) -> list[list[Answer]]:
        """`num_answers` answers to each prompt, in order, with the noise of this purpose. All processes call this.

        Raises StageError where the device's memory is full.
        """
        settings = replace(self.settings, seed=f"{self.settings.seed}/{purpose}")
        requests = [SampleRequest(prompt, k) for prompt in prompts for k in range(num_answers)]
        encoded = encode_requests(self.tokenizer, requests)
        by_prompt = [
            PromptRequests(encoded[start].ids, requests[start : start + num_answers])
            for start in range(0, len(requests), num_answers)
        ]
        order = sorted(range(len(prompts)), key=lambda place: (len(by_prompt[place].ids), prompts[place].prompt_id))
        size = max(1, GROUP_BATCHES * settings.batch_size // num_answers)  # prompts
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        own = groups[world.rank() :: world.num_processes()]
        generated: list[tuple[int, list[GeneratedAnswer]]] = []
        with (
            self.ready_model() as model,
            packed_weights(model) if self.packs_weights else contextlib.nullcontext(),
            out_of_memory.explain_out_of_memory(
                "generation_batch_size", settings.batch_size, hint=out_of_memory.IDENTITY
            ),
            progress.activity("generating answers", total=sum(map(len, own)) * num_answers, unit="answers"),
        ):
            generator = self._generator_for(model, settings)
            for group in own:
                generated += zip(group, generator.generate([by_prompt[place] for place in group]), strict=True)
        answers = dict(gather_object(generated))
        return [
            [Answer(prompt=prompt, k=k, **answer) for k, answer in enumerate(answers[place])]
            for place, prompt in enumerate(prompts)
        ]

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
