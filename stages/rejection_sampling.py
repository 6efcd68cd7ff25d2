"""Rejection sampling: draw K answers a prompt, score them with the reward model, keep the best.

Differs from Llama 3 (arXiv 2407.21783, 4.2.2) in one way: identical answers are dropped before ranking.

    accelerate launch stages/rejection_sampling.py --config configs/stages/rejection_sampling.yaml
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from data_schemas.reading import write_rows
from data_schemas.rows import Candidate, Candidates, Conversation, Message
from engine.arguments import GenerationArguments, key_field, required_field
from engine.generation import Ask, device_of, draw_both_sides, sample
from engine.models import load_causal, load_tokenizer
from engine.scoring import Answered, score_by_reward_model
from engine.stage import Made, Stage, run_stage

RECIPE_VERSION = 1
EXAMPLE = (
    "accelerate launch stages/rejection_sampling.py --config configs/stages/rejection_sampling.yaml --num_answers 8"
)
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class RejectionSamplingArguments(GenerationArguments):
    prompts: list[str] = required_field("files of prompts", role="rows")
    validation_prompts: list[str] | None = key_field(None, "held-out prompts: their winners are eval rows", role="rows")
    model_name_or_path: str = required_field("the policy that answers", role="model")
    reward_model: str = required_field("the reward model that ranks", role="model")
    num_answers: int = key_field(8, "K, answers a prompt")
    num_prompts: int | None = key_field(None, "prompts drawn; null: all")
    num_validation_prompts: int | None = key_field(None, "held-out prompts drawn; null: all")
    round: int = key_field(1, "each round draws the next prompts")
    keep_unfinished: bool = key_field(False, "let answers win that the length limit cut off")


ARGUMENTS = (RejectionSamplingArguments,)


def pick(candidates: Sequence[Candidate], *, keep_unfinished: bool) -> int | str:
    """The index of the best candidate, or why none is kept: empty, unfinished, identical, tie."""
    alive = [index for index, candidate in enumerate(candidates) if candidate.text.strip()]
    if not alive:
        return "empty"
    if not keep_unfinished:
        alive = [index for index in alive if candidates[index].ended]
        if not alive:
            return "unfinished"
    distinct = list({candidates[index].text.strip(): index for index in reversed(alive)}.values())
    if len(distinct) < 2:
        return "identical"
    scores = {index: candidates[index].score or 0.0 for index in distinct}
    if len(set(scores.values())) == 1:
        return "tie"
    return min(distinct, key=lambda index: (-scores[index], index))


def main(stage: Stage, arguments: RejectionSamplingArguments) -> Made:
    path, device = arguments.model_name_or_path, device_of(arguments.use_cpu)
    tokenizer = load_tokenizer(path)
    policy = load_causal(path, dtype=arguments.dtype).to(device).eval()  # pyright: ignore[reportArgumentType]
    drawn = draw_both_sides(
        (arguments.prompts, arguments.num_prompts),
        (arguments.validation_prompts, arguments.num_validation_prompts),
        seed=arguments.seed,
        purpose="rejection_sampling",
        round=arguments.round,
    )
    asks = [Ask(prompt, k) for _, prompt in drawn for k in range(arguments.num_answers)]
    log.info("%d prompts x %d answers", len(drawn), arguments.num_answers)
    answers = sample(stage, "answers", policy, tokenizer, asks, arguments, purpose=f"{stage.name}/{arguments.round}")
    del policy
    answered = [Answered(ask.prompt, answer.text, answer.ended) for ask, answer in zip(asks, answers, strict=True)]
    scores = score_by_reward_model(
        stage,
        "scores",
        arguments.reward_model,
        answered,
        device=device,
        dtype=arguments.dtype,
        batch_size=arguments.generation_batch_size,
    )

    winners: dict[str, list[Conversation]] = {"train": [], "validation": []}
    groups: list[Candidates] = []
    dropped: Counter[str] = Counter()
    gains: list[float] = []
    for number, (side, prompt) in enumerate(drawn):
        own = range(number * arguments.num_answers, (number + 1) * arguments.num_answers)
        candidates = [
            Candidate(
                text=answers[i].text,
                k=asks[i].k,
                num_tokens=len(answers[i].ids),
                ended=answers[i].ended,
                score=scores[i],
                policy=path,
            )
            for i in own
        ]
        picked = pick(candidates, keep_unfinished=arguments.keep_unfinished)
        kept, reason = (picked, None) if isinstance(picked, int) else (None, picked)
        groups.append(
            Candidates(
                prompt=prompt.prompt,
                prompt_id=prompt.prompt_id,
                group_id=prompt.group_id,
                tools=prompt.tools,
                candidates=candidates,
                kept=kept,
                dropped=reason,
            )
        )
        if kept is None:
            dropped[str(reason)] += 1
            continue
        gains.append(scores[own[kept]] - sum(scores[i] for i in own) / len(own))
        answer = Message(role="assistant", content=candidates[kept].text)
        winners[side].append(
            Conversation(
                messages=[*prompt.prompt, answer],
                tools=prompt.tools,
                group_id=prompt.group_id,
                source=arguments.step or stage.name,
            )
        )
    outputs = {"candidates": "candidates.jsonl"}
    if stage.is_main:
        write_rows(stage.folder / "candidates.jsonl", groups)
        for side, rows in winners.items():
            write_rows(stage.folder / f"winners.{side}.jsonl", rows)
    outputs |= {f"winners.{side}": f"winners.{side}.jsonl" for side, rows in winners.items() if rows}
    if not winners["train"]:
        raise ValueError(f"no answer is kept of {len(asks)}: {dict(dropped)}; see max_new_tokens and keep_unfinished")
    log.info("%d winners, dropped: %s", sum(map(len, winners.values())), dict(dropped) or "none")
    metrics: dict[str, float | int | str | None] = {
        "prompts": len(drawn),
        "winners": sum(map(len, winners.values())),
        "reward_mean": sum(scores) / len(scores),
        "reward_gain_of_winners": sum(gains) / max(1, len(gains)),
        "mean_answer_tokens": sum(len(answer.ids) for answer in answers) / len(answers),
        "ended_share": sum(answer.ended for answer in answers) / len(answers),
    }
    return Made(outputs=outputs, metrics=metrics | {f"dropped_{reason}": count for reason, count in dropped.items()})


if __name__ == "__main__":
    run_stage("rejection_sampling", ARGUMENTS, main)
