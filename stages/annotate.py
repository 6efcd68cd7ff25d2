"""Preference annotation: prompts, two answers each from one or two policies, an annotator -> pairs with a strength.

As in Llama 3 (arXiv 2407.21783, 4.2.1) the two answers come from different models where there are two; there is no edit
step. The annotator is a Python function, or a reward model. Equal, identical and empty answers are dropped and counted.

    accelerate launch stages/annotate.py --config configs/stages/annotate.yaml
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from data_schemas.reading import write_rows
from data_schemas.rows import STRENGTHS, Message, PreferencePair, Prompt, Strength
from data_schemas.stage_keys import ConfigError
from engine.arguments import GenerationArguments, key_field, required_field
from engine.generation import Answer, Ask, device_of, draw_both_sides, sample
from engine.models import load_causal, load_tokenizer
from engine.scoring import Answered, score_by_function, score_by_reward_model
from engine.stage import Made, Stage, run_stage

RECIPE_VERSION = 1
EXAMPLE = "accelerate launch stages/annotate.py --config configs/stages/annotate.yaml --num_prompts 1000"
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class AnnotateArguments(GenerationArguments):
    prompts: list[str] = required_field("files of prompts", role="rows")
    validation_prompts: list[str] | None = key_field(None, "held-out prompts: their pairs are eval rows", role="rows")
    policies: list[str] = required_field("one or two policies that answer", role="model")
    policy_names: list[str] | None = key_field(None, "their names, for the rows", role="runtime")
    annotator_function: str | None = key_field(None, "module:function(prompt, answer, ended) -> score", role="function")
    annotator_model: str | None = key_field(None, "a reward model as the annotator", role="model")
    num_prompts: int | None = key_field(None, "prompts drawn; null: all")
    num_validation_prompts: int | None = key_field(None, "held-out prompts drawn; null: all")
    round: int = key_field(1, "each round draws the next prompts")
    strength_margins: list[float] = key_field(
        [1.0, 0.5, 0.25], "score difference from which a pair is significantly better, better, slightly better"
    )
    keep_unfinished: bool = key_field(False, "let answers be chosen that the length limit cut off")


ARGUMENTS = (AnnotateArguments,)


def strength_of(difference: float, margins: Sequence[float]) -> Strength:
    """The level of a positive score difference; below the last margin it is marginally better."""
    level = next((level for level, margin in enumerate(margins) if difference >= margin), len(STRENGTHS) - 1)
    return STRENGTHS[level]


def compare(
    prompt: Prompt,
    answers: Sequence[Answer],
    scores: Sequence[float],
    names: Sequence[str],
    *,
    margins: Sequence[float],
    keep_unfinished: bool,
) -> PreferencePair | str:
    """The pair that two answers make, or why they make none: empty, identical, equal_score, unfinished_chosen."""
    if any(not answer.text.strip() for answer in answers):
        return "empty"
    if answers[0].text.strip() == answers[1].text.strip():
        return "identical"
    if scores[0] == scores[1]:
        return "equal_score"
    best = 0 if scores[0] > scores[1] else 1
    if not answers[best].ended and not keep_unfinished:
        return "unfinished_chosen"
    chosen, rejected = ([Message(role="assistant", content=answers[side].text)] for side in (best, 1 - best))
    return PreferencePair(
        prompt=prompt.prompt,
        chosen=chosen,
        rejected=rejected,
        tools=prompt.tools,
        group_id=prompt.group_id,
        strength=strength_of(scores[best] - scores[1 - best], margins),
        chosen_from=names[best],
        rejected_from=names[1 - best],
        chosen_score=scores[best],
        rejected_score=scores[1 - best],
    )


def main(stage: Stage, arguments: AnnotateArguments) -> Made:
    if not 1 <= len(arguments.policies) <= 2:
        raise ConfigError(f"annotate takes one or two policies, got {len(arguments.policies)}")
    if (arguments.annotator_function is None) == (arguments.annotator_model is None):
        raise ConfigError("annotate needs annotator_function or annotator_model, one of them")
    if (
        len(arguments.strength_margins) != 3
        or sorted(arguments.strength_margins, reverse=True) != arguments.strength_margins
    ):
        raise ConfigError(f"strength_margins={arguments.strength_margins}: expected three falling score differences")
    device = device_of(arguments.use_cpu)
    drawn = draw_both_sides(
        (arguments.prompts, arguments.num_prompts),
        (arguments.validation_prompts, arguments.num_validation_prompts),
        seed=arguments.seed,
        purpose="annotate",
        round=arguments.round,
    )
    # Two answers a prompt: one from each policy, or both from the only one.
    policies = [arguments.policies[0], arguments.policies[-1]]
    names = [(arguments.policy_names or arguments.policies)[side] for side in (0, -1)]
    answers: list[list[Answer]] = []
    purpose = f"{stage.name}/{arguments.round}"
    for side, path in enumerate(policies):
        tokenizer = load_tokenizer(path)
        policy = load_causal(path, dtype=arguments.dtype).to(device).eval()  # pyright: ignore[reportArgumentType]
        asks = [Ask(prompt, side) for _, prompt in drawn]
        answers.append(sample(stage, f"answers-{side}", policy, tokenizer, asks, arguments, purpose=purpose))
        del policy
    answered = [
        Answered(prompt, both[side].text, both[side].ended)
        for (_, prompt), both in zip(drawn, zip(*answers, strict=True), strict=True)
        for side in (0, 1)
    ]
    if arguments.annotator_function:
        scores = score_by_function(arguments.annotator_function, answered)
    else:
        scores = score_by_reward_model(
            stage, "scores", str(arguments.annotator_model), answered, device=device, dtype=arguments.dtype,
            batch_size=arguments.generation_batch_size,
        )  # fmt: skip

    pairs: dict[str, list[PreferencePair]] = {"train": [], "validation": []}
    dropped: Counter[str] = Counter()
    for number, (side, prompt) in enumerate(drawn):
        result = compare(
            prompt,
            [answers[0][number], answers[1][number]],
            scores[2 * number : 2 * number + 2],
            names,
            margins=arguments.strength_margins,
            keep_unfinished=arguments.keep_unfinished,
        )
        if isinstance(result, str):
            dropped[result] += 1
        else:
            pairs[side].append(result)
    if stage.is_main:
        for side, rows in pairs.items():
            write_rows(stage.folder / f"pairs.{side}.jsonl", rows)
    if not pairs["train"]:
        raise ValueError(f"no pair is left of {len(drawn)} prompts: {dict(dropped)}")
    log.info("%d pairs, dropped: %s", sum(map(len, pairs.values())), dict(dropped) or "none")
    levels = Counter(pair.strength for rows in pairs.values() for pair in rows)
    metrics: dict[str, float | int | str | None] = {
        "prompts": len(drawn),
        "pairs": sum(map(len, pairs.values())),
        "score_mean": sum(scores) / len(scores),
    }
    metrics |= {str(level): count for level, count in levels.items()}
    metrics |= {f"dropped_{reason}": count for reason, count in dropped.items()}
    return Made(
        outputs={f"pairs.{side}": f"pairs.{side}.jsonl" for side, rows in pairs.items() if rows}, metrics=metrics
    )


if __name__ == "__main__":
    run_stage("annotate", ARGUMENTS, main)
