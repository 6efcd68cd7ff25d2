"""Scores of answers: by a function, or by a reward model."""

import contextlib
import inspect
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from data_schemas.errors import ConfigError
from data_schemas.rows import Message, Prompt, for_template
from engine.judging.shared_scoring import PromptAndAnswer, SharedScorer, in_groups
from engine.models.loading import identity_of, load_reward, load_tokenizer
from engine.runtime import preemption, timing
from engine.runtime.functions import find_function, package_hash
from engine.runtime.journal import in_batches
from engine.runtime.stage import Stage
from engine.tokens.template import encode_answer

FUNCTION_BATCH = 64  # answers that a function scores between two files of results


@dataclass(frozen=True)
class ScoringItem:
    """What is to be scored."""

    prompt: Prompt
    text: str
    ended: bool


@timing.part("score")
def score_by_function(
    stage: Stage, name: str, reference: str, answered: Sequence[ScoringItem], *, timeout: float
) -> list[float]:
    """`module:function(prompt, answer, ended)` for each. Raises ConfigError, naming the answer, where the function
    raises, takes longer than `timeout` seconds, or gives no finite number."""
    function = find_function(reference)

    def score(items: Sequence[ScoringItem]) -> list[float]:
        scores = []
        for item in items:
            if preemption.is_requested():  # a batch of calls may take an hour
                raise preemption.Preempted("finished batches of calls are kept")
            scores.append(_call(reference, function, item, timeout=timeout))
        return scores

    rows = ((item.prompt.prompt_id, item.text, item.ended) for item in answered)
    return in_batches(
        stage, name, answered, score, size=FUNCTION_BATCH, content=(reference, *_sources(reference, function), *rows)
    )


def _sources(reference: str, function: Callable[..., Any]) -> list[str]:
    """What the function's scores depend on: the text of its module, and the hash of the package that it is in."""
    return [_source(function), *filter(None, [package_hash(reference)])]


def _source(function: Callable[..., Any]) -> str:
    """The text of the module that a function is in; of an object that can be called, of its class."""
    of: Any = inspect.unwrap(function)
    file = inspect.getsourcefile(of if inspect.isfunction(of) else type(of))
    return Path(file).read_text(encoding="utf-8") if file else ""


def _call(reference: str, function: Callable[..., Any], item: ScoringItem, *, timeout: float) -> float:
    said = f"{reference}(…, {item.text[:80]!r}, {item.ended})"
    try:
        with _at_most(timeout):
            score = function(for_template(item.prompt.prompt), item.text, item.ended)
    except _TookTooLong:
        raise ConfigError(f"{said} took longer than function_timeout={timeout:g} seconds") from None
    except Exception as error:
        raise ConfigError(f"{said} raised {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise ConfigError(f"{said} gave {score!r}, expected a finite number")
    return float(score)


class _TookTooLong(BaseException):
    """Not an Exception: the function's own handlers must not catch it."""


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises _TookTooLong after so many seconds, also out of a loop or a wait that would never end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # a signal reaches the main thread alone
        return

    def ring(number: int, frame: object) -> None:
        raise _TookTooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@timing.part("score")
def score_by_reward_model(
    stage: Stage,
    name: str,
    path: str,
    answered: Sequence[ScoringItem],
    *,
    device: torch.device,
    dtype: str,
    batch_size: int,
) -> list[float]:
    """The reward model's score of each answer; an empty answer scores minus infinity's stand-in, the lowest of all."""
    tokenizer = load_tokenizer(path)
    model = load_reward(path, dtype=dtype).to(device).eval()  # pyright: ignore[reportArgumentType]
    rows = [_encode(tokenizer, item) for item in answered]
    numbers = [number for number, row in enumerate(rows) if row]
    found = in_groups(
        stage,
        name,
        [row for row in rows if row],
        SharedScorer(model, is_reward_model=True).rewards,
        batch_size=batch_size,
        content=(identity_of(path), dtype),
    )
    if len(set(found)) == 1 and len({str(row) for row in rows if row}) > 1:
        raise ConfigError(
            f"the reward model {path} gives each of {len(found)} different answers the score {found[0]:.4g}: its "
            "rewards have collapsed to a constant; train it again with a lower learning_rate"
        )
    lowest = min(found, default=0.0)
    scores = [lowest] * len(rows)
    for number, value in zip(numbers, found, strict=True):
        scores[number] = value
    return scores


def _encode(tokenizer: PreTrainedTokenizerBase, item: ScoringItem) -> PromptAndAnswer | None:
    if not item.text.strip():
        return None
    answer = [Message(role="assistant", content=item.text)]
    return encode_answer(tokenizer, item.prompt.prompt, answer, tools=item.prompt.tools)
