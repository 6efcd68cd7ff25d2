"""The judge of an assessment: scores of single answers by a task or a function, or an LLM's comparisons of two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from data_schemas.assessment import JudgedTask
from data_schemas.intervals import paired_interval
from data_schemas.reading import ONE_FILE_ADVICE, read_prompts
from data_schemas.rows import Prompt
from engine.judging.comparison import wins
from engine.judging.llm_judge import LLMJudge
from engine.judging.paired_evaluation import points_against
from engine.judging.scoring import Scorer
from engine.sampling.answers import Answer
from engine.tasks.function_calls import read_function_calls
from engine.tasks.grades import Interval, Points, change_of
from engine.tasks.gsm8k import read_gsm8k
from engine.tasks.ifeval import read_ifeval
from engine.tasks.questions import Question

READERS = {"ifeval": read_ifeval, "gsm8k": read_gsm8k, "function_calls": read_function_calls}


class Panel(Protocol):
    """Compares candidates by their answers to the same instructions."""

    @property
    def title(self) -> str:
        """Who judges, as the table names it."""
        ...

    def score(self, name: str) -> float | None:
        """The mean score of a candidate; None where only comparisons are judged."""
        ...

    def compare(self, name: str, other: str) -> Interval:
        """The win rate of a candidate over another, ties as half, with its 95 % interval."""
        ...


def read_instructions(
    files: Sequence[str], task: JudgedTask | None, count: int | None
) -> tuple[list[Prompt], list[Question]]:
    """The prompts of a file; of a task's file, also its questions, which grade the answers. Raises UserError."""
    if task is None:
        return read_prompts(files, advice=ONE_FILE_ADVICE).rows[:count], []
    questions = READERS[task](files, count=count)
    return [question.prompt for question in questions], questions


@dataclass
class TaskPanel:
    """By the checks of a task: an answer is right or wrong."""

    title: str
    questions: Sequence[Question]
    answers: Mapping[str, Sequence[Answer]]

    def _points(self, name: str) -> list[Points]:
        pairs = zip(self.questions, self.answers[name], strict=True)
        return [next(iter(question.grade(answer).values())) for question, answer in pairs]

    def score(self, name: str) -> float:
        return float(np.mean([won for won, _ in self._points(name)]))

    def compare(self, name: str, other: str) -> Interval:
        mean, low, high = change_of(self._points(name), self._points(other), seed=0)
        return Interval((1 + mean) / 2, (1 + low) / 2, (1 + high) / 2)


@dataclass
class ScoringPanel:
    """By a function that scores single answers."""

    title: str
    scorer: Scorer
    answers: Mapping[str, Sequence[Answer]]
    scores: dict[str, np.ndarray] = field(default_factory=dict)  # of those that were scored, [P, 1]

    def _scores(self, name: str) -> np.ndarray:
        if name not in self.scores:
            self.scores[name] = np.array(self.scorer("scores", self.answers[name]))[:, None]
        return self.scores[name]

    def score(self, name: str) -> float:
        return float(self._scores(name).mean())

    def compare(self, name: str, other: str) -> Interval:
        return Interval(*paired_interval(wins(self._scores(name), self._scores(other)), seed=0))


@dataclass
class ComparingPanel:
    """By a language model that compares two answers, in both orders; verdicts that cannot be read are left out."""

    judge: LLMJudge
    answers: Mapping[str, Sequence[Answer]]

    @property
    def title(self) -> str:
        return self.judge.name

    def score(self, name: str) -> None:
        return None

    def compare(self, name: str, other: str) -> Interval:
        if name == other:
            return Interval(0.5, 0.5, 0.5)
        own, theirs = ([[answer] for answer in self.answers[one]] for one in (name, other))
        points_P = points_against(self.judge, own, {other: theirs})[other][:, 0]
        judged_P = points_P[~np.isnan(points_P)]
        return Interval(*paired_interval(judged_P, seed=0)) if len(judged_P) else Interval(0.5, 0.0, 1.0)
