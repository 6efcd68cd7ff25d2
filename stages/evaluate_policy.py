"""Evaluates a policy on the run's frozen prompts, compares it with the earlier ones, and chooses the best so far.

Every policy in a comparison is scored by the same judge, named in the row: the gold score where there is one, else a
reward model that no round optimised. The round's own reward model is reported as a proxy and decides nothing.

    accelerate launch stages/evaluate_policy.py --config configs/stages/evaluate_policy.yaml
"""

import itertools
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_schemas.artifact import Artifact, Choice
from data_schemas.reading import read_prompts, read_rows, write_rows
from data_schemas.rows import Candidate, Candidates, Prompt
from data_schemas.stage_keys import ConfigError
from engine.arguments import GenerationArguments, key_field, required_field
from engine.generation import Answer, Ask, device_of, in_batches, log_prob_sums, sample
from engine.models import load_causal, load_tokenizer
from engine.scoring import Answered, score_by_function, score_by_reward_model
from engine.stage import Made, Stage, run_stage
from engine.template import encode_prompt

# Shapes: P = prompts, K = answers a prompt.
RECIPE_VERSION = 1
EXAMPLE = "accelerate launch stages/evaluate_policy.py --config configs/stages/evaluate_policy.yaml"
NUM_RESAMPLES = 2_000
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class EvaluatePolicyArguments(GenerationArguments):
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
    num_prompts: int | None = key_field(None, "the first prompts; null: all")


ARGUMENTS = (EvaluatePolicyArguments,)


