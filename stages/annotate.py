"""Preference annotation: prompts, answers from one or more policies, an annotator -> pairs with a strength.

As in Llama 3 (arXiv 2407.21783, 4.2.1) the two answers come from different models where there are two; an edit step is
left to people. With more answers the best is chosen, and the worst (RLHFlow) or a random other one (Tülu 3, arXiv
2411.15124) rejected, or the whole ranking kept. The annotator is a Python function, or one or more reward models.
Equal, identical and empty answers are dropped and counted.

    accelerate launch stages/annotate.py --config configs/stages/annotate.yaml
"""

import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_schemas.errors import ConfigError
from data_schemas.reading import write_rows
from data_schemas.rows import STRENGTHS, Message, PreferencePair, Strength
from data_schemas.stage_keys import StageTraits
from engine.judging.annotators import Annotator, Group, Judgement, Program, RewardModels
from engine.judging.scoring import ScoringItem
from engine.models.loading import load_tokenizer
from engine.runtime.arguments import GenerationArguments
from engine.runtime.keys import key_field, required_field
from engine.runtime.stage import Stage, StageResult, format_counts, run_stage
from engine.runtime.world import device_of
from engine.sampling.prompts import draw_both_sides
from engine.sampling.sampler import sample_in_turn
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
class AnnotateArguments(GenerationArguments):
    prompts: list[str] = required_field("files of prompts", role="rows")
    validation_prompts: list[str] | None = key_field(None, "held-out prompts: their pairs are eval rows", role="rows")
    policies: list[str] = required_field("one or more policies that answer, in turn", role="model")
    policy_names: list[str] | None = key_field(None, "their names, for the rows", role="runtime")
    annotator_function: str | None = key_field(None, "module:function(prompt, answer, ended) -> score", role="function")
    annotator_models: list[str] | None = key_field(None, "reward models as the annotator; several vote", role="model")
    vote: Literal["mean", "majority"] = key_field("mean", "how several reward models agree on an order")
    num_answers: int = key_field(2, "answers a prompt, over all policies")
    rejected: Literal["worst", "random"] = key_field("worst", "of the answers below the best, which is rejected")
    keep_rankings: bool = key_field(False, "keep the answers between the best and the worst: rows are rankings")
    num_prompts: int | None = key_field(None, "prompts drawn; null: all")
    num_validation_prompts: int | None = key_field(None, "held-out prompts drawn; null: all")
    round: int = key_field(1, "each round draws the next prompts")
    strength_margins: list[float] = key_field(
        [1.0, 0.5, 0.25], "score difference from which a pair is significantly better, better, slightly better"
    )
    keep_unfinished: bool = key_field(False, "let answers be chosen that the length limit cut off")
    function_timeout: float = key_field(60.0, "seconds that one call of annotator_function may take", role="runtime")


ARGUMENTS = (AnnotateArguments,)


def strength_of(difference: float, margins: Sequence[float]) -> Strength:
    """The level of a positive score difference; below the last margin it is marginally better."""
    level = next((level for level, margin in enumerate(margins) if difference >= margin), len(STRENGTHS) - 1)
    return STRENGTHS[level]


def compare_answers(
    group: Group,
    judgement: Judgement,
    names: Sequence[str],
    *,
    margins: Sequence[float],
    keep_unfinished: bool = False,
    keep_rankings: bool = False,
    draw: random.Random | None = None,
) -> PreferencePair | str:
    """What the answers of a prompt make: a pair, or a ranking; or why nothing: empty, identical, equal_score,
    unfinished_chosen. Of identical answers, and of answers with equal scores, the first stands for all. `draw` picks
    the rejected answer among those below the best; without it the worst is rejected."""
    scores_N, answers = judgement.scores_N, group.answers
    alive = [i for i, answer in enumerate(answers) if answer.text.strip()]
    if len(alive) < 2:
        return "empty"
    alive = list({answers[i].text.strip(): i for i in reversed(alive)}.values())
    if len(alive) < 2:
        return "identical"
    alive = list({scores_N[i]: i for i in sorted(alive, reverse=True)}.values())
    if len(alive) < 2:
        return "equal_score"
    order = sorted(alive, key=lambda i: -scores_N[i])
    while order and not keep_unfinished and not answers[order[0]].ended:
        order.pop(0)
    if len(order) < 2:
        return "unfinished_chosen"
    best, worst = order[0], draw.choice(order[1:]) if draw else order[-1]
    between = order[1:-1] if keep_rankings else []
    messages = {i: [Message(role="assistant", content=answers[i].text)] for i in order}
    optional: dict[str, Any] = {"disagreement": judgement.disagreement(best, worst)} if judgement.votes_VN else {}
    if between:
        optional["between"] = [messages[i] for i in between]
    return PreferencePair(
        prompt=group.prompt.prompt,
        chosen=messages[best],
        rejected=messages[worst],
        tools=group.prompt.tools,
        group_id=group.prompt.group_id,
        strength=judgement.strength or strength_of(scores_N[best] - scores_N[worst], margins),
        chosen_from=names[best],
        rejected_from=names[worst],
        chosen_score=scores_N[best],
        rejected_score=scores_N[worst],
        **optional,
    )


