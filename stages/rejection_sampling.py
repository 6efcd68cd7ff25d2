"""Rejection sampling: samples K answers to each prompt, scores them with the reward model, and keeps the best.

Llama 3 (arXiv 2407.21783, 4.2.2) samples K = 10-30 answers from the best policies so far, in later rounds with system
prompts that steer tone, style and format; the top quartile of reward scores is high quality (4.2.3). This stage differs
in one way: identical answers are dropped before they are ranked.

    accelerate launch stages/rejection_sampling.py --config configs/stages/rejection_sampling.yaml
"""

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_schemas.errors import ConfigError
from data_schemas.reading import write_rows
from data_schemas.rows import Candidate, Candidates, Conversation, Dropped, Message, Prompt, tag_of
from data_schemas.stage_keys import StageTraits
from engine.endpoints.paid_answers import endpoint_metrics
from engine.judging.ensemble import EnsembleScorer
from engine.judging.scoring import RewardModelScorer, Scorer, score_by_prompt, scored_candidates
from engine.judging.shared_scoring import ScoringSettings
from engine.models.policy_tokenizer import load_policy_tokenizer
from engine.runtime.keys import key_field, required_field
from engine.runtime.stage import Stage, StageResult, format_counts, run_stage
from engine.sampling.answering import AnsweringArguments, answer_round
from engine.sampling.answers import Answer
from engine.sampling.prompts import (
    PROMPT_ORDER_HELP,
    PromptOrder,
    Side,
    draw_both_sides,
    with_system_prompt,
    write_both_sides,
)
from engine.tokens.contract import contract_of

RECIPE_VERSION = 4
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
class RejectionSamplingArguments(AnsweringArguments):
    reward_model: str = required_field("the reward model that ranks", role="model")
    other_reward_models: list[str] | None = key_field(
        None, "more reward models, which rank together with it by `vote`", role="model", omitted_at_default=True
    )
    vote: Literal["mean", "worst"] | None = key_field(
        None,
        "how several reward models rank: by the mean or by the worst of their standardised scores (arXiv 2310.02743); "
        "in a recipe they are the variants of reward_model, whose average ranks where this is null",
        omitted_at_default=True,
    )
    num_answers: int = key_field(8, "K, answers to each prompt, over all policies", minimum=1, maximum=100_000)
    temperature_range: list[float] | None = key_field(
        None, "[lowest, highest]: each prompt draws its temperature", minimum=0
    )
    system_prompts: list[str] | None = key_field(
        None, "each prompt without one draws one of these; the reward model sees it, the winner's row does not"
    )
    keep_system_prompt: bool = key_field(False, "keep the drawn system prompt in the winner's row")
    num_prompts: int | None = key_field(None, "prompts drawn; null: all", minimum=1)
    num_validation_prompts: int | None = key_field(None, "held-out prompts drawn; null: all", minimum=0)
    prompt_order: PromptOrder = key_field("random", PROMPT_ORDER_HELP, omitted_at_default=True)
    earlier_candidates: list[str] | None = key_field(
        None, "answers of earlier rounds with their rewards, for prompt_order", role="rows", omitted_at_default=True
    )
    round: int = key_field(1, "each round draws the next prompts", minimum=0, maximum=10**6)
    keep_by: Literal["rank", "min_score", "top_quartile"] = key_field(
        "rank", "which of a prompt's num_winners best win: all, by score, or in the top quartile of all prompts' best"
    )
    num_winners: int = key_field(1, "the most answers that are kept for each prompt", minimum=1)
    min_score: float | None = key_field(None, "reward that a winner has at least, with keep_by: min_score")
    min_answer_tokens: int = key_field(0, "shorter answers never win; the end token counts", minimum=0)
    max_answer_tokens: int | None = key_field(None, "longer answers never win; null: no limit", minimum=1)
    keep_unfinished: bool = key_field(False, "let answers win that the length limit cut off")


ARGUMENTS = (RejectionSamplingArguments,)


def pick_winners(candidates: Sequence[Candidate], arguments: RejectionSamplingArguments) -> list[int] | Dropped:
    """Indices of the best candidates, best first; or why none is kept: empty, unfinished, length, identical, tie."""
    left = [index for index, candidate in enumerate(candidates) if candidate.text.strip()]
    if not left:
        return Dropped("empty")
    if not arguments.keep_unfinished:
        left = [index for index in left if candidates[index].ended]
        if not left:
            return Dropped("unfinished")
    longest = arguments.max_answer_tokens or max(candidate.num_tokens for candidate in candidates)
    left = [index for index in left if arguments.min_answer_tokens <= candidates[index].num_tokens <= longest]
    if not left:
        return Dropped("length")
    distinct = list({candidates[index].text.strip(): index for index in reversed(left)}.values())
    if len(distinct) < 2:
        return Dropped("identical")
    scores = {index: candidates[index].score or 0.0 for index in distinct}
    if len(set(scores.values())) == 1:
        return Dropped("tie")
    return sorted(distinct, key=lambda index: (-scores[index], index))[: arguments.num_winners]


def reward_of(group: Candidates, index: int) -> float:
    return group.candidates[index].score or 0.0


def keep_scores_above(groups: Sequence[Candidates], threshold: float, dropped: Dropped) -> list[Candidates]:
    """The groups with only those winners that score `threshold` or more; `dropped` is why the others are not kept."""
    kept = []
    for group in groups:
        winners = [index for index in group.kept if reward_of(group, index) >= threshold]
        reason = {"dropped": dropped.reason} if group.kept and not winners else {}
        kept.append(group.model_copy(update={"kept": winners, **reason}))
    return kept


