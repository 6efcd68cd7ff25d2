"""Renders messages by the chat template, which is a program that comes with the model: under limits of time and memory.

A template that loops, or that builds gigabytes of text, ends in one ConfigError (`TemplateLimit`) and not in a process
that hangs or is killed. The clock of the limit is the process's own CPU time, so a suspended process is not at fault.
"""

import contextlib
import datetime
import functools
import logging
import os
import re
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
import jinja2.nodes
from transformers import PreTrainedTokenizerBase

from data_schemas.errors import ConfigError
from data_schemas.rows import Message, for_template

MAX_SECONDS = 5.0  # CPU time of one rendering; a dialog of a million characters takes about 0.01
MAX_BYTES = 2 << 30  # that one rendering may add to the process's address space
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PROBE = "zqprobe"  # a word that no template writes itself
CLOCK = "strftime_now"  # the function by which a template reads the clock
DEFAULT_DATE = "2024-07-26"  # where no date is set: the one that Llama 3.1's template writes
_CLOCK_CALL = re.compile(CLOCK + r"\(\s*(?:'([^'\\]*)'|\"([^\"\\]*)\")\s*\)")
_CLOCK_TEST = re.compile(CLOCK + r"\s+is\s+(not\s+)?(defined|undefined|callable|none)\b")
RANDOM = "random"  # a filter of Jinja
RANDOM_TEXT = "lipsum"  # a function of Jinja
_RENDERED_TWICE: set[str] = set()  # templates that rendered the first dialog of this process twice in the same way
Tools = list[dict[str, Any]]  # JSON schemas of functions, as chat templates take them
log = logging.getLogger(__name__)


class TemplateLimit(ConfigError):
    """The template takes too long or too much memory, or is random: an error of the template, whatever the row."""


class _TookTooLong(BaseException):
    """Not an Exception: the template engine's own handlers must not catch it."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
    generation_prompt: bool = False,
) -> str:
    """The text of the dialog as the model reads it. Raises ConfigError where the template refuses the dialog, and
    TemplateLimit where it takes too long or too much memory, or renders the same dialog differently each time."""
    template = str(tokenizer.chat_template)
    _inspect(template)
    try:
        text = _render(tokenizer, messages, tools, generation_prompt=generation_prompt)
        if template not in _RENDERED_TWICE:
            held = for_template(messages)  # other objects than in the first rendering, whose memory it may reuse
            again = _render(tokenizer, messages, tools, generation_prompt=generation_prompt)
            if held and again != text and not writes_date(template):
                raise TemplateLimit(
                    "the chat template renders the same dialog differently each time; set another chat_template"
                )
            _RENDERED_TWICE.add(template)
        return text
    except Exception as error:  # a template is a program, which may raise anything
        if isinstance(error, TemplateLimit):
            raise
        roles = ", ".join(message.role for message in messages)
        said = f"the chat template refuses a dialog of {roles}: {' '.join(str(error).split())}"
        if messages[0].role == "system" and len(messages) > 1:
            with contextlib.suppress(Exception):
                _render(tokenizer, messages[1:], tools, generation_prompt=generation_prompt)
                said += (
                    "; it accepts the dialog without its system message, so it has no system role: leave system "
                    "messages out, or run prepare_base with a chat_template that has one"
                )
        raise ConfigError(said) from error


def refuses_system(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why the template supports no system message before a question; None where it renders one."""
    try:
        text = render(
            tokenizer,
            [Message(role="system", content=PROBE), Message(role="user", content="question")],
            generation_prompt=True,
        )
    except TemplateLimit:
        raise
    except ConfigError as error:
        return str(error)
    return None if PROBE in text else "the chat template leaves out the system message"


def writes_date(template: object) -> bool:
    """Whether a template writes the current date: its text would be another one on another day."""
    return bool(re.search(CLOCK, _CLOCK_TEST.sub("", str(template))))


def with_fixed_date(template: str, date: str) -> str:
    """The template with this date (YYYY-MM-DD) in place of the current one.

    The date is written into the text itself, so that the token contract contains it and other programs, as vLLM, render
    the same. Raises ConfigError where the template uses the clock in another way than by formatting it.
    """
    day = datetime.date.fromisoformat(date)

    def formatted(match: re.Match[str]) -> str:
        return repr(day.strftime(match[1] if match[1] is not None else match[2]))

    fixed = _CLOCK_CALL.sub(formatted, template)
    if writes_date(fixed):
        raise ConfigError(
            f"the chat template reads the clock ({CLOCK}) in a way that can't be replaced by a fixed date; set "
            "prepare_base.chat_template to a template without it"
        )
    return fixed


@functools.lru_cache(maxsize=8)
def _inspect(template: str) -> None:
    """Looks at a template once: warns of one that writes a date, and refuses one that is random or whose cost no limit
    could stop."""
    if writes_date(template):
        log.warning(
            "the chat template writes today's date, so the same rows and prompts are other tokens on another day; "
            "run prepare_base on the model, which writes one date into the template (template_date)"
        )
    try:
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
            re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
        )
    except jinja2.TemplateError:
        return  # rendering reports it
    if parsed.find(jinja2.nodes.Pow):
        # One multiplication of huge integers can't be interrupted, and constants are computed when it is compiled.
        raise TemplateLimit(
            "the chat template computes a power (**), which may take forever; set another chat_template"
        )
    if _is_random(parsed):
        raise TemplateLimit(
            "the chat template is random: it renders the same dialog differently; set another chat_template"
        )


def _is_random(template: jinja2.nodes.Template) -> bool:
    """Whether a template uses Jinja's random filter, also as `map('random')`, or its random text."""
    for used in template.find_all(jinja2.nodes.Filter):
        arguments = [node.value for node in used.args if isinstance(node, jinja2.nodes.Const)]
        if RANDOM in (used.name, *arguments):
            return True
    return any(name.name == RANDOM_TEXT for name in template.find_all(jinja2.nodes.Name))


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools | None, *, generation_prompt: bool
) -> str:
    try:
        with _limits():
            return str(
                tokenizer.apply_chat_template(
                    for_template(messages),
                    tools=tools,  # pyright: ignore[reportArgumentType]
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                )
            )
    except _TookTooLong:
        raise TemplateLimit(
            f"the chat template takes more than {MAX_SECONDS:g} seconds for one dialog; set another chat_template"
        ) from None
    except MemoryError:
        raise TemplateLimit(
            f"the chat template takes more than {MAX_BYTES >> 30} GiB of memory for one dialog; set another "
            "chat_template"
        ) from None


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Raises _TookTooLong or MemoryError inside. Only in the main thread, since only it receives signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    is_over = False

    def on_alarm(number: int, frame: object) -> None:
        if not is_over:  # a signal that arrives late must not interrupt the restoring of the limits
            raise _TookTooLong

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = _address_space() + MAX_BYTES
    is_lower = soft == resource.RLIM_INFINITY or allowed < soft
    before = signal.signal(signal.SIGVTALRM, on_alarm)
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)
    try:
        if is_lower:
            resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
        yield
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        if is_lower:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    """Bytes of this process's address space; more than any machine has where the system does not tell."""
    try:
        file = os.open("/proc/self/statm", os.O_RDONLY)  # read at each rendering, for which a Path is slow
    except OSError:
        return 1 << 46
    try:
        return int(os.read(file, 64).split()[0]) * PAGE_BYTES
    finally:
        os.close(file)