def paired_interval(differences_P: np.ndarray, *, seed: int) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over prompts of a paired difference (2,000 resamples)."""
    draws = np.random.default_rng(seed).integers(0, len(differences_P), (NUM_RESAMPLES, len(differences_P)))
    low, high = np.percentile(differences_P[draws].mean(axis=1), [2.5, 97.5])
    return float(differences_P.mean()), float(low), float(high)


def wins(scores_PK: np.ndarray, others_PK: np.ndarray) -> np.ndarray:
    """Share of answers of each prompt that score above the other policy's answer with the same k, [P]; ties half."""
    return ((scores_PK > others_PK) + 0.5 * (scores_PK == others_PK)).mean(axis=1)


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct word pairs over all word pairs (Li et al., arXiv 1510.03055)."""
    pairs = [pair for text in texts for words in [text.split()] for pair in itertools.pairwise(words)]
    return len(set(pairs)) / max(1, len(pairs))


def compare(
    scores_PK: np.ndarray, previous: Sequence[np.ndarray], *, seed: int
) -> tuple[dict[str, float | int | str | None], dict[str, str]]:
    """Win rates and score gains against the first and the previous policy, or why there are none."""
    metrics: dict[str, float | int | str | None] = {}
    reasons: dict[str, str] = {}
    for name, other_PK in (("first", previous[:1]), ("previous", previous[-1:])):
        if not other_PK:
            reasons[f"win_rate_vs_{name}"] = "this is the first policy"
            metrics[f"win_rate_vs_{name}"] = None
            continue
        for metric, differences_P in (
            (f"win_rate_vs_{name}", wins(scores_PK, other_PK[0])),
            (f"score_gain_vs_{name}", (scores_PK - other_PK[0]).mean(axis=1)),
        ):
            mean, low, high = paired_interval(differences_P, seed=seed)
            metrics |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
    return metrics, reasons


def earlier(
    folders: Sequence[str], judge: str, prompts: Sequence[Prompt], num_answers: int
) -> tuple[list[np.ndarray], list[Choice]]:
    """Scores [P, K] of the earlier evaluations and the policies so far. Refuses another judge or other prompts."""
    scores: list[np.ndarray] = []
    choices: list[Choice] = []
    for folder in map(Path, folders):
        record = Artifact.read(folder)
        if record is None:
            raise ConfigError(f"{folder} holds no finished evaluation")
        if record.metrics.get("judge") != judge:
            raise ConfigError(
                f"{folder} was judged by {record.metrics.get('judge')}, this one by {judge}: not comparable"
            )
        groups = read_rows(folder / "answers.jsonl", Candidates)
        same = [group.prompt_id for group in groups] == [prompt.prompt_id for prompt in prompts]
        if not same or any(len(group.candidates) != num_answers for group in groups):
            raise ConfigError(f"{folder} was made on other prompts or another num_answers: not comparable")
        scores.append(np.array([[candidate.score for candidate in group.candidates] for group in groups], dtype=float))
        choices = record.choices
    return scores, choices


def kl_to_first(
    stage: Stage, arguments: EvaluatePolicyArguments, asks: Sequence[Ask], answers: Sequence[Answer]
) -> float:
    """Mean over answers of log p(answer) - log p_first(answer), in nats an answer: estimates KL(policy || first)."""
    device = device_of(arguments.use_cpu)
    tokenizer = load_tokenizer(arguments.model_name_or_path)
    rows = [(encode_prompt(tokenizer, ask.prompt.prompt, tools=ask.prompt.tools), answer.ids)
            for ask, answer in zip(asks, answers, strict=True)]  # fmt: skip
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    pad = int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
    sums: list[list[float]] = []
    for name, path in (("policy", arguments.model_name_or_path), ("first", str(arguments.first_policy))):
        model = load_causal(path, dtype=arguments.dtype).to(device).eval()  # pyright: ignore[reportArgumentType]
        sums.append(
            in_batches(
                stage,
                f"log-probs-{name}",
                rows,
                lambda batch, model=model: log_prob_sums(model, batch, pad=pad),
                size=arguments.generation_batch_size,
            )
        )
        del model
    return float(np.mean(np.array(sums[0]) - np.array(sums[1])))


def main(stage: Stage, arguments: EvaluatePolicyArguments) -> Made:
    if (arguments.judge_function is None) == (arguments.judge_model is None):
        raise ConfigError("evaluate_policy needs judge_function or judge_model, one of them")
    path, device = arguments.model_name_or_path, device_of(arguments.use_cpu)
    prompts = read_prompts(arguments.prompts).rows[: arguments.num_prompts]
    judge = arguments.judge_function or "held-out reward model"
    previous, choices = earlier(arguments.previous or [], judge, prompts, arguments.num_answers)

    tokenizer = load_tokenizer(path)
    policy = load_causal(path, dtype=arguments.dtype).to(device).eval()  # pyright: ignore[reportArgumentType]
    asks = [Ask(prompt, k) for prompt in prompts for k in range(arguments.num_answers)]
    answers = sample(stage, "answers", policy, tokenizer, asks, arguments, purpose=stage.name)
    del policy
    answered = [Answered(ask.prompt, answer.text, answer.ended) for ask, answer in zip(asks, answers, strict=True)]

    def by_model(name: str, model: str) -> list[float]:
        return score_by_reward_model(stage, name, model, answered, device=device, dtype=arguments.dtype,
                                     batch_size=arguments.generation_batch_size)  # fmt: skip

    if arguments.judge_function:
        scores = score_by_function(arguments.judge_function, answered)
    else:
        scores = by_model("judge", str(arguments.judge_model))
    scores_PK = np.array(scores).reshape(len(prompts), arguments.num_answers)
    proxy = by_model("proxy", arguments.proxy_model) if arguments.proxy_model else None

    metrics, reasons = compare(scores_PK, previous, seed=arguments.seed)
    metrics |= {
        "judge": judge,
        "judge_mean": float(scores_PK.mean()),
        "gold_mean": float(scores_PK.mean()) if arguments.judge_function else None,
        "proxy_mean": float(np.mean(proxy)) if proxy else None,
        "kl_to_first": kl_to_first(stage, arguments, asks, answers) if arguments.first_policy else 0.0,
        "mean_answer_tokens": float(np.mean([len(answer.ids) for answer in answers])),
        "ended_share": float(np.mean([answer.ended for answer in answers])),
        "distinct_2": distinct_2([answer.text for answer in answers]),
        "prompts": len(prompts),
    }
    if not arguments.judge_function:
        reasons["gold_mean"] = "the recipe gives no judge_function"
    if proxy is None:
        reasons["proxy_mean"] = "no reward model has been trained yet"
    if stage.is_main:
        write_rows(stage.folder / "answers.jsonl", _groups(prompts, asks, answers, scores, path))
        if proxy:
            (stage.folder / "proxy_scores.json").write_text(json.dumps(proxy), encoding="utf-8")

    folder = os.path.relpath(path, stage.folder.parent)
    here = Choice(step=arguments.policy_step or path, folder=folder, score=float(scores_PK.mean()))
    ranking = sorted([*choices, here], key=lambda choice: -choice.score)  # stable: an equal one does not displace
    log.info("%s mean %.4f; best so far: %s", judge, here.score, ranking[0].step)
    outputs = {"answers": "answers.jsonl"} | ({"proxy_scores": "proxy_scores.json"} if proxy else {})
    return Made(outputs=outputs, metrics=metrics, reasons=reasons, choices=ranking)


def _groups(
    prompts: Sequence[Prompt], asks: Sequence[Ask], answers: Sequence[Answer], scores: Sequence[float], policy: str
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
