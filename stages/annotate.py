"""Preference annotation: samples answers from one or more policies, compares them, and writes pairs with a strength.

As in Llama 3 (arXiv 2407.21783, 4.2.1) the two answers come from different models where two are given, and people may
edit the chosen answer, which gives a ranking: edited, chosen, rejected. With more than two answers the best is chosen,
and the worst (RLHFlow) or a random other one (Tülu 3, arXiv 2411.15124) is rejected, or the complete ranking is kept.
The annotator is a Python function, one or more reward models, a language model that compares each two answers in both
orders, or people, who may also compare only the answers of which one of the others is least sure. Equal, identical and
empty answers are dropped and counted.

    accelerate launch stages/annotate.py --config configs/stages/annotate.yaml
"""

import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from data_schemas.errors import ConfigError
from data_schemas.rows import STRENGTHS, Dropped, Message, PreferencePair, Strength, tag_of
from data_schemas.stage_keys import StageTraits
from engine.endpoints.paid_answers import endpoint_metrics
from engine.judging.annotators import Annotator, FunctionAnnotator, Judgement, RewardModelAnnotator
from engine.judging.llm_judge import LLMAnnotator, LLMJudge, LLMJudgeArguments, write_comparisons
from engine.judging.people.annotator import PeopleAnnotator
from engine.judging.people.asking import PeopleArguments, write_labels
from engine.judging.scoring import RewardModelScorer
from engine.judging.shared_scoring import ScoringSettings
from engine.models.policy_tokenizer import load_policy_tokenizer
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage, StageResult, format_counts, run_stage
from engine.sampling.answering import AnsweringArguments, answer_round
from engine.sampling.answers import Answer
from engine.sampling.prompts import PROMPT_ORDER_HELP, PromptOrder, Side, draw_both_sides, write_both_sides
from engine.tokens.contract import contract_of

RECIPE_VERSION = 4
EXAMPLE = "accelerate launch stages/annotate.py --config configs/stages/annotate.yaml --num_prompts 1000"
TRAITS = StageTraits(
    purpose="Lets policies answer prompts and an annotator compare the answers, which gives preference pairs.",
    position=30,
    kind="generates",
    headlines=["pairs"],
)
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class AnnotateArguments(PeopleArguments, LLMJudgeArguments, AnsweringArguments):
    annotator_function: str | None = key_field(None, "module:function(prompt, answer, ended) -> score", role="function")
    annotator_models: list[str] | None = key_field(None, "reward models as the annotator; several vote", role="model")
    annotator_llm: str | None = key_field(
        None, "a language model as the annotator: a folder, or the name of an endpoint", role="model"
    )
    second_opinion: str | None = key_field(
        None,
        "a reward model: where it prefers the other answer, the row goes to people first",
        role="model",
        omitted_at_default=True,
    )
    vote: Literal["mean", "majority"] = key_field("mean", "how several reward models agree on an order")
    num_answers: int = key_field(2, "answers to each prompt, over all policies", minimum=1, maximum=100_000)
    rejected: Literal["worst", "random"] = key_field("worst", "which of the answers below the best is rejected")
    keep_rankings: bool = key_field(False, "keep the answers between the best and the worst: rows are rankings")
    num_prompts: int | None = key_field(None, "prompts drawn; null: all", minimum=1)
    num_validation_prompts: int | None = key_field(None, "held-out prompts drawn; null: all", minimum=0)
    prompt_order: PromptOrder = key_field("random", PROMPT_ORDER_HELP, omitted_at_default=True)
    earlier_candidates: list[str] | None = key_field(
        None, "answers of earlier rounds with their rewards, for prompt_order", role="rows", omitted_at_default=True
    )
    round: int = key_field(1, "each round draws the next prompts", minimum=0, maximum=10**6)
    strength_margins: list[float] = key_field(
        [1.0, 0.5, 0.25], "score difference from which a pair is significantly better, better, slightly better"
    )
    keep_unfinished: bool = key_field(False, "let answers be chosen that the length limit cut off")
    function_timeout: float = key_field(
        60.0, "seconds that one call of annotator_function may take", role="runtime", above=0, maximum=10**6
    )


