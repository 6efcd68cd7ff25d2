"""A language model as a judge: behind an endpoint, or a model folder in this process, by the same interface.

The judge is a policy that answers questions about two answers, each in both orders, so every engine that samples can
judge: transformers, vLLM, an endpoint. Its rubric is part of the question, and so of the key of an answer that was paid
for. How far it can be trusted is measured on the very comparisons that it makes; see `judge_report.py`.
"""

import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_schemas.errors import ConfigError
from data_schemas.files import write_atomically
from data_schemas.rows import STRENGTHS, Strength
from engine.judging.annotators import Judgement
from engine.judging.comparison import Metric
from engine.judging.judge_report import JudgeReport, report_of
from engine.judging.verdicts import RUBRIC, Comparison, Pairing, compare, question, rubric_id
from engine.runtime import notices
from engine.runtime.arguments import GenerationArguments
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer, Policy, SamplingSettings
from engine.sampling.sampler import sample_in_turn

COMPARISONS = "comparisons.jsonl"
NUM_TRIED = 64  # comparisons after which a judge below min_consistency is refused, before the others are paid for
MIN_COMPARED = 20  # comparisons without which no judge is refused: 20 heads or tails say little
LONGER_LIMIT = 0.7  # share of decided comparisons won by the longer answer, from which on it is a warning (AlpacaEval)
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class LLMJudgeArguments(GenerationArguments):
    """Keys of the stages in which a language model may judge."""

    rubric: str | None = key_field(
        None, "what a good answer is, as text for an LLM judge; null: a general one", omitted_at_default=True
    )
    judge_temperature: float = key_field(0.0, "temperature of an LLM judge", minimum=0, omitted_at_default=True)
    judge_max_tokens: int = key_field(
        512, "longest answer of an LLM judge, its reasons included, in tokens", minimum=1, omitted_at_default=True
    )
    min_consistency: float | None = key_field(
        0.55,
        "refuse an LLM judge whose verdicts agree in fewer of the pairs when the answers change places; null: none",
        minimum=0,
        maximum=1,
        omitted_at_default=True,
    )


@dataclass
class LLMJudge:
    """A language model that compares two answers at a time."""

    stage: Stage
    policy: Policy
    settings: SamplingSettings
    rubric: str
    min_consistency: float | None
    comparisons: list[Comparison] = field(default_factory=list)  # all so far

    @classmethod
    def of(cls, stage: Stage, arguments: LLMJudgeArguments, name: str) -> "LLMJudge":
        """The judge in the folder `name`, or behind the endpoint of that name."""
        settings = SamplingSettings(
            seed=f"{arguments.seed}/judge",
            temperature=arguments.judge_temperature,
            top_p=1.0,
            max_new_tokens=arguments.judge_max_tokens,
            dtype=arguments.dtype,
            batch_size=arguments.generation_batch_size,
            engine=arguments.engine,
            vllm=arguments.vllm,
            use_cpu=arguments.use_cpu,
        )
        policy = Policy.of(name, arguments.endpoints)
        return cls(stage, policy, settings, arguments.rubric or RUBRIC, arguments.min_consistency)

    @property
    def name(self) -> str:
        """The model and the rubric, as every figure names them."""
        model = self.policy.endpoint.model if self.policy.endpoint else Path(self.policy.path).name
        return f"{model}, rubric {rubric_id(self.rubric)}"

    def compare(self, pairings: Sequence[Pairing]) -> list[Comparison]:
        """The comparisons in order. A pairing of equal answers, or with an empty one, is decided without the judge.

        Raises ConfigError where the judge's verdicts depend on the order of the answers more than `min_consistency`
        allows; that is checked early, so that a judge which is a coin costs little.
        """
        asked = [pairing for pairing in pairings if not pairing.is_obvious]
        done: list[Comparison] = []
        parts = (asked[:NUM_TRIED], asked[NUM_TRIED:]) if len(asked) > 2 * NUM_TRIED else (asked,)
        for part in parts:
            done += self._ask(part)
            self._check(report_of(done))
        in_order = iter(done)
        compared = [Comparison(one) if one.is_obvious else next(in_order) for one in pairings]
        self.comparisons += compared
        return compared

    def _ask(self, pairings: Sequence[Pairing]) -> list[Comparison]:
        if not pairings:
            return []
        orders = [(one, swapped) for one in pairings for swapped in (False, True)]
        questions = [(question(one, self.rubric, swapped=swapped), None) for one, swapped in orders]
        answers = sample_in_turn(self.stage, [self.policy], questions, self.settings, num_answers=1)
        texts = [answer for (answer,) in answers]
        return [compare(one, texts[2 * place : 2 * place + 2]) for place, one in enumerate(pairings)]

    def _check(self, report: JudgeReport) -> None:
        consistency, limit = report.position_consistency, self.min_consistency
        if consistency is None or limit is None or report.num_parsed < MIN_COMPARED or consistency >= limit:
            return
        raise ConfigError(
            f"the judge {self.name} gives the same verdict in {consistency:.0%} of {report.num_parsed} pairs when the "
            f"answers change places, fewer than min_consistency={limit:g}, and prefers the first answer in "
            f"{report.prefers_first or 0:.0%} of its decisions: its verdicts are close to a coin's; give another model "
            "or rubric, or set min_consistency: null"
        )

    def metrics(self, prefix: str) -> dict[str, Metric]:
        """The report on the judge for the record; warns of a preference for length and of unreadable verdicts."""
        report = report_of(self.comparisons)
        longer = report.prefers_longer
        if longer is not None and longer > LONGER_LIMIT and report.num_decided >= MIN_COMPARED:
            share = f"{longer:.0%} of its decisions"
            notices.warn(log, "the judge %s prefers the longer answer in %s", self.name, share)
        if report.num_unparsable:
            count = f"{report.num_unparsable} of {report.num_verdicts}"
            notices.warn(log, "%s verdicts of the judge %s cannot be read and are dropped", count, self.name)
        return {prefix: self.name, **report.metrics(prefix)}


