"""Evaluates a policy on the run's frozen prompts, compares it with the earlier ones, and chooses the best so far.

Every policy in a comparison is scored by the same judge, named in the row: the gold score where there is one, else a
reward model that no round optimised. The round's own reward model is reported as a proxy and decides nothing alone. The
gate's rules say whether the policy becomes the best so far, the best is kept, or the run stops.

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
from data_schemas.rows import Candidate, Candidates, Prompt
from data_schemas.stage_keys import StageTraits
from engine.judging.comparison import compare_policies, distinct_2, read_earlier
from engine.judging.divergence import kl_to_first
from engine.judging.gate import GateArguments, decide
from engine.judging.scoring import ScoringItem, score_by_function, score_by_reward_model
from engine.runtime import timing
from engine.runtime.keys import key_field, required_field
from engine.runtime.stage import Stage, StageResult, run_stage
from engine.runtime.world import device_of
from engine.sampling.answers import Answer, SampleRequest
from engine.sampling.sampler import sample_in_turn

# Shapes: P = prompts, K = answers a prompt.
RECIPE_VERSION = 3
EXAMPLE = "accelerate launch stages/evaluate_policy.py --config configs/stages/evaluate_policy.yaml"
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
        )
    },
)
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class EvaluatePolicyArguments(GateArguments):
    prompts: list[str] = required_field("files of held-out prompts, frozen for the run", role="rows")
    model_name_or_path: str = required_field("the policy under test", role="model")
    policy_step: str = key_field("", "name of the step that made the policy")
    first_policy: str | None = key_field(
        None, "the policy that KL is measured to; null: this is the first", role="model"
    )
    previous: list[str] | None = key_field(None, "folders of earlier evaluations, oldest first", role="rows")
    judge_function: str | None = key_field(
        None, "module:function(prompt, answer, ended) -> score, the gold score", role="function"
    )
    judge_model: str | None = key_field(None, "a reward model no round optimises, where there is no gold", role="model")
    proxy_model: str | None = key_field(None, "the round's reward model: reported, decides nothing", role="model")
    num_answers: int = key_field(4, "answers a prompt")
    function_timeout: float = key_field(60.0, "seconds that one call of judge_function may take", role="runtime")
    num_prompts: int | None = key_field(None, "the first prompts; null: all")


ARGUMENTS = (EvaluatePolicyArguments,)


@timing.part("evaluate")
def main(stage: Stage, arguments: EvaluatePolicyArguments) -> StageResult:
    path, device = arguments.model_name_or_path, device_of(arguments.use_cpu)
    prompts = read_prompts(arguments.prompts).rows[: arguments.num_prompts]
    judge = arguments.judge_function or "held-out reward model"
    previous = read_earlier(arguments.previous or [], judge, prompts, arguments.num_answers)
    choices = list(previous[-1].choices) if previous else []
    best = next((one for one in previous if choices and one.policy == choices[0].step), None)

    asked, number = [(prompt, None) for prompt in prompts], arguments.num_answers
    by_prompt = sample_in_turn(stage, [path], asked, arguments, num_answers=number, purpose=stage.name)
    asks = [SampleRequest(prompt, k) for prompt in prompts for k in range(number)]
    answers = [answer for own in by_prompt for answer in own]
    answered = [ScoringItem(ask.prompt, answer.text, answer.ended) for ask, answer in zip(asks, answers, strict=True)]

    def by_model(name: str, model: str, items: Sequence[ScoringItem]) -> list[float]:
        return score_by_reward_model(
            stage, name, model, items, device=device, dtype=arguments.dtype, batch_size=arguments.generation_batch_size
        )

    if arguments.judge_function:
        scores = score_by_function(
            stage, "judge", arguments.judge_function, answered, timeout=arguments.function_timeout
        )
    else:
        scores = by_model("judge", str(arguments.judge_model), answered)
    scores_PK = np.array(scores).reshape(len(prompts), arguments.num_answers)
    proxy = by_model("proxy", arguments.proxy_model, answered) if arguments.proxy_model else None

    others = {
        "first": previous[0].scores_PK if previous else None,
        "previous": previous[-1].scores_PK if previous else None,
        "best": best.scores_PK if best else None,
    }
    metrics = compare_policies(scores_PK, others, seed=arguments.seed)
    ended_share = float(np.mean([answer.ended for answer in answers]))
    mean_answer_tokens = float(np.mean([len(answer.ids) for answer in answers]))
    metrics |= {
        "judge": judge,
        "judge_mean": float(scores_PK.mean()),
        "gold_mean": float(scores_PK.mean()) if arguments.judge_function else None,
        "proxy_mean": float(np.mean(proxy)) if proxy else None,
        "proxy_gain_vs_best": None,
        "kl_to_first": kl_to_first(
            stage, arguments, asks, answers, policy=arguments.model_name_or_path, first_policy=arguments.first_policy
        )
        if arguments.first_policy
        else 0.0,
        "mean_answer_tokens": mean_answer_tokens,
        "length_growth": mean_answer_tokens / best.mean_answer_tokens if best else None,
        "ended_share": ended_share,
        "unfinished_share": 1 - ended_share,
        "distinct_2": distinct_2([answer.text for answer in answers]),
        "prompts": len(prompts),
    }
    if proxy and best:
        of_best = by_model("proxy-of-best", str(arguments.proxy_model), best.answered)
        metrics["proxy_gain_vs_best"] = float(np.mean(proxy) - np.mean(of_best))
    decision = decide(metrics, arguments)
    metrics |= {"gate": decision.action, "gate_reason": decision.by}
    reasons = {name: "this is the first policy" for name, value in metrics.items() if value is None}
    if not arguments.judge_function:
        reasons["gold_mean"] = "the recipe gives no judge_function"
    if proxy is None:
        reasons["proxy_mean"] = reasons["proxy_gain_vs_best"] = "no reward model is optimised up to here"
    if stage.is_main:
        write_rows(
            stage.folder / "answers.jsonl", _groups(prompts, asks, answers, scores, arguments.policy_step or path)
        )
        if proxy:
            (stage.folder / "proxy_scores.json").write_text(json.dumps(proxy), encoding="utf-8")

    folder = os.path.relpath(path, stage.folder.parent)
    here = Choice(step=arguments.policy_step or path, folder=folder, score=float(scores_PK.mean()))
    # The best first; the others by score. An annotation may ask for the second.
    accepted = decision.action == "accept"
    first, others_ = ([here], choices) if accepted else (choices[:1], [*choices[1:], here])
    ranking = [*first, *sorted(others_, key=lambda choice: -choice.score)]
    log.info("%s mean %.4f; %s: %s; best so far: %s", judge, here.score, decision.action, decision.by, ranking[0].step)
    outputs = {"answers": "answers.jsonl"} | ({"proxy_scores": "proxy_scores.json"} if proxy else {})
    return StageResult(outputs=outputs, metrics=metrics, reasons=reasons, choices=ranking)


def _groups(
    prompts: Sequence[Prompt],
    asks: Sequence[SampleRequest],
    answers: Sequence[Answer],
    scores: Sequence[float],
    policy: str,
) -> list[Candidates]:
    """All answers with their scores, one group a prompt."""
    by_prompt: dict[str, list[Candidate]] = {prompt.prompt_id: [] for prompt in prompts}
    for ask, answer, score in zip(asks, answers, scores, strict=True):
        by_prompt[ask.prompt.prompt_id].append(
            Candidate(
                text=answer.text, k=ask.k, num_tokens=len(answer.ids), ended=answer.ended, score=score, policy=policy
            )
        )
    return [
        Candidates(
            prompt=prompt.prompt,
            prompt_id=prompt.prompt_id,
            group_id=prompt.group_id,
            tools=prompt.tools,
            candidates=by_prompt[prompt.prompt_id],
        )
        for prompt in prompts
    ]


if __name__ == "__main__":
    run_stage("evaluate_policy", ARGUMENTS, main)
