"""A policy's answers scored by the judge and the round's reward model, and its metrics beside the earlier policies'.

The stage evaluate_policy samples the answers and decides; what is compared, and how, is here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.endpoints.paid_answers import endpoint_metrics
from engine.judging.comparison import EarlierPolicies, Metric, compare_policies, distinct_2
from engine.judging.divergence import kl_to_first
from engine.judging.groups import group_metrics, groups_of, values_by_prompt
from engine.judging.headroom import HEADROOM_METRICS, diagnosis, headroom
from engine.judging.llm_judge import LLMJudge, LLMJudgeArguments
from engine.judging.paired_evaluation import AnswersPK, paired_metrics, points_against
from engine.judging.people import evaluation as people
from engine.judging.scoring import FunctionScorer, RewardModelScorer, Scorer, score_by_prompt
from engine.judging.shared_scoring import ScoringSettings
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer

# Shapes: P = prompts, K = answers to each prompt.


@dataclass(kw_only=True)
class EvaluationArguments(people.CorrectionArguments, LLMJudgeArguments):
    first_policy: str | None = key_field(
        None, "the policy that KL is measured to; null: this is the first", role="model"
    )
    judge_function: str | None = key_field(
        None, "module:function(prompt, answer, ended) -> score, the gold score", role="function"
    )
    judge_model: str | None = key_field(None, "a reward model no round optimises, where there is no gold", role="model")
    judge_llm: str | None = key_field(
        None, "a language model that compares answers: a folder, or the name of an endpoint", role="model"
    )
    baseline: str | None = key_field(
        None, "one more model to compare with: a folder, or the name of an endpoint", role="model"
    )
    proxy_model: str | None = key_field(None, "the round's reward model: reported, decides nothing", role="model")
    num_answers: int = key_field(4, "answers to each prompt", minimum=1, maximum=100_000)
    function_timeout: float = key_field(
        60.0, "seconds that one call of judge_function may take", role="runtime", above=0, maximum=10**6
    )


@dataclass(frozen=True)
class Scores:
    """The scores of a policy's answers by the judge and by the round's reward model."""

    judge_PK: np.ndarray  # by an LLM judge: the points against the first policy, nan where a verdict has no code
    points: dict[str, np.ndarray]  # by an LLM judge: against each other policy, [P, K]; else empty
    baseline_PK: np.ndarray | None  # of the baseline's answers, by a judge that scores
    proxy: list[float] | None  # prompt by prompt
    proxy_of: dict[str, np.ndarray]  # of the answers of other policies, [P, K]


def judge_of(stage: Stage, arguments: EvaluationArguments) -> Scorer:
    """The judge that gives every answer a score by itself."""
    if arguments.judge_function:
        return FunctionScorer(stage, arguments.judge_function, arguments.function_timeout)
    assert arguments.judge_model, "without a judge, nothing is scored"
    return RewardModelScorer(stage, arguments.judge_model, ScoringSettings.of(arguments))


def score(
    stage: Stage,
    arguments: EvaluationArguments,
    answers: AnswersPK,
    others: Mapping[str, AnswersPK],
    judge: LLMJudge | None,
) -> Scores:
    """Scores the answers by the judge, and by the proxy too, with those of the other policies that it matters for."""
    baseline_PK, points = None, {}
    if judge:
        points = points_against(judge, answers, others)
        judge_PK = points["first"] if "first" in points else np.full((len(answers), arguments.num_answers), 0.5)
    else:
        judge_PK = np.array(score_by_prompt(judge_of(stage, arguments), "judge", answers))
        if "baseline" in others:
            scores = score_by_prompt(judge_of(stage, arguments), "judge-baseline", others["baseline"])
            baseline_PK = np.array(scores)
    if not arguments.proxy_model:
        return Scores(judge_PK, points, baseline_PK, None, {})
    proxy = RewardModelScorer(stage, arguments.proxy_model, ScoringSettings.of(arguments))
    proxy_scores = proxy("proxy", flat(answers))
    wanted = others if judge else {name: other for name, other in others.items() if name == "best"}
    proxy_of = {name: np.array(score_by_prompt(proxy, f"proxy-of-{name}", other)) for name, other in wanted.items()}
    return Scores(judge_PK, points, baseline_PK, proxy_scores, proxy_of)


def compare(
    stage: Stage,
    arguments: EvaluationArguments,
    policy: str,
    answers: AnswersPK,
    others: Mapping[str, AnswersPK],
    scores: Scores,
    earlier: EarlierPolicies,
    judge: LLMJudge | None,
) -> dict[str, Metric]:
    """The metrics of the policy at the path `policy` beside those of earlier policies.

    A metric is None where there is nothing to compare with.
    """
    proxy_PK = np.reshape(scores.proxy, scores.judge_PK.shape) if scores.proxy else None
    if judge:
        names = [*earlier.compared, *(["baseline"] if arguments.baseline else [])]
        difficulties = {name: -proxy_of_PK.mean(axis=1) for name, proxy_of_PK in scores.proxy_of.items()}
        metrics = paired_metrics(
            names, scores.points, answers, others, difficulties, judge=judge.name, seed=arguments.seed
        )
        metrics |= dict.fromkeys(HEADROOM_METRICS)  # of answers by one policy, which it has not compared
    else:
        baseline = {} if scores.baseline_PK is None else {"baseline": scores.baseline_PK}
        metrics = compare_policies(scores.judge_PK, earlier.scores | baseline, seed=arguments.seed)
        metrics |= headroom(scores.judge_PK, proxy_PK, seed=arguments.seed)
    every = flat(answers)
    ended_share = float(np.mean([answer.ended for answer in every]))
    mean_answer_tokens = float(np.mean([len(answer.ids) for answer in every]))
    judge_mean, best, kl, proxy_gain = float(np.nanmean(scores.judge_PK)), earlier.best, 0.0, None
    if arguments.first_policy:
        settings = ScoringSettings.of(arguments)
        kl = kl_to_first(stage, every, settings, policy=policy, first_policy=arguments.first_policy)
    if scores.proxy and "best" in scores.proxy_of:
        proxy_gain = float(np.mean(scores.proxy) - np.mean(scores.proxy_of["best"]))
    metrics |= {
        "judge": judge_name(arguments, judge),
        "judge_mean": judge_mean,
        "gold_mean": judge_mean if arguments.judge_function else None,
        "proxy_mean": float(np.mean(scores.proxy)) if scores.proxy else None,
        "proxy_gain_vs_best": proxy_gain,
        "kl_to_first": kl,
        "mean_answer_tokens": mean_answer_tokens,
        "length_growth": mean_answer_tokens / best.mean_answer_tokens if best else None,
        "ended_share": ended_share,
        "unfinished_share": 1 - ended_share,
        "distinct_2": distinct_2([answer.text for answer in every]),
        "prompts": len(scores.judge_PK),
    }
    metrics |= (judge.metrics("judge") if judge else {}) | endpoint_metrics(stage.folder, arguments.endpoints)
    groups = groups_of([group[0].prompt.tag for group in answers])
    metrics |= group_metrics(
        groups, values_by_prompt(scores.judge_PK, scores.points, earlier.scores), seed=arguments.seed
    )
    return metrics | {"diagnosis": diagnosis(metrics)}


def correct(
    stage: Stage,
    arguments: EvaluationArguments,
    answers: AnswersPK,
    others: Mapping[str, AnswersPK],
    scores: Scores,
    earlier: EarlierPolicies,
) -> people.Correction | None:
    """The win rate that people correct; None where nobody is asked, or the policy to compare with is not there."""
    name = arguments.people_against
    if not arguments.people or name not in others:
        return None
    if name in scores.points:
        points_PK = scores.points[name]
    else:
        other_PK = scores.baseline_PK if name == "baseline" else earlier.scores[name]
        assert other_PK is not None, "the other policy has been judged"
        points_PK = (scores.judge_PK > other_PK) + 0.5 * (scores.judge_PK == other_PK)
    return people.correct(stage, arguments, answers, others[name], points_PK)


def judge_name(arguments: EvaluationArguments, judge: LLMJudge | None) -> str:
    """What the record calls the judge: policies are compared only where it is the same."""
    return judge.name if judge else arguments.judge_function or "held-out reward model"


def flat(answers: Sequence[Sequence[Answer]]) -> list[Answer]:
    """The answers prompt by prompt, in one list of P x K."""
    return [answer for group in answers for answer in group]
