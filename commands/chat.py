"""Talks with a model: one answer with --prompt, a conversation without. An empty line or Ctrl-D ends it.

alignloop chat MODEL_DIR --prompt "What is the capital of France?"
"""

import argparse
import codecs
import io
import sys

import torch
from transformers import TextStreamer, logging

from data_schemas.errors import ConfigError, UserError
from data_schemas.rows import Message
from data_schemas.stage_keys import check_value, stages
from data_schemas.text import printable
from data_schemas.unexpected import guarded
from engine.models.loading import load_causal, load_tokenizer
from engine.runtime.process import trust_code
from engine.runtime.world import device_of
from engine.tokens.template import encode_prompt


class _Streamer(TextStreamer):
    """Prints an answer while it is generated; control characters are printed as escapes, not sent to the terminal."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        super().on_finalized_text(printable(text), stream_end)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("--prompt", help="one question; its answer is printed and the program ends")
    parser.add_argument("--system", help="a system prompt")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: always the most probable token")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="longest answer, in tokens")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    parser.add_argument("--use_cpu", action="store_true", help="run on the CPU even if there is a GPU")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model's files")
    arguments = parser.parse_args()
    trust_code(arguments.trust_remote_code)
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
    for name in ("temperature", "max_new_tokens"):
        check_value(getattr(arguments, name), stages()["evaluate_policy"].keys[name], where=f"--{name}")
    tokenizer = load_tokenizer(arguments.model)
    model = load_causal(arguments.model).to(device_of(arguments.use_cpu)).eval()  # pyright: ignore[reportArgumentType]
    torch.manual_seed(arguments.seed)
    dialog = [Message(role="system", content=arguments.system)] if arguments.system else []

    def answer() -> str:
        ids = torch.tensor([encode_prompt(tokenizer, dialog)], device=model.device)
        sampling = (
            {"do_sample": True, "temperature": arguments.temperature} if arguments.temperature else {"do_sample": False}
        )
        output = model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=arguments.max_new_tokens,
            streamer=_Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True),  # pyright: ignore[reportArgumentType]
            **sampling,
        )
        return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))

    if arguments.prompt is not None:
        if not arguments.prompt.strip():
            raise ConfigError("--prompt is empty")
        dialog.append(Message(role="user", content=arguments.prompt))
        answer()
        return 0
    read_utf8_where_the_terminal_has_ascii()
    print("(an empty line ends the conversation)")
    while True:
        try:
            text = input("you: ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if not text:
            return 0
        dialog.append(Message(role="user", content=text))
        reply = answer()
        if not reply.strip():
            print("(no answer)")
            dialog.pop()
            continue
        dialog.append(Message(role="assistant", content=reply))


if __name__ == "__main__":
    sys.exit(guarded(main))
