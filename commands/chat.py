"""Talks with a model, or with two side by side: one answer with --prompt, a conversation without.

alignloop chat MODEL_DIR --prompt "What is the capital of France?"
alignloop chat MODEL_DIR --with OTHER_DIR --reward_model REWARD_MODEL_DIR
"""

import argparse
import codecs
import contextlib
import io
import sys
from collections.abc import Callable
from typing import Self

from transformers import TextStreamer, logging

from commands.generate import PURPOSE
from commands.program import options_of, parser_for
from data_schemas.errors import ConfigError, UserError
from data_schemas.rows import Message, Prompt
from data_schemas.text import printable
from data_schemas.unexpected import guarded
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

    def __init__(self, name: str, generator: GroupGenerator, dialog: list[Message]) -> None:
        self.name, self.generator, self.dialog = name, generator, dialog

    @classmethod
    def load(cls, path: str, sampling: GenerationArguments, system: str | None) -> Self:
        """The speaker with its model on this process's device. Raises UserError for what is not a prepared policy."""
        tokenizer = load_policy_tokenizer(path)
        check_is_policy(path)
        model = load_causal(path, dtype=sampling.dtype)
        model.to(device_of(sampling.use_cpu)).eval()  # pyright: ignore[reportArgumentType]
        settings = SamplingSettings.of(sampling, purpose=PURPOSE)
        end_ids = end_tokens(model, tokenizer)
        dialog = [Message(role="system", content=system)] if system else []
        return cls(name_of(path), GroupGenerator(model, tokenizer, settings, end_ids=end_ids, longest=0), dialog)

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


def main() -> int:
    parser = parser_for("chat", __doc__)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("--with", dest="other", help="a second model, which answers too")
    parser.add_argument("--reward_model", help="a reward model, whose score of each answer is printed")
    parser.add_argument("--prompt", help="one question; its answer is printed and the program ends")
    parser.add_argument("--system", help="a system prompt")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return talk(arguments)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2


def read_utf8_where_the_terminal_has_ascii() -> None:
    """ASCII is what Python assumes of a terminal without a locale; what is typed there is UTF-8 as a rule."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        is_ascii = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if is_ascii else sys.stdin.encoding, errors="replace")


def talk(arguments: argparse.Namespace) -> int:
    """Returns the exit code. Raises UserError for a wrong option or a folder that holds no prepared model."""
    _, sampling = options_of("chat", arguments)
    paths = [arguments.model, *([arguments.other] if arguments.other else [])]
    speakers = [Speaker.load(path, sampling, arguments.system) for path in paths]
    reward = load_reward_of(arguments.reward_model, sampling) if arguments.reward_model else None
    if arguments.prompt is not None:
        if not arguments.prompt.strip():
            raise ConfigError("--prompt is empty")
        ask(speakers, arguments.prompt, reward)
        return 0
    read_utf8_where_the_terminal_has_ascii()
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 # pyright: ignore[reportUnusedImport]  # input() then edits lines and has a history
    print("(an empty line ends the conversation)")
    while True:
        try:
            text = input("you: ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if not text:
            return 0
        try:
            ask(speakers, text, reward)
        except KeyboardInterrupt:
            print("\n(stopped: this answer is not part of the conversation)")


def ask(speakers: list[Speaker], question: str, reward: Reward | None) -> None:
    """Prints the answer of each speaker, with its name where there are several, and its reward."""
    for speaker in speakers:
        if len(speakers) > 1:
            print(f"{printable(speaker.name)}: ", end="", flush=True)
        prompt, text = speaker.answer(question)
        if not text.strip():
            print("(no answer)")
        elif reward is not None:
            print(f"(reward {reward(prompt, text):.3f})")


if __name__ == "__main__":
    sys.exit(guarded(main))
