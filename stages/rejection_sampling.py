"""Rejection sampling: draw K answers a prompt, score them with the reward model, keep the best.

Llama 3 (arXiv 2407.21783, 4.2.2): K = 10-30 from the best policies so far, in later rounds under system prompts that
steer tone, style and format; 4.2.3: the top quartile of reward scores is high quality. Differs in one way: identical
answers are dropped before ranking.

    accelerate launch stages/rejection_sampling.py --config configs/stages/rejection_sampling.yaml
"""

import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data_schemas.errors import ConfigError
from data_schemas.reading import write_rows
from data_schemas.rows import Candidate, Candidates, Conversation, Message, Prompt
from data_schemas.stage_keys import StageTraits
from engine.judging.scoring import ScoringItem, score_by_reward_model
from engine.models.loading import load_tokenizer
from engine.runtime.arguments import GenerationArguments
from engine.runtime.keys import key_field, required_field
from engine.runtime.stage import Stage, StageResult, format_counts, run_stage
from engine.runtime.world import device_of
from engine.sampling.answers import Answer
from engine.sampling.prompts import draw_both_sides
from engine.sampling.sampler import sample_in_turn
from engine.tokens.contract import contract_of

RECIPE_VERSION = 3
EXAMPLE = (
    "accelerate launch stages/rejection_sampling.py --config configs/stages/rejection_sampling.yaml --num_answers 8"
)
TRAITS = StageTraits(
    purpose="Samples several answers per prompt and keeps those that the reward model scores best.",
    position=50,
    kind="generates",
    headlines=["winners"],
)
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class RejectionSamplingArguments(GenerationArguments):
    prompts: list[str] = required_field("files of prompts", role="rows")
    validation_prompts: list[str] | None = key_field(None, "held-out prompts: their winners are eval rows", role="rows")
    policies: list[str] = required_field("one or more policies that answer, in turn", role="model")
    policy_names: list[str] | None = key_field(None, "their names, for the rows", role="runtime")
    reward_model: str = required_field("the reward model that ranks", role="model")
    num_answers: int = key_field(8, "K, answers a prompt, over all policies")
    temperature_range: list[float] | None = key_field(None, "[lowest, highest]: each prompt draws its temperature")
    system_prompts: list[str] | None = key_field(
        None, "each prompt without one draws one of these; the reward model sees it, the winner's row does not"
    )
    keep_system_prompt: bool = key_field(False, "keep the drawn system prompt in the winner's row")
    num_prompts: int | None = key_field(None, "prompts drawn; null: all")
    num_validation_prompts: int | None = key_field(None, "held-out prompts drawn; null: all")
    round: int = key_field(1, "each round draws the next prompts")
    keep_by: Literal["rank", "min_score", "top_quartile"] = key_field(
        "rank", "which of a prompt's num_winners best win: all, by score, or in the top quartile of all prompts' best"
    )
    num_winners: int = key_field(1, "answers kept of a prompt at most")
    min_score: float | None = key_field(None, "reward that a winner has at least, with keep_by: min_score")
    min_answer_tokens: int = key_field(0, "shorter answers never win; the end token counts")
    max_answer_tokens: int | None = key_field(None, "longer answers never win; null: no limit")
    keep_unfinished: bool = key_field(False, "let answers win that the length limit cut off")


ARGUMENTS = (RejectionSamplingArguments,)


def pick_winners(candidates: Sequence[Candidate], arguments: RejectionSamplingArguments) -> list[int] | str:
    """Indices of the best candidates, best first, or why none is kept: empty, unfinished, length, identical, tie."""
    alive = [index for index, candidate in enumerate(candidates) if candidate.text.strip()]
    if not alive:
        return "empty"
    if not arguments.keep_unfinished:
        alive = [index for index in alive if candidates[index].ended]
        if not alive:
            return "unfinished"
    longest = arguments.max_answer_tokens or max(candidate.num_tokens for candidate in candidates)
    alive = [index for index in alive if arguments.min_answer_tokens <= candidates[index].num_tokens <= longest]
    if not alive:
        return "length"
    distinct = list({candidates[index].text.strip(): index for index in reversed(alive)}.values())
    if len(distinct) < 2:
        return "identical"
    scores = {index: candidates[index].score or 0.0 for index in distinct}
    if len(set(scores.values())) == 1:
        return "tie"
    return sorted(distinct, key=lambda index: (-scores[index], index))[: arguments.num_winners]


def reward_of(group: Candidates, index: int) -> float:
    return group.candidates[index].score or 0.0


def keep_scores_above(groups: Sequence[Candidates], least: float, reason: str) -> list[Candidates]:
    """The groups with those winners alone that score `least` or more."""
    kept = []
    for group in groups:
        winners = [index for index in group.kept if reward_of(group, index) >= least]
        change: dict[str, Any] = {"kept": winners}
        if group.kept and not winners:
            change["dropped"] = reason
        kept.append(group.model_copy(update=change))
    return kept


def request_for(prompt: Prompt, arguments: RejectionSamplingArguments) -> tuple[Prompt, float | None]:
    """The prompt as the policy sees it, with its temperature (None: the fixed one); both drawn by seed and prompt."""
    drawn = random.Random(f"{arguments.seed}/{arguments.round}/{prompt.prompt_id}")
    temperature = drawn.uniform(*arguments.temperature_range) if arguments.temperature_range else None
    if not arguments.system_prompts or prompt.prompt[0].role == "system":
        return prompt, temperature
    system = Message(role="system", content=drawn.choice(arguments.system_prompts))
    return Prompt(prompt=[system, *prompt.prompt], tools=prompt.tools, group_id=prompt.group_id), temperature


