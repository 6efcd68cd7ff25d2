"""The models of a conversation: each continues from its own answers, which are printed while they are generated."""

from collections.abc import Callable
from typing import Self

from transformers import TextStreamer

from commands.generate import PURPOSE
from data_schemas.rows import Message, Prompt
from data_schemas.text import printable
from engine.judging.scoring import encode_for_scoring, load_scorer, turns_of
from engine.judging.shared_scoring import ScoringSettings
from engine.models.loading import check_is_policy, check_is_reward_model, load_causal, name_of
from engine.models.policy_tokenizer import load_policy_tokenizer
from engine.runtime.arguments import GenerationArguments
from engine.runtime.world import device_of
from engine.sampling.answers import SampleRequest, SamplingSettings, end_tokens
from engine.sampling.transformers_engine import GroupGenerator, PromptRequests
from engine.tokens.template import encode_prompt

Reward = Callable[[Prompt, str], float]


class _Streamer(TextStreamer):
    """Prints an answer while it is generated; control characters are printed as escapes, not sent to the terminal."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        super().on_finalized_text(printable(text), stream_end)


class Speaker:
    """A model and its side of the conversation: what it was asked, and what it answered itself."""

    def __init__(self, name: str, generator: GroupGenerator, system: str | None) -> None:
        self.name, self.generator, self.system = name, generator, system
        self.dialog = self.opening()

    @classmethod
    def load(cls, path: str, sampling: GenerationArguments, system: str | None) -> Self:
        """The speaker with its model on this process's device. Raises UserError for what is not a prepared policy."""
        tokenizer = load_policy_tokenizer(path)
        check_is_policy(path)
        model = load_causal(path, dtype=sampling.dtype)
        model.to(device_of(sampling.use_cpu)).eval()  # pyright: ignore[reportArgumentType]
        settings = SamplingSettings.of(sampling, purpose=PURPOSE)
        end_ids = end_tokens(model, tokenizer)
        return cls(name_of(path), GroupGenerator(model, tokenizer, settings, end_ids=end_ids, longest=0), system)

    def opening(self) -> list[Message]:
        """The conversation before the first question: the system prompt, where there is one."""
        return [Message(role="system", content=self.system)] if self.system else []

    def forget(self) -> None:
        """Starts another conversation."""
        self.dialog = self.opening()

    def answer(self, question: str) -> tuple[Prompt, str]:
        """Prints the answer to the question, which continues the conversation; returns it with its prompt.

        Where it is empty, or interrupted by Ctrl-C, the question is forgotten.
        """
        tokenizer, asked = self.generator.tokenizer, [*self.dialog, Message(role="user", content=question)]
        prompt = Prompt(prompt=asked)
        requests = PromptRequests(encode_prompt(tokenizer, asked), [SampleRequest(prompt, 0)])
        streamer = _Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)  # pyright: ignore[reportArgumentType]
        text = self.generator.stream(requests, streamer)["text"]
        if turns := turns_of(text):
            self.dialog = [*asked, *turns]
        return prompt, text


def load_reward_of(path: str, sampling: GenerationArguments) -> Reward:
    """The reward of an answer by this reward model. Raises UserError for what is not one."""
    check_is_reward_model(path)
    tokenizer, scorer = load_scorer(path, ScoringSettings.of(sampling))

    def reward(prompt: Prompt, text: str) -> float:
        row = encode_for_scoring(tokenizer, (prompt, turns_of(text)))
        assert row is not None, "only answers that are not empty are scored"
        return scorer.rewards([[row]])[0]

    return reward
