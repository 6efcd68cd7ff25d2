"""Talks with a model, or with two side by side: one answer with --prompt, a conversation without.

alignloop chat MODEL_DIR --prompt "What is the capital of France?"
alignloop chat MODEL_DIR --with OTHER_DIR --reward_model REWARD_MODEL_DIR

In a conversation, /new starts another one, and an empty line ends it. Where stdin is a file or a pipe, each line is a
turn of one conversation, empty lines are skipped, and the questions are printed before their answers.
"""

import argparse
import codecs
import contextlib
import io
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from commands.program import displayed, imports, options_of, parser_for
from data_schemas.errors import ConfigError, UserError
from data_schemas.text import printable
from data_schemas.unexpected import guarded

if TYPE_CHECKING:
    from commands.speakers import Reward, Speaker

NEW = "/new"
HINT = f"(an empty line ends the conversation, and {NEW} starts another)"
HINT_OF_A_PIPE = (
    f"(the lines form one conversation, in which {NEW} starts another and empty lines are skipped; "
    "`alignloop generate` answers independent prompts)"
)


def main() -> int:
    parser = parser_for("chat", __doc__)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("--with", dest="other", help="a second model, which answers too")
    parser.add_argument("--reward_model", help="a reward model, whose score of each answer is printed")
    parser.add_argument("--prompt", help="one question; its answer is printed and the program ends")
    parser.add_argument("--system", help="a system prompt")
    arguments = parser.parse_args()
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
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise ConfigError("--prompt is empty")
    with displayed(Console(stderr=True, highlight=False)):
        speakers, reward = load(arguments)
    if arguments.prompt is not None:
        ask(speakers, arguments.prompt, reward, named=len(speakers) > 1)
        return 0
    read_utf8_where_the_terminal_has_ascii()
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 # pyright: ignore[reportUnusedImport]  # input() then edits lines and has a history
    converse(speakers, reward, is_typed=sys.stdin.isatty())
    return 0


def load(arguments: argparse.Namespace) -> "tuple[list[Speaker], Reward | None]":
    """The models that answer, and the reward model. Raises UserError."""
    _, sampling = options_of("chat", arguments)
    with imports():
        from commands.speakers import Speaker, load_reward_of

    paths = [arguments.model, *([arguments.other] if arguments.other else [])]
    speakers = [Speaker.load(path, sampling, arguments.system) for path in paths]
    return speakers, load_reward_of(arguments.reward_model, sampling) if arguments.reward_model else None


def converse(speakers: list["Speaker"], reward: "Reward | None", *, is_typed: bool) -> None:
    """Answers one line after another until they end. Lines that are not typed are printed, and may be empty."""
    print(HINT if is_typed else HINT_OF_A_PIPE)
    while True:
        try:
            text = input("you: " if is_typed else "").strip()
        except (EOFError, KeyboardInterrupt):
            print(end="\n" if is_typed else "")
            return
        if not text and is_typed:
            return
        if not text:
            continue
        if not is_typed:
            print(f"you: {printable(text)}", flush=True)
        if text == NEW:
            for speaker in speakers:
                speaker.forget()
            print("(a new conversation)")
            continue
        try:
            ask(speakers, text, reward, named=True)
        except KeyboardInterrupt:
            print("\n(stopped: this answer is not part of the conversation)")


def ask(speakers: list["Speaker"], question: str, reward: "Reward | None", *, named: bool) -> None:
    """Prints the answer of each speaker, `named` with its name, and its reward."""
    for speaker in speakers:
        if named:
            print(f"{printable(speaker.name)}: ", end="", flush=True)
        prompt, text = speaker.answer(question)
        if not text.strip():
            print("(no answer)")
        elif reward is not None:
            print(f"(reward {reward(prompt, text):.3f})")


if __name__ == "__main__":
    sys.exit(guarded(main))