def main(stage: Stage, arguments: RejectionSamplingArguments) -> StageResult:
    drawn = draw_both_sides(
        (arguments.prompts, arguments.num_prompts),
        (arguments.validation_prompts, arguments.num_validation_prompts),
        seed=arguments.seed,
        purpose="rejection_sampling",
        round=arguments.round,
    )
    shown = [request_for(prompt, arguments) for _, prompt in drawn]
    number, policies = arguments.num_answers, arguments.policies
    log.info("%d prompts x %d answers", len(drawn), number)
    purpose = f"{stage.name}/{arguments.round}"
    answers = sample_in_turn(stage, policies, shown, arguments, num_answers=number, purpose=purpose)
    flat = [
        ScoringItem(prompt, answer.text, answer.ended)
        for (prompt, _), own in zip(shown, answers, strict=True)
        for answer in own
    ]
    scores = score_by_reward_model(
        stage,
        "scores",
        arguments.reward_model,
        flat,
        device=device_of(arguments.use_cpu),
        dtype=arguments.dtype,
        batch_size=arguments.generation_batch_size,
    )
    names = [(arguments.policy_names or policies)[k % len(policies)] for k in range(number)]
    groups = [
        _group(prompt, answers[place], scores[place * number : (place + 1) * number], names, arguments)
        for place, (prompt, _) in enumerate(shown)
    ]
    least = arguments.min_score
    if arguments.keep_by == "top_quartile":
        best = [reward_of(group, group.kept[0]) for group in groups if group.kept]
        least = float(np.quantile(best, 0.75)) if best else None
    if least is not None:
        groups = keep_scores_above(groups, least, "below_" + arguments.keep_by)

    winners: dict[str, list[Conversation]] = {"train": [], "validation": []}
    for (side, prompt), group in zip(drawn, groups, strict=True):
        winners[side] += rows_of(
            group, prompt, source=arguments.step or stage.name, keep_system_prompt=arguments.keep_system_prompt
        )
    dropped = Counter(group.dropped for group in groups if not group.kept)
    outputs = {"candidates": "candidates.jsonl"}
    if stage.is_main:
        write_rows(stage.folder / "candidates.jsonl", groups)
        for side, rows in winners.items():
            write_rows(stage.folder / f"winners.{side}.jsonl", rows)
    outputs |= {f"winners.{side}": f"winners.{side}.jsonl" for side, rows in winners.items() if rows}
    if not winners["train"]:
        raise ConfigError(
            f"no answer is kept of {len(flat)}: {format_counts(dropped)}; see max_new_tokens, keep_unfinished "
            "and keep_by"
        )
    log.info("%d winners, dropped: %s", sum(map(len, winners.values())), dict(dropped) or "none")
    gains = [
        reward_of(group, index) - sum(reward_of(group, k) for k in range(number)) / number
        for group in groups
        for index in group.kept
    ]
    metrics: dict[str, float | int | str | None] = {
        "prompts": len(drawn),
        "winners": sum(map(len, winners.values())),
        "reward_mean": sum(scores) / len(scores),
        "reward_gain_of_winners": sum(gains) / len(gains),
        "difficulty_mean": sum(group.spread or 0.0 for group in groups) / len(groups),
        "mean_answer_tokens": sum(len(answer.ids) for own in answers for answer in own) / len(flat),
        "ended_share": sum(answer.ended for answer in flat) / len(flat),
    }
    metrics |= {f"dropped_{reason}": count for reason, count in dropped.items()}
    return StageResult(outputs=outputs, metrics=metrics, contract=contract_of(load_tokenizer(arguments.policies[0])))


def _group(
    prompt: Prompt,
    answers: Sequence[Answer],
    scores: Sequence[float],
    names: Sequence[str],
    arguments: RejectionSamplingArguments,
) -> Candidates:
    candidates = [
        Candidate(text=answer.text, k=k, num_tokens=len(answer.ids), ended=answer.ended, score=score, policy=names[k])
        for k, (answer, score) in enumerate(zip(answers, scores, strict=True))
    ]
    picked = pick_winners(candidates, arguments)
    return Candidates(
        prompt=prompt.prompt,
        prompt_id=prompt.prompt_id,
        group_id=prompt.group_id,
        tools=prompt.tools,
        candidates=candidates,
        spread=float(np.std(scores)),
        **({"dropped": picked} if isinstance(picked, str) else {"kept": picked}),  # pyright: ignore[reportArgumentType]
    )


def rows_of(group: Candidates, prompt: Prompt, *, source: str, keep_system_prompt: bool) -> list[Conversation]:
    """A training row for each winner: under the prompt as it came, or as it was asked."""
    messages = group.prompt if keep_system_prompt else prompt.prompt
    return [
        Conversation(
            messages=[*messages, Message(role="assistant", content=group.candidates[index].text)],
            tools=prompt.tools,
            group_id=prompt.group_id,
            source=source,
            difficulty=group.spread,
        )
        for index in group.kept
    ]


if __name__ == "__main__":
    run_stage("rejection_sampling", ARGUMENTS, main)