def main(stage: Stage, arguments: AnnotateArguments) -> StageResult:
    device = device_of(arguments.use_cpu)
    annotator: Annotator
    if arguments.annotator_function:
        annotator = Program(stage, arguments.annotator_function, arguments.function_timeout)
    else:
        annotator = RewardModels(
            stage,
            arguments.annotator_models or [],
            arguments.vote,
            device,
            arguments.dtype,
            arguments.generation_batch_size,
        )
    drawn = draw_both_sides(
        (arguments.prompts, arguments.num_prompts),
        (arguments.validation_prompts, arguments.num_validation_prompts),
        seed=arguments.seed,
        purpose="annotate",
        round=arguments.round,
    )
    number, policies = arguments.num_answers, arguments.policies
    names = [(arguments.policy_names or policies)[k % len(policies)] for k in range(number)]
    prompts = [(prompt, None) for _, prompt in drawn]
    purpose = f"{stage.name}/{arguments.round}"
    answers = sample_in_turn(stage, policies, prompts, arguments, num_answers=number, purpose=purpose)
    groups = [
        Group(prompt, [ScoringItem(prompt, answer.text, answer.ended) for answer in own])
        for (prompt, _), own in zip(prompts, answers, strict=True)
    ]
    judgements = annotator(groups)

    pairs: dict[str, list[PreferencePair]] = {"train": [], "validation": []}
    dropped: Counter[str] = Counter()
    for (side, prompt), group, judgement in zip(drawn, groups, judgements, strict=True):
        result = compare_answers(
            group,
            judgement,
            names,
            margins=arguments.strength_margins,
            keep_unfinished=arguments.keep_unfinished,
            keep_rankings=arguments.keep_rankings,
            draw=random.Random(f"{arguments.seed}/{prompt.prompt_id}") if arguments.rejected == "random" else None,
        )
        if isinstance(result, str):
            dropped[result] += 1
        else:
            pairs[side].append(result)
    if stage.is_main:
        for side, rows in pairs.items():
            write_rows(stage.folder / f"pairs.{side}.jsonl", rows)
    if not pairs["train"]:
        raise ConfigError(f"no pair is left of {len(drawn)} prompts: {format_counts(dropped)}")
    log.info("%d pairs, dropped: %s", sum(map(len, pairs.values())), dict(dropped) or "none")
    made = [pair for rows in pairs.values() for pair in rows]
    scores = [score for judgement in judgements for score in judgement.scores_N]
    metrics: dict[str, float | int | str | None] = {
        "prompts": len(drawn),
        "pairs": len(made),
        "score_mean": sum(scores) / len(scores),
    }
    if made[0].disagreement is not None:
        metrics["disagreement_mean"] = sum(pair.disagreement or 0.0 for pair in made) / len(made)
    metrics |= {str(level): count for level, count in Counter(pair.strength for pair in made).items()}
    metrics |= {f"dropped_{reason}": count for reason, count in dropped.items()}
    outputs = {f"pairs.{side}": f"pairs.{side}.jsonl" for side, rows in pairs.items() if rows}
    return StageResult(outputs=outputs, metrics=metrics, contract=contract_of(load_tokenizer(policies[0])))


if __name__ == "__main__":
    run_stage("annotate", ARGUMENTS, main)