@dataclass
class LLMAnnotator:
    """An LLM judge as the annotator: it compares each two of a prompt's answers."""

    judge: LLMJudge

    def __call__(self, answers: Sequence[Sequence[Answer]]) -> list[Judgement]:
        """The score of an answer is the mean of its points over the comparisons that have a verdict."""
        pairs = [list(itertools.combinations(_distinct(group), 2)) for group in answers]
        pairings = [
            Pairing(group[i].prompt, group[i].text, group[j].text)
            for group, pairs_of_group in zip(answers, pairs, strict=True)
            for i, j in pairs_of_group
        ]
        compared = iter(self.judge.compare(pairings))
        return [
            judgement_of(len(group), {pair: next(compared) for pair in pairs_of_group})
            for group, pairs_of_group in zip(answers, pairs, strict=True)
        ]


def _distinct(group: Sequence[Answer]) -> list[int]:
    """The places of a prompt's answers that are not empty, the first of each text."""
    first = {answer.text.strip(): place for place, answer in reversed(list(enumerate(group))) if answer.text.strip()}
    return sorted(first.values())


def judgement_of(num_answers: int, comparisons: dict[tuple[int, int], Comparison]) -> Judgement:
    """A prompt's judgement from the comparisons (i, j) of its answers."""
    points: list[list[float]] = [[] for _ in range(num_answers)]
    strengths: dict[tuple[int, int], Strength] = {}
    for (i, j), comparison in comparisons.items():
        if (won := comparison.points) is None:
            continue
        points[i].append(won)
        points[j].append(1 - won)
        strengths[i, j] = comparison.strength if won == 1 else STRENGTHS[-1]
        strengths[j, i] = comparison.strength if won == 0 else STRENGTHS[-1]
    scores_N = [sum(own) / len(own) if own else 0.0 for own in points]
    has_verdict = not comparisons or bool(strengths)
    return Judgement(scores_N, strengths=strengths, dropped="" if has_verdict else "unparsable_verdict")


def write_comparisons(stage: Stage, comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Writes what the judge said, with its reasons, one line for each two answers; returns the output, name -> file."""
    if not comparisons:
        return {}
    if stage.is_main:
        lines = [json.dumps(_row(one), ensure_ascii=False) for one in comparisons if one.verdicts is not None]
        write_atomically(stage.folder / COMPARISONS, "".join(f"{line}\n" for line in lines))
    return {"comparisons": COMPARISONS}


def _row(comparison: Comparison) -> dict[str, object]:
    pairing = comparison.pairing
    return {
        "prompt_id": pairing.prompt.prompt_id,
        "one": pairing.one,
        "other": pairing.other,
        "points_of_one": comparison.points,
        "strength": comparison.strength if comparison.points not in (None, 0.5) else None,
        "verdicts": [str(verdict) for verdict in comparison.verdicts or ()],
        "reasons": list(comparison.texts),
    }
