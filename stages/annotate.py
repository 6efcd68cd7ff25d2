"""Preference annotation: samples answers from one or more policies, compares them, and writes pairs with a strength.

As in Llama 3 (arXiv 2407.21783, 4.2.1) the two answers come from different models where two are given. Its step in
which people edit the chosen answer is not implemented. With more than two answers the best is chosen, and the worst
(RLHFlow) or a random other one (Tülu 3, arXiv 2411.15124) is rejected, or the complete ranking is kept. The annotator
is a Python function, or one or more reward models. Equal, identical and empty answers are dropped and counted.

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
from engine.judging.annotators import Annotator, FunctionAnnotator, Judgement, RewardModelAnnotator
from engine.judging.shared_scoring import ScoringSettings
from engine.models.loading import load_tokenizer
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage, StageResult, format_counts, run_stage
from engine.sampling.answering import AnsweringArguments, answer_round
from engine.sampling.answers import Answer
from engine.sampling.prompts import Side, draw_both_sides, write_both_sides
from engine.tokens.contract import contract_of

RECIPE_VERSION = 3
EXAMPLE = "accelerate launch stages/annotate.py --config configs/stages/annotate.yaml --num_prompts 1000"
TRAITS = StageTraits(
    purpose="Lets policies answer prompts and an annotator compare the answers, which gives preference pairs.",
    position=30,
    kind="generates",
    headlines=["pairs"],
)
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class AnnotateArguments(AnsweringArguments):
    annotator_function: str | None = key_field(None, "module:function(prompt, answer, ended) -> score", role="function")
    annotator_models: list[str] | None = key_field(None, "reward models as the annotator; several vote", role="model")
    vote: Literal["mean", "majority"] = key_field("mean", "how several reward models agree on an order")
    num_answers: int = key_field(2, "answers to each prompt, over all policies", minimum=1, maximum=100_000)
    rejected: Literal["worst", "random"] = key_field("worst", "which of the answers below the best is rejected")
    keep_rankings: bool = key_field(False, "keep the answers between the best and the worst: rows are rankings")
    num_prompts: int | None = key_field(None, "prompts drawn; null: all", minimum=1)
    num_validation_prompts: int | None = key_field(None, "held-out prompts drawn; null: all", minimum=0)
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
    unfinished_chosen. Of identical answers, and of answers with equal scores, only the first is ranked."""
    scores_N = judgement.scores_N
    left = [i for i, answer in enumerate(answers) if answer.text.strip()]
    if len(left) < 2:
        return Dropped("empty")
    left = list({answers[i].text.strip(): i for i in reversed(left)}.values())
    if len(left) < 2:
        return Dropped("identical")
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
    if keep_rankings and len(order) > 2:
        optional["between"] = [messages[i] for i in order[1:-1]]
    prompt, scores_N = answers[best].prompt, judgement.scores_N
    return PreferencePair(
        prompt=prompt.prompt,
        chosen=messages[best],
        rejected=messages[worst],
        tools=prompt.tools,
        group_id=prompt.group_id,
        strength=judgement.strength or strength_of(scores_N[best] - scores_N[worst], margins),
        chosen_from=answers[best].policy,
        rejected_from=answers[worst].policy,
        chosen_score=scores_N[best],
        rejected_score=scores_N[worst],
        **tag_of(prompt),
        **optional,
    )


def annotator_of(stage: Stage, arguments: AnnotateArguments) -> Annotator:
    if arguments.annotator_function:
        return FunctionAnnotator(stage, arguments.annotator_function, arguments.function_timeout)
    paths = arguments.annotator_models or []
    return RewardModelAnnotator(stage, paths, arguments.vote, ScoringSettings.of(arguments))


def metrics_of(
    pairs: Sequence[PreferencePair], judgements: Sequence[Judgement], dropped: Counter[str]
) -> dict[str, float | int | str | None]:
    scores = [score for judgement in judgements for score in judgement.scores_N]
    metrics: dict[str, float | int | str | None] = {
        "prompts": len(judgements),
        "pairs": len(pairs),
        "score_mean": sum(scores) / len(scores),
    }
    if pairs[0].disagreement is not None:
        metrics["disagreement_mean"] = sum(pair.disagreement or 0.0 for pair in pairs) / len(pairs)
    metrics |= {str(level): count for level, count in Counter(pair.strength for pair in pairs).items()}
    return metrics | {f"dropped_{reason}": count for reason, count in dropped.items()}


def main(stage: Stage, arguments: AnnotateArguments) -> StageResult:
    annotator = annotator_of(stage, arguments)
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
    if not pairs["train"]:
        raise ConfigError(
            f"no pair is left of {len(drawn)} prompts: {format_counts(dropped)}; see max_new_tokens, keep_unfinished "
            "and temperature"
        )
    all_pairs = pairs["train"] + pairs["validation"]
    log.info("%d pairs, dropped: %s", len(all_pairs), format_counts(dropped) or "none")
    metrics = {"prompts_seen_before": draw.num_seen_before} | metrics_of(all_pairs, judgements, dropped)
    return StageResult(outputs=outputs, metrics=metrics, contract=contract_of(load_tokenizer(arguments.policies[0])))


if __name__ == "__main__":
    run_stage("annotate", ARGUMENTS, main)