def request_for(prompt: Prompt, arguments: RejectionSamplingArguments) -> tuple[Prompt, float | None]:
    """The prompt as the policy sees it, with its temperature (None: the key's); both drawn by seed and prompt."""
    drawn = random.Random(f"{arguments.seed}/{arguments.round}/{prompt.prompt_id}")
    temperature = drawn.uniform(*arguments.temperature_range) if arguments.temperature_range else None
    if not arguments.system_prompts:
        return prompt, temperature
    return with_system_prompt(prompt, drawn.choice(arguments.system_prompts)), temperature


def choose_winners(
    answers: Sequence[Answer], scores: Sequence[float], arguments: RejectionSamplingArguments
) -> Candidates:
    """The answers to one prompt with their scores, and which of them win or why none does."""
    group = scored_candidates(answers, scores)
    winners = pick_winners(group.candidates, arguments)
    choice = {"dropped": winners.reason} if isinstance(winners, Dropped) else {"kept": winners}
    return group.model_copy(update={"spread": float(np.std(scores)), **choice})


def apply_threshold(groups: Sequence[Candidates], arguments: RejectionSamplingArguments) -> list[Candidates]:
    """The groups without the winners that `keep_by` excludes: below min_score, or below the top quartile of all
    prompts' best."""
    threshold = arguments.min_score
    if arguments.keep_by == "top_quartile":
        best = [reward_of(group, group.kept[0]) for group in groups if group.kept]
        threshold = float(np.quantile(best, 0.75)) if best else None
    if threshold is None:
        return list(groups)
    return keep_scores_above(groups, threshold, Dropped(f"below_{arguments.keep_by}"))


def rows_of(group: Candidates, prompt: Prompt, *, source: str, keep_system_prompt: bool) -> list[Conversation]:
    """A training row for each winner with its reward; with the original prompt, or the system prompt drawn for it."""
    messages = group.prompt if keep_system_prompt else prompt.prompt
    return [
        Conversation(
            messages=[*messages, Message(role="assistant", content=group.candidates[index].text)],
            tools=prompt.tools,
            group_id=prompt.group_id,
            source=source,
            difficulty=group.spread,
            score=reward_of(group, index),
            **tag_of(prompt),
        )
        for index in group.kept
    ]


def metrics_of(
    groups: Sequence[Candidates], winners: Mapping[Side, Sequence[Conversation]], dropped: Mapping[str, int]
) -> dict[str, float | int | str | None]:
    candidates = [candidate for group in groups for candidate in group.candidates]
    rewards = [reward_of(group, index) for group in groups for index in range(len(group.candidates))]
    gains = [
        reward_of(group, index) - sum(reward_of(group, k) for k in range(len(group.candidates))) / len(group.candidates)
        for group in groups
        for index in group.kept
    ]
    return {
        "prompts": len(groups),
        "winners": sum(map(len, winners.values())),
        "reward_mean": sum(rewards) / len(rewards),
        "reward_gain_of_winners": sum(gains) / len(gains),
        "difficulty_mean": sum(group.spread or 0.0 for group in groups) / len(groups),
        "mean_answer_tokens": sum(candidate.num_tokens for candidate in candidates) / len(candidates),
        "ended_share": sum(candidate.ended for candidate in candidates) / len(candidates),
        **{f"dropped_{reason}": count for reason, count in dropped.items()},
    }


def scorer_of(stage: Stage, arguments: RejectionSamplingArguments) -> Scorer:
    settings, others = ScoringSettings.of(arguments), arguments.other_reward_models
    if not others or arguments.vote is None:
        return RewardModelScorer(stage, arguments.reward_model, settings)
    return EnsembleScorer(stage, [arguments.reward_model, *others], arguments.vote, settings)


def main(stage: Stage, arguments: RejectionSamplingArguments) -> StageResult:
    draw = draw_both_sides(arguments, purpose="rejection_sampling")
    drawn = draw.prompts
    requests = [request_for(prompt, arguments) for _, prompt in drawn]
    log.info("%d prompts x %d answers", len(drawn), arguments.num_answers)
    answers = answer_round(stage, arguments, requests, num_answers=arguments.num_answers, round=arguments.round)
    scorer = scorer_of(stage, arguments)
    scores = score_by_prompt(scorer, "scores", answers)

    groups = [choose_winners(*scored, arguments) for scored in zip(answers, scores, strict=True)]
    groups = apply_threshold(groups, arguments)
    winners: dict[Side, list[Conversation]] = {"train": [], "validation": []}
    for (side, prompt), group in zip(drawn, groups, strict=True):
        winners[side] += rows_of(
            group, prompt, source=arguments.step or stage.name, keep_system_prompt=arguments.keep_system_prompt
        )
    dropped = Counter(str(group.dropped) for group in groups if not group.kept)
    if stage.is_main:
        write_rows(stage.folder / "candidates.jsonl", groups)
    outputs = {"candidates": "candidates.jsonl"} | write_both_sides(stage, "winners", winners)
    if not winners["train"]:
        raise ConfigError(
            f"no answer is kept of {sum(map(len, answers))}: {format_counts(dropped)}; see max_new_tokens, "
            "keep_unfinished and keep_by"
        )
    log.info("%d winners, dropped: %s", sum(map(len, winners.values())), format_counts(dropped) or "none")
    metrics = {**draw.counts} | metrics_of(groups, winners, dropped)
    metrics |= endpoint_metrics(stage.folder, arguments.endpoints)
    return StageResult(
        outputs=outputs, metrics=metrics, contract=contract_of(load_policy_tokenizer(arguments.policies[0]))
    )


if __name__ == "__main__":
    run_stage("rejection_sampling", ARGUMENTS, main)
