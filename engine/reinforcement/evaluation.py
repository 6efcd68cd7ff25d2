"""Rewards of answers with their guards, and the evaluation of a policy on held-out prompts.

`eval_loss` is minus the mean reward, guards included, so that the training loop saves the model with the highest
held-out reward. It is nan beyond the KL budget: such a model is never the best.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from data_schemas.errors import ConfigError, StageError, UserError
from data_schemas.files import read_json, write_atomically
from data_schemas.rows import Prompt
from engine.reinforcement import advantages
from engine.reinforcement.answer_batches import TokenAnswer, answer_batch
from engine.reinforcement.log_probs import AnswerLogProbs
from engine.reinforcement.rewards import Rewards
from engine.reinforcement.rollouts import flat
from engine.reinforcement.schedule import Schedule
from engine.runtime import notices, preemption, progress
from engine.sampling.answers import Answer

# Shapes: P = prompts, K = answers to each, N = P x K.

log = logging.getLogger(__name__)
REFERENCE_REWARDS = "reference_rewards.json"  # in the checkpoints' folder


@dataclass(frozen=True)
class ScoredAnswers:
    """The rewards of answers."""

    raw_PK: torch.Tensor  # weighted sums, before the guards
    rewards_PK: torch.Tensor  # what training maximises
    metrics: dict[str, float]


class HeldOutRewards(AnswerLogProbs):
    """Mixin, to be placed before TRL's GRPOTrainer or RLOOTrainer among the bases."""

    schedule: Schedule
    loss_measure = ("reward on held-out prompts", -1)

    def __init__(self, *args, rewards: Rewards, **kwargs) -> None:
        self.rewards = rewards
        self._reference_rewards: dict[str, float] = {}  # of each prompt, by its id
        super().__init__(*args, **kwargs)

    def score(
        self, answers: Sequence[Sequence[Answer]], reference_P1: torch.Tensor | None, *, purpose: str
    ) -> ScoredAnswers:
        """The rewards of answers that are grouped by prompt, with metrics under TRL's names."""
        every = flat(answers)
        by_source = self.rewards.score(every, purpose=purpose)
        raw_PK = self.rewards.total(by_source).view(len(answers), -1)
        rewards_PK = raw_PK if reference_P1 is None else advantages.shaped(raw_PK, reference_P1)
        unfinished_PK = torch.tensor([not answer.ended for answer in every]).view_as(raw_PK)
        rewards_PK = rewards_PK - self.stage_arguments.unfinished_penalty * unfinished_PK
        metrics = {"reward": float(raw_PK.mean()), "reward_std": _deviation(raw_PK)}
        for name, rewards_N in by_source.items():
            metrics |= {f"rewards/{name}/mean": float(rewards_N.mean()), f"rewards/{name}/std": _deviation(rewards_N)}
        if reference_P1 is not None or self.stage_arguments.unfinished_penalty:
            metrics["reward_with_guards"] = float(rewards_PK.mean())
        return ScoredAnswers(raw_PK, rewards_PK, metrics | length_metrics(every))

    def reference_rewards(self, prompts: Sequence[Prompt]) -> torch.Tensor | None:
        """The mean reward of the reference's answers to each prompt, [P, 1]; None where the keys ask for no shaping.

        The reference answers all prompts of the training once, before it begins.
        """
        if self.stage_arguments.reward_shaping == "none":
            return None
        if not self._reference_rewards:
            self._reference_rewards = self._read_or_sample_reference_rewards()
        return torch.tensor([[self._reference_rewards[prompt.prompt_id]] for prompt in prompts])

    @progress.activity("sampling answers of the reference")
    def _read_or_sample_reference_rewards(self) -> dict[str, float]:
        file = Path(str(self.args.output_dir)) / REFERENCE_REWARDS
        kept = read_json(file)
        self.accelerator.wait_for_everyone()  # before the first process writes it
        if kept:
            return kept
        windows = range(math.ceil(self.state.max_steps / self.schedule.steps_of_window))
        used = sorted({number for window in windows for number in self.schedule.prompts_of(window)})
        prompts = [*self.eval_prompts, *(self.train_prompts[number] for number in used)]
        count = self.stage_arguments.num_reference_answers
        answers = self.reference_sampler.sample(prompts, num_answers=count, purpose="reference")
        by_source = self.rewards.score(flat(answers), purpose="reference")
        means_P = self.rewards.total(by_source).view(len(prompts), -1).mean(1).tolist()
        found = {prompt.prompt_id: mean for prompt, mean in zip(prompts, means_P, strict=True)}
        if self.stage.is_main:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(found))
        return found

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Reward, KL to the reference and lengths on the held-out prompts, with the same noise in every evaluation."""
        self.model.eval()
        try:
            metrics = self._evaluate_prompts()
        except (UserError, StageError) as error:
            self._evaluation_is_due = True
            self.keep_work(error)
            raise
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        num_samples = len(self.eval_prompts)
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=named, num_samples=num_samples)  # pyright: ignore[reportArgumentType]

    def keep_work(self, error: BaseException) -> None:
        """Saves the last step where sampling or scoring fails, and adds to the message that it is kept.

        Several processes do not all fail, so they save nothing.
        """
        if self.args.world_size > 1 or not self.state.global_step:
            return
        clause = self._save_last_step()
        if not isinstance(error, preemption.Preempted):
            error.args = (f"{error}; {clause}",)

    def _evaluate_prompts(self) -> dict[str, float]:
        arguments = self.stage_arguments
        reference_P1 = self.reference_rewards(self.eval_prompts)
        count = arguments.num_eval_answers
        answers = self.policy_sampler.sample(self.eval_prompts, num_answers=count, purpose="evaluation")
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        scored = self.score(answers, reference_P1, purpose=f"evaluation-{self.state.global_step}")
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        kl = self._kl_of_answers(flat(answers))
        is_over = arguments.kl_budget is not None and kl > arguments.kl_budget
        return {"loss": math.nan if is_over else -float(scored.rewards_PK.mean()), "kl": kl, **scored.metrics}

    def check_evaluation(self, metrics: dict[str, float]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Ends training beyond the KL budget. Raises ConfigError where it is spent before the first step."""
        budget, kl = self.stage_arguments.kl_budget, metrics["eval_kl"]
        if budget is None or kl <= budget:
            return
        if not self.state.global_step:
            raise ConfigError(
                f"kl_budget={budget:g} is spent before the first step: the policy is already {kl:.3g} nats an answer "
                "from its reference; raise kl_budget, or leave out reference_model"
            )
        found = f"the KL to the reference is {kl:.3g} nats an answer on held-out prompts"
        self.warn_of_end(f"{found}, above kl_budget={budget:g}")
        self.control.should_training_stop = True

    def has_ended(self) -> bool:
        """Also where an evaluation that a resumed run does not repeat was beyond the KL budget."""
        budget, history = self.stage_arguments.kl_budget, self.stage.tracker.history("eval_kl")
        return super().has_ended() or (budget is not None and any(kl > budget for kl in history.values()))

    def warn_of_end(self, reason: str) -> None:
        state = self.state
        notices.warn(log, "training ended after step %d of %d: %s", state.global_step, state.max_steps, reason)

    def _kl_of_answers(self, answers: Sequence[Answer]) -> float:
        """Mean over answers of log p(answer) - log p_reference(answer), in nats an answer."""
        size, processes = self.args.per_device_eval_batch_size, self.args.world_size
        batches = [range(start, min(start + size, len(answers))) for start in range(0, len(answers), size)]
        own = batches[self.args.process_index :: processes]
        # All processes make the same collective calls: one with fewer batches repeats the last of all.
        surplus = math.ceil(len(batches) / processes) - len(own)
        sums: list[float] = []
        for place, numbers in enumerate([*own, *[batches[-1]] * surplus]):
            rows = [TokenAnswer(n, self.tokens_of(answers[n].prompt), answers[n].ids) for n in numbers]
            batch = answer_batch(rows, pad_token_id=self.pad_token_id)
            batch = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
            kl_N = kl_of(self.log_probs(batch), self.reference_log_probs(batch), batch["completion_mask"])
            sums.append(float(kl_N.sum()) if place < len(own) else 0.0)
        return sum(gather_object(sums)) / len(answers)


def kl_of(policy_NC: torch.Tensor, reference_NC: torch.Tensor, mask_NC: torch.Tensor) -> torch.Tensor:
    """log p(answer) - log p_reference(answer), in nats, [N]."""
    return ((policy_NC - reference_NC) * mask_NC).sum(1)


def length_metrics(answers: Sequence[Answer]) -> dict[str, float]:
    """Lengths of answers in tokens, and the share without an end token, under TRL's names."""
    lengths = [len(answer.ids) for answer in answers]
    ended = [len(answer.ids) for answer in answers if answer.ended]
    return {
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": 1 - len(ended) / len(lengths),
        "completions/mean_terminated_length": sum(ended) / len(ended) if ended else 0.0,
    }


def _deviation(rewards: torch.Tensor) -> float:
    return float(rewards.std()) if rewards.numel() > 1 else 0.0