ARGUMENTS = (AnnotateArguments,)


def strength_of(difference: float, margins: Sequence[float]) -> Strength:
    """The level of a positive score difference; a difference below the last margin is marginally better."""
    level = next((level for level, margin in enumerate(margins) if difference >= margin), len(STRENGTHS) - 1)
    return STRENGTHS[level]


def rank_answers(
    answers: Sequence[Answer], judgement: Judgement, *, keep_unfinished: bool = False
) -> list[int] | Dropped:
    """Indices of two or more different answers, best first; or why there are none: empty, identical, equal_score,
    unfinished_chosen, or what the judgement says. Of identical answers, and of answers with equal scores, only the
    first is ranked."""
    scores_N = judgement.scores_N
    compared = range(len(answers)) if judgement.ranked is None else judgement.ranked
    left = [i for i in compared if answers[i].text.strip()]
    if len(left) < 2:
        return Dropped("empty")
    left = list({answers[i].text.strip(): i for i in reversed(left)}.values())
    if len(left) < 2:
        return Dropped("identical")
    if judgement.dropped:
        return Dropped(judgement.dropped)
    left = list({scores_N[i]: i for i in sorted(left, reverse=True)}.values())
    if len(left) < 2:
        return Dropped("equal_score")
    order = sorted(left, key=lambda i: -scores_N[i])
    while order and not keep_unfinished and not answers[order[0]].ended:
        order.pop(0)
    return order if len(order) >= 2 else Dropped("unfinished_chosen")


class _Optional(TypedDict, total=False):
    """Fields that a pair's row has only where the annotator gives them."""

    disagreement: float | None
    between: list[list[Message]]


def compare_answers(
    answers: Sequence[Answer],
    judgement: Judgement,
    *,
    margins: Sequence[float],
    keep_unfinished: bool = False,
    keep_rankings: bool = False,
    draw: random.Random | None = None,
) -> PreferencePair | Dropped:
    """The pair, or with `keep_rankings` the ranking, of a prompt's answers; or why it is dropped, as in `rank_answers`.

    `draw` picks the rejected answer among those below the best; without it the worst is rejected. `margins` are in
    units of the scores.
    """
    order = rank_answers(answers, judgement, keep_unfinished=keep_unfinished)
    if isinstance(order, Dropped):
        return order
    best, worst = order[0], draw.choice(order[1:]) if draw else order[-1]
    messages = {i: [Message(role="assistant", content=answers[i].text)] for i in order}
    optional = _Optional()
    if judgement.votes_VN:
        optional["disagreement"] = judgement.disagreement(best, worst)
    between = [messages[i] for i in order[1:-1]] if keep_rankings else []
    chosen, edited = messages[best], judgement.edited.get(best, "").strip()
    if edited and edited not in [answers[i].text.strip() for i in order]:
        chosen, between = [Message(role="assistant", content=edited)], [chosen, *between]
    if between:
        optional["between"] = between
    prompt, scores_N = answers[best].prompt, judgement.scores_N
    return PreferencePair(
        prompt=prompt.prompt,
        chosen=chosen,
        rejected=messages[worst],
        tools=prompt.tools,
        group_id=prompt.group_id,
        strength=(judgement.strengths or {}).get((best, worst))
        or strength_of(scores_N[best] - scores_N[worst], margins),
        chosen_from=answers[best].policy if chosen is messages[best] else "people",
        rejected_from=answers[worst].policy,
        chosen_score=scores_N[best],
        rejected_score=scores_N[worst],
        **tag_of(prompt),
        **optional,
    )


def model_annotator_of(stage: Stage, arguments: AnnotateArguments) -> Annotator | None:
    """The function or model that judges; None where people judge everything."""
    if arguments.annotator_function:
        return FunctionAnnotator(stage, arguments.annotator_function, arguments.function_timeout)
    if arguments.annotator_llm:
        return LLMAnnotator(LLMJudge.of(stage, arguments, arguments.annotator_llm))
    if arguments.annotator_models:
        settings = ScoringSettings.of(arguments)
        return RewardModelAnnotator(stage, arguments.annotator_models, arguments.vote, settings)
    return None


