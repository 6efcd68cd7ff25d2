"""Scores answers with a user's function or with a reward model."""

import contextlib
import inspect
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from data_schemas.errors import ConfigError, StageError
from data_schemas.rows import Candidate, Candidates, Message, Prompt, for_template, tag_of
from data_schemas.text import shown
from engine.judging.shared_scoring import PromptAndAnswer, ScoringSettings, SharedScorer, in_groups
from engine.models.loading import check_is_reward_model, identity_of, load_reward, load_tokenizer
from engine.runtime import preemption, progress, timing
from engine.runtime.functions import find_function, package_hash
from engine.runtime.journal import in_batches
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer
from engine.tokens.template import encode_answer

PromptAndTurns = tuple[Prompt, Sequence[Message]]  # an answer of one turn or several; without turns it is empty
FUNCTION_BATCH = 64  # answers that a function scores between two files of the journal


class Scorer(Protocol):
    """Gives each answer a number; higher is better."""

    def __call__(self, name: str, answers: Sequence[Answer]) -> list[float]:
        """One score for each answer, in order. `name` is that of the journal."""
        ...


def score_by_prompt(scorer: Scorer, name: str, answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
    """The scores of answers that are grouped by prompt, in the same groups: all are scored in one call."""
    scores = iter(scorer(name, [answer for group in answers for answer in group]))
    return [[next(scores) for _ in group] for group in answers]


@dataclass(frozen=True)
class FunctionScorer:
    """Calls a user's function `module:function(prompt, answer, ended) -> score` for each answer.

    One with a parameter `reference` also gets the prompt's reference answer, or None.
    """

    stage: Stage
    reference: str  # module:function
    timeout: float  # seconds for each call

    @timing.part("score")
    def __call__(self, name: str, answers: Sequence[Answer]) -> list[float]:
        """Raises ConfigError, which names the answer, where the function raises, takes longer than `timeout`, or
        returns no finite number."""
        function = find_function(self.reference)
        is_given_reference = takes_reference(function)

        def score(batch: Sequence[Answer]) -> list[float]:
            scores = []
            for answer in batch:
                if preemption.is_requested():  # a batch of calls may take an hour
                    raise preemption.Preempted("finished batches of calls are kept")
                references = {"reference": answer.prompt.reference} if is_given_reference else {}
                scores.append(self._call(function, answer, references))
                progress.advance()
            return scores

        given = [(answer.prompt.reference,) if is_given_reference else () for answer in answers]
        rows = (
            (answer.prompt.prompt_id, answer.text, answer.ended, *reference)
            for answer, reference in zip(answers, given, strict=True)
        )
        content = (self.reference, *_sources(self.reference, function), *rows)
        doing = f"scoring by {self.reference}"
        return in_batches(
            self.stage, name, answers, score, size=FUNCTION_BATCH, content=content, doing=doing, unit="answers"
        )

    def _call(self, function: Callable[..., object], answer: Answer, references: Mapping[str, str | None]) -> float:
        call = f"{self.reference}(…, {answer.text[:80]!r}, {answer.ended})"
        try:
            with _time_limit(self.timeout):
                score = function(for_template(answer.prompt.prompt), answer.text, answer.ended, **references)
        except _TimedOut:
            raise ConfigError(f"{call} took longer than function_timeout={self.timeout:g} seconds") from None
        except Exception as error:
            raise ConfigError(f"{call} raised {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        number = finite_number(score)
        if number is None:
            raise ConfigError(f"{call} gave {shown(score)}, expected a finite number")
        return number


def finite_number(score: object) -> float | None:
    """The score as a float; None where it is no finite number.

    A number is all that has one value as a float, as numpy.float32(0.5) and a tensor of one element. Booleans and text
    are none, though float() takes them.
    """
    kind = str(getattr(score, "dtype", "float"))  # of an array or a tensor
    if isinstance(score, bool | str | bytes | bytearray) or not ("float" in kind or "int" in kind):
        return None
    try:
        item = getattr(score, "item", None)
        number = float(item() if callable(item) else score)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


def takes_reference(function: Callable[..., object]) -> bool:
    """Whether the function has a parameter `reference`."""
    try:
        return "reference" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a built-in function has no signature
        return False


def _sources(reference: str, function: Callable[..., object]) -> list[str]:
    """What the function's scores depend on: the text of its module, and the hash of the package that it is in."""
    return [_source(function), *filter(None, [package_hash(reference)])]


def _source(function: Callable[..., object]) -> str:
    """The text of the module that defines the function; of a callable object, of the module of its class."""
    unwrapped: Callable[..., object] = inspect.unwrap(function)
    file = inspect.getsourcefile(unwrapped if inspect.isfunction(unwrapped) else type(unwrapped))
    return Path(file).read_text(encoding="utf-8") if file else ""


class _TimedOut(BaseException):
    """Not an Exception: the function's own handlers must not catch it."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises _TimedOut after so many seconds, also in a loop or a wait that would never end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are only delivered to the main thread
        return

    def on_alarm(number: int, frame: object) -> None:
        raise _TimedOut

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class RewardModelScorer:
    """Scores answers with a reward model, which is loaded for each call and freed after it, or kept between calls."""

    stage: Stage
    path: str
    settings: ScoringSettings
    keeps_model: bool = False

    @cached_property
    def kept(self) -> tuple[PreTrainedTokenizerBase, SharedScorer]:
        """The tokenizer and the model that are kept between calls."""
        return load_scorer(self.path, self.settings)

    def __call__(self, name: str, answers: Sequence[Answer]) -> list[float]:
        """In reward units; see `score_turns`."""
        return self.score_turns(name, [(answer.prompt, turns_of(answer.text)) for answer in answers])

    @timing.part("score")
    def score_turns(self, name: str, answers: Sequence[PromptAndTurns]) -> list[float]:
        """The scores of answers that may have several turns, in reward units. An empty answer has the lowest of all
        scores, so that it never wins. Raises StageError where different answers all have the same score."""
        tokenizer, scorer = self.kept if self.keeps_model else load_scorer(self.path, self.settings)
        counted = progress.each(answers, "tokenizing answers", total=len(answers), unit="answers")
        encoded = [encode_for_scoring(tokenizer, answer) for answer in counted]
        rows = [row for row in encoded if row]
        rewards = in_groups(
            self.stage,
            name,
            rows,
            scorer.rewards,
            batch_size=self.settings.batch_size,
            content=(identity_of(self.path), self.settings.dtype),
            doing="scoring by the reward model",
        )
        if len(set(rewards)) == 1 and len({str(row) for row in rows}) > 1:
            raise StageError(
                f"the reward model {self.path} gives each of {len(rewards)} different answers the score "
                f"{rewards[0]:.4g}: its rewards have collapsed to a constant; train it again with a lower learning_rate"
            )
        lowest, in_order = min(rewards, default=0.0), iter(rewards)
        return [next(in_order) if row else lowest for row in encoded]


def turns_of(text: str) -> list[Message]:
    """The turn of an answer that is only text; none where it is empty."""
    return [Message(role="assistant", content=text)] if text.strip() else []


def load_scorer(path: str, settings: ScoringSettings) -> tuple[PreTrainedTokenizerBase, SharedScorer]:
    """The tokenizer and the model of a reward model's folder or hub name. Raises DataError for another model."""
    check_is_reward_model(path)
    tokenizer = load_tokenizer(path)
    model = load_reward(path, dtype=settings.dtype)
    model.to(settings.device)  # pyright: ignore[reportArgumentType]
    return tokenizer, SharedScorer(model.eval(), is_reward_model=True)


def encode_for_scoring(tokenizer: PreTrainedTokenizerBase, answer: PromptAndTurns) -> PromptAndAnswer | None:
    """The tokens of the prompt and the answer; None for an empty answer."""
    prompt, turns = answer
    if not turns:
        return None
    return encode_answer(tokenizer, prompt.prompt, turns, tools=prompt.tools)


def scored_candidates(answers: Sequence[Answer], scores: Sequence[float | None]) -> Candidates:
    """The row of a prompt's answers, at least one, with their scores; None: nothing scored the answer."""
    prompt = answers[0].prompt
    return Candidates(
        prompt=prompt.prompt,
        prompt_id=prompt.prompt_id,
        group_id=prompt.group_id,
        tools=prompt.tools,
        **tag_of(prompt),
        candidates=[
            Candidate(
                text=answer.text,
                k=answer.k,
                num_tokens=len(answer.ids),
                ended=answer.ended,
                score=score,
                policy=answer.policy,
            )
            for answer, score in zip(answers, scores, strict=True)
        ],
    )
