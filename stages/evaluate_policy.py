"""Evaluates a policy on the run's frozen prompts, compares it with the earlier policies, and chooses the best so far.

All policies are scored by the same judge, which the record names: the gold score where there is one, else a reward
model that no round optimises. The score of the round's own reward model, the proxy, is reported; it decides only
through the rule `gate_overoptimised`. The gate's rules decide whether the policy becomes the best so far, the previous
best is kept, or the run stops. Without a judge the stage writes sample answers, and compares and decides nothing.

People may compare a part of the answers: their labels correct the judge's win rate, which is shown beside it.

    accelerate launch stages/evaluate_policy.py --config configs/stages/evaluate_policy.yaml
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_schemas.artifact import Choice
from data_schemas.reading import read_prompts, write_rows
from data_schemas.stage_keys import StageTraits
from engine.judging.comparison import (
    Metric,
    distinct_2,
    read_earlier,
)
from engine.judging.evaluation import EvaluationArguments, Scores, compare, correct, flat, judge_name, score
from engine.judging.gate import GateArguments, decide
from engine.judging.groups import check_tags
from engine.judging.headroom import ACCURACY, HEADROOM_METRICS, PROXY_METRICS
from engine.judging.llm_judge import LLMJudge, write_comparisons
from engine.judging.paired_evaluation import AnswersPK
from engine.judging.people import evaluation as people
from engine.judging.people.agreement import NO_AGREEMENT
from engine.judging.people.asking import write_labels
from engine.judging.scoring import scored_candidates
from engine.runtime import timing
from engine.runtime.keys import key_field, required_field
from engine.runtime.stage import Stage, StageResult, run_stage
from engine.sampling.answers import Answer, Policy, SamplingSettings
from engine.sampling.sampler import sample_in_turn
from engine.tasks.changes import changes_to_best

# Shapes: P = prompts, K = answers to each prompt.
RECIPE_VERSION = 4
EXAMPLE = "accelerate launch stages/evaluate_policy.py --config configs/stages/evaluate_policy.yaml"
OF_LLM_JUDGES = (  # columns of the table of rounds that only an LLM judge gives
    "lc_win_rate_vs_first",
    "lc_win_rate_vs_first_low",
    "lc_win_rate_vs_first_high",
    "win_rate_vs_baseline",
    "win_rate_vs_baseline_low",
    "win_rate_vs_baseline_high",
    "lc_win_rate_vs_baseline",
    "lc_win_rate_vs_baseline_low",
    "lc_win_rate_vs_baseline_high",
    "judge_position_consistency",
    "judge_tie_rate",
    "judge_prefers_longer",
)
# Columns that only people give.
OF_PEOPLE = (*people.COLUMNS, "people_against", "people_agree_with_model")
TRAITS = StageTraits(
    purpose="Samples answers to held-out prompts, has them judged, and chooses the best policy so far.",
    position=90,
    kind="generates",
    runs="after_round",
    preload=True,
    headlines=["judge_mean", "win_rate_vs_first", "win_rate_vs_previous"],
    summary_columns={
        name: name
        for name in (
            "gold_mean",
            "judge",
            "judge_mean",
            "proxy_mean",
            "win_rate_vs_first",
            "win_rate_vs_first_low",
            "win_rate_vs_first_high",
            *OF_LLM_JUDGES,
            *OF_PEOPLE,
            "win_rate_vs_previous",
            "win_rate_vs_previous_low",
            "win_rate_vs_previous_high",
            "score_gain_vs_first",
            "score_gain_vs_first_low",
            "score_gain_vs_first_high",
            "gate",
            "gate_reason",
            "kl_to_first",
            "mean_answer_tokens",
            "ended_share",
            "distinct_2",
            "best_by_judge",
            "best_by_proxy",
            "differing_pairs",
            "proxy_accuracy",
            "proxy_accuracy_low",
            "proxy_accuracy_high",
            "diagnosis",
        )
    },
)
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class EvaluatePolicyArguments(EvaluationArguments, GateArguments):
    prompts: list[str] = required_field("files of held-out prompts, frozen for the run", role="rows")
    model_name_or_path: str = required_field("the policy under test", role="model")
    policy_step: str = key_field("", "name of the step that trained the policy")
    previous: list[str] | None = key_field(None, "folders of earlier evaluations, oldest first", role="rows")
    tasks: list[str] | None = key_field(
        None, "folders of evaluate_tasks: those of the earlier policies and of this one, oldest first", role="rows"
    )
    num_prompts: int | None = key_field(None, "the first prompts; null: all", minimum=1)


ARGUMENTS = (EvaluatePolicyArguments,)


def reasons_of(metrics: dict[str, Metric], arguments: EvaluatePolicyArguments) -> dict[str, str]:
    """Why metrics are missing."""
    reasons = {name: "this is the first policy" for name, value in metrics.items() if value is None}
    if not arguments.judge_llm:
        reasons |= dict.fromkeys(OF_LLM_JUDGES, "no judge_llm is given")
    if not arguments.people:
        reasons |= dict.fromkeys(OF_PEOPLE, "no people are asked")
    elif metrics["people_against"]:
        reasons |= dict.fromkeys(NO_AGREEMENT, "too few labels by several people")
    if not arguments.judge_function:
        reasons["gold_mean"] = "the recipe gives no judge_function"
    if not arguments.proxy_model:
        names = ("proxy_mean", "proxy_gain_vs_best", *PROXY_METRICS)
        reasons |= dict.fromkeys(names, "no reward model is optimised up to here")
    if arguments.judge_llm:
        names = (*HEADROOM_METRICS, "diagnosis")
        reasons |= dict.fromkeys(names, "the judge compares policies, not the answers of one policy")
    elif arguments.num_answers == 1:
        names = (*HEADROOM_METRICS, "diagnosis")
        reasons |= dict.fromkeys(names, "num_answers is 1: there are no answers to choose from")
    elif not metrics["compared_pairs"]:
        reasons |= dict.fromkeys(ACCURACY, "the judge scores all answers to a prompt equally")
    return reasons


def write(stage: Stage, answers: Sequence[Sequence[Answer]], scores: Scores) -> dict[str, str]:
    """Writes the answers with the judge's scores, and the proxy's scores; returns the outputs, name -> file."""
    if stage.is_main:
        scores_PK = [[None if np.isnan(score) else score for score in group] for group in scores.judge_PK.tolist()]
        by_prompt = zip(answers, scores_PK, strict=True)
        write_rows(stage.folder / "answers.jsonl", [scored_candidates(*scored) for scored in by_prompt])
        if scores.proxy:
            (stage.folder / "proxy_scores.json").write_text(json.dumps(scores.proxy), encoding="utf-8")
    return {"answers": "answers.jsonl"} | ({"proxy_scores": "proxy_scores.json"} if scores.proxy else {})


def write_samples(stage: Stage, answers: Sequence[Sequence[Answer]]) -> StageResult:
    """Writes the answers, [P][K], without scores; returns what can be counted of them."""
    if stage.is_main:
        write_rows(stage.folder / "answers.jsonl", [scored_candidates(group, [None] * len(group)) for group in answers])
    every = flat(answers)
    metrics: dict[str, Metric] = {
        "judge": None,
        "mean_answer_tokens": float(np.mean([len(answer.ids) for answer in every])),
        "ended_share": float(np.mean([answer.ended for answer in every])),
        "distinct_2": distinct_2([answer.text for answer in every]),
        "prompts": len(answers),
    }
    log.info("no judge is given: %d sample answers are written, and nothing is compared", len(every))
    return StageResult({"answers": "answers.jsonl"}, metrics=metrics, reasons={"judge": "no judge is given"})


@timing.part("evaluate")
def main(stage: Stage, arguments: EvaluatePolicyArguments) -> StageResult:
    path, name = arguments.model_name_or_path, arguments.policy_step or arguments.model_name_or_path
    prompts = read_prompts(arguments.prompts).rows[: arguments.num_prompts]
    judge = LLMJudge.of(stage, arguments, arguments.judge_llm) if arguments.judge_llm else None
    named = judge_name(arguments, judge)
    earlier = read_earlier(arguments.previous or [], named, prompts, arguments.num_answers)
    requests = [(prompt, None) for prompt in prompts]
    check_tags(prompts, arguments.gate_max_tag_fall)

    def sample(policy: Policy) -> list[list[Answer]]:
        settings = SamplingSettings.of(arguments, purpose=stage.name)
        return sample_in_turn(stage, [policy], requests, settings, num_answers=arguments.num_answers)

    answers = sample(Policy(path, name))
    if not (judge or arguments.judge_function or arguments.judge_model):
        return write_samples(stage, answers)

    others: dict[str, AnswersPK] = {key: one.answers for key, one in earlier.compared.items() if one}
    if arguments.baseline:
        others["baseline"] = sample(Policy.of(arguments.baseline, arguments.endpoints))
    scores = score(stage, arguments, answers, others, judge)
    metrics = compare(stage, arguments, path, answers, others, scores, earlier, judge)
    if arguments.tasks:
        best = earlier.choices[0].step if earlier.choices else None
        metrics |= changes_to_best(arguments.tasks, best, seed=arguments.seed)
    correction = correct(stage, arguments, answers, others, scores, earlier)
    metrics |= dict.fromkeys(OF_PEOPLE)
    metrics |= {"people_against": arguments.people_against} | correction.metrics if correction else {}
    decision = decide(metrics, arguments)
    metrics |= {"gate": decision.action, "gate_reason": decision.reason}
    outputs = write(stage, answers, scores) | write_comparisons(stage, judge.comparisons if judge else [])
    outputs |= write_labels(stage, correction.labels if correction else {})

    folder, judge_mean = os.path.relpath(path, stage.folder.parent), float(np.nanmean(scores.judge_PK))
    policy = Choice(step=name, folder=folder, score=judge_mean)
    ranking = earlier.ranked(policy, is_best=decision.action == "accept")
    log.info("mean score %.4f by %s", judge_mean, named)
    log.info("gate: %s (%s); best policy so far: %s", decision.action, decision.reason, ranking[0].step)
    log.info("diagnosis: %s", metrics["diagnosis"] or "none")
    return StageResult(outputs=outputs, metrics=metrics, reasons=reasons_of(metrics, arguments), choices=ranking)


if __name__ == "__main__":
    run_stage("evaluate_policy", ARGUMENTS, main)