def people_of(stage: Stage, arguments: AnnotateArguments, first: Annotator | None) -> PeopleAnnotator:
    """People as the annotator, alone or after `first`."""
    second = arguments.second_opinion
    return PeopleAnnotator.of(
        stage,
        arguments,
        rubric=arguments.rubric,
        keep_unfinished=arguments.keep_unfinished,
        first=first,
        second_opinion=RewardModelScorer(stage, second, ScoringSettings.of(arguments)) if second else None,
    )


def metrics_of(
    pairs: Sequence[PreferencePair], judgements: Sequence[Judgement], dropped: Counter[str]
) -> dict[str, float | int | str | None]:
    scores = [score for judgement in judgements if judgement.ranked is None for score in judgement.scores_N]
    metrics: dict[str, float | int | str | None] = {"prompts": len(judgements), "pairs": len(pairs)}
    if scores:  # by the model; people give none
        metrics["score_mean"] = sum(scores) / len(scores)
    if pairs[0].disagreement is not None:
        metrics["disagreement_mean"] = sum(pair.disagreement or 0.0 for pair in pairs) / len(pairs)
    metrics |= {str(level): count for level, count in Counter(pair.strength for pair in pairs).items()}
    return metrics | {f"dropped_{reason}": count for reason, count in dropped.items()}


def main(stage: Stage, arguments: AnnotateArguments) -> StageResult:
    model = model_annotator_of(stage, arguments)
    people = people_of(stage, arguments, model) if arguments.people else None
    annotator = people or model
    assert annotator, "one of the annotators is given"
    draw = draw_both_sides(arguments, purpose="annotate")
    drawn = draw.prompts
    prompts = [(prompt, None) for _, prompt in drawn]
    answers = answer_round(stage, arguments, prompts, num_answers=arguments.num_answers, round=arguments.round)
    judgements = annotator(answers)

    pairs: dict[Side, list[PreferencePair]] = {"train": [], "validation": []}
    dropped: Counter[str] = Counter()
    for (side, prompt), prompt_answers, judgement in zip(drawn, answers, judgements, strict=True):
        pair = compare_answers(
            prompt_answers,
            judgement,
            margins=arguments.strength_margins,
            keep_unfinished=arguments.keep_unfinished,
            keep_rankings=arguments.keep_rankings,
            draw=random.Random(f"{arguments.seed}/{prompt.prompt_id}") if arguments.rejected == "random" else None,
        )
        if isinstance(pair, Dropped):
            dropped[pair.reason] += 1
        else:
            pairs[side].append(pair)
    outputs = write_both_sides(stage, "pairs", pairs)
    judge = model.judge if isinstance(model, LLMAnnotator) else None
    if judge:
        outputs |= write_comparisons(stage, judge.comparisons)
    if people:
        outputs |= write_labels(stage, people.labels)
    if not pairs["train"]:
        raise ConfigError(
            f"no pair is left of {len(drawn)} prompts: {format_counts(dropped)}; see max_new_tokens, keep_unfinished "
            "and temperature"
        )
    all_pairs = pairs["train"] + pairs["validation"]
    log.info("%d pairs, dropped: %s", len(all_pairs), format_counts(dropped) or "none")
    metrics = {**draw.counts} | metrics_of(all_pairs, judgements, dropped)
    metrics |= (judge.metrics("annotator") if judge else {}) | endpoint_metrics(stage.folder, arguments.endpoints)
    metrics |= people.metrics() if people else {}
    return StageResult(
        outputs=outputs,
        metrics=metrics,
        reasons={name: "too few labels by several people" for name, value in metrics.items() if value is None},
        contract=contract_of(load_policy_tokenizer(arguments.policies[0])),
    )


if __name__ == "__main__":
    run_stage("annotate", ARGUMENTS, main)
