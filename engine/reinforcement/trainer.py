"""GRPO and RLOO in windows: TRL's trainers with this project's training loop, sampler, rewards and packed rows.

The losses are TRL's (`_compute_loss` of GRPOTrainer and RLOOTrainer). Before the first step of a window the present
policy answers the window's prompts, the answers are scored, and their advantages are computed. Training is saved and
evaluated only where a window ends, so a resumed training samples the same answers as one that was not interrupted.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer
from transformers.trainer_utils import TrainOutput
from trl import GRPOTrainer, RLOOTrainer

from data_schemas.errors import StageError, UserError
from engine.reinforcement import advantages
from engine.reinforcement.answer_batches import TokenAnswer, answer_batch
from engine.reinforcement.evaluation import HeldOutRewards, kl_of
from engine.reinforcement.flat_windows import FlatWindows, TrainingEnds
from engine.reinforcement.mismatch import Mismatch, metrics_of, mismatch
from engine.reinforcement.rewards import forget_scores
from engine.reinforcement.rollouts import flat
from engine.reinforcement.schedule import Schedule
from engine.runtime import preemption, progress
from engine.sampling.answers import Answer
from engine.tokens.token_rows import TokenPrompt
from engine.training import checkpoints
from engine.training.host import Batch

# Shapes: P = prompts of a window, K = answers to each, N = answers of a window or batch, C = tokens of the longest.

log = logging.getLogger(__name__)


def _scored_by_this_project(**kwargs: object) -> list[float]:
    """TRL's constructors ask for a reward, which is never called."""
    raise NotImplementedError


class PolicyGradientTrainer(HeldOutRewards):
    """Mixin, to be placed before TRL's GRPOTrainer or RLOOTrainer among the bases."""

    is_rloo: bool

    def __init__(self, *args, schedule: Schedule, **kwargs) -> None:
        self.schedule = schedule
        self._window = -1  # the present one; none has begun
        self._batches: dict[int, Batch] = {}  # of this process in the present window, by the number of the first answer
        self._flat = FlatWindows()
        self._counters: dict[str, int] = {}  # its counters as of the last step
        self._is_postponed = {"should_save": False, "should_evaluate": False}  # to the end of the window
        super().__init__(*args, reward_funcs=[_scored_by_this_project], **kwargs)
        # By it TRL's loss of GRPO asks for importance_sampling_ratio; the answers come from `policy_sampler`.
        self.use_vllm = self.stage_arguments.engine == "vllm"

    # -- rows and steps ---------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        return Trainer.get_train_dataloader(self)  # TRL's has the answers of a complete window in each batch

    def _get_train_sampler(self, train_dataset: object = None) -> SequentialSampler:  # pyright: ignore[reportIncompatibleMethodOverride]
        return SequentialSampler(cast(Dataset, self.train_dataset))  # pyright: ignore[reportArgumentType]

    def rows_of_step(self, step: int) -> list[int]:
        """The prompts of the step's window, numbered from 1 in the training data."""
        return sorted(number + 1 for number in self.schedule.prompts_of(self.schedule.window_of(step - 1)))

    def train(self, *args, **kwargs) -> TrainOutput:
        try:
            return super().train(*args, **kwargs)
        except TrainingEnds as end:
            self.warn_of_end(str(end))
            return TrainOutput(self.state.global_step, 0.0, {})

    def counters(self) -> dict[str, int]:
        return self._counters

    def remember_step(self) -> None:
        super().remember_step()
        self._counters = self._flat.counters()

    def restore(self, progress: checkpoints.Progress) -> None:
        super().restore(progress)
        self._counters = progress.counters
        self._flat.restore(progress)

    def answer_sigterm(self) -> None:
        """Inside a window saving and evaluating are postponed to its end, and SIGTERM is answered there."""
        control, step = self.control, self.state.global_step
        if not self.schedule.is_boundary(step) and step < self.state.max_steps:
            for name in self._is_postponed:
                self._is_postponed[name] |= getattr(control, name)
                setattr(control, name, False)
            return
        for name, is_postponed in self._is_postponed.items():
            setattr(control, name, getattr(control, name) or is_postponed)
            self._is_postponed[name] = False
        super().answer_sigterm()

    def _save_last_step(self) -> str:
        if self.schedule.is_boundary(self.state.global_step):
            return super()._save_last_step()
        return "the checkpoint of an earlier window is kept if one was saved"

    def _get_grad_norm(
        self, model: torch.nn.Module, grad_norm: torch.Tensor | float | None = None
    ) -> torch.Tensor | float | None:
        """In a window that teaches nothing the optimizer changes nothing, not even by its momentum."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self._flat.in_a_row and (self._flat.all_masked or not self.beta):
            model.zero_grad(set_to_none=True)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._metrics["train"].pop("step_time", None)  # a resumed run would log another one
        super().log(logs, start_time)

    # -- a window ---------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: Sequence[Mapping[str, int]] | Batch) -> Batch:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The tensors of a micro-batch of answers, given by number; begins the window where it is its first one."""
        if isinstance(inputs, dict):
            return Trainer._prepare_inputs(self, inputs)  # pyright: ignore[reportReturnType]
        window = self.schedule.window_of(self.state.global_step)
        if window != self._window:
            self._begin(window)
        return self._batches[inputs[0]["answer"] % self.schedule.answers_per_window]

    @progress.activity("sampling and scoring a window")
    def _begin(self, window: int) -> None:
        """Samples and scores the window's answers. Raises TrainingEnds where a guard ends training."""
        self._window, self._batches = window, {}
        numbers = self.schedule.prompts_of(window)
        prompts = [self.train_prompts[number] for number in numbers]
        folder = Path(str(self.args.output_dir))
        if self.stage.is_main:
            forget_scores(folder, keep=f"window-{window}")
        try:
            with self._in_evaluation_mode():
                reference_P1 = self.reference_rewards(prompts)
                num_answers = self.schedule.num_generations
                answers = self.policy_sampler.sample(prompts, num_answers=num_answers, purpose=f"window-{window}")
                rewards_PK = self._rewards_of(answers, reference_P1, window)
                self._make_batches(flat(answers), rewards_PK)
        except (UserError, StageError, preemption.Preempted) as error:
            self.keep_work(error)
            raise
        if preemption.is_requested(self.accelerator):
            self._is_stopping = True
            if self.state.global_step:
                self._save_last_step()  # raises Preempted once it has saved
            raise preemption.Preempted(f"training resumes from step {self.state.global_step}")

    @contextlib.contextmanager
    def _in_evaluation_mode(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def _rewards_of(
        self, answers: Sequence[Sequence[Answer]], reference_P1: torch.Tensor | None, window: int
    ) -> torch.Tensor:
        """The guarded rewards of a window, [P, K]; logs them and the lengths under TRL's names."""
        logged, every = self._metrics["train"], flat(answers)
        scored = self.score(answers, reference_P1, purpose=f"window-{window}")
        for name, value in scored.metrics.items():
            logged[name].append(value)
        lengths_PK = torch.tensor([[len(answer.ids) for answer in group] for group in answers])
        flat_P = advantages.without_variance(scored.rewards_PK)
        logged["frac_reward_zero_std"].append(float(flat_P.float().mean()))
        logged["groups_without_variance"].append(float(flat_P.sum()))
        logged["completions/reward_per_100_tokens"].append(advantages.length_slope(scored.raw_PK, lengths_PK))
        prompt_tokens = sum(len(self.tokens_of(group[0].prompt)) * len(group) for group in answers)
        self._total_train_tokens += prompt_tokens + int(lengths_PK.sum())
        logged["num_tokens"] = [self._total_train_tokens]
        masked_PK = torch.tensor([[self._is_masked(answer) for answer in group] for group in answers])
        self._flat.count(scored.rewards_PK, masked_PK, arguments=self.args, example=every[0].text)
        return scored.rewards_PK

    def _is_masked(self, answer: Answer) -> bool:
        return bool(self.args.mask_truncated_completions) and not answer.ended

    def _make_batches(self, answers: Sequence[Answer], rewards_PK: torch.Tensor) -> None:
        """Fills `_batches` with the micro-batches of this process."""
        per_device, size = self.args.per_device_train_batch_size, self.schedule.num_generations
        masks = [self._is_masked(answer) for answer in answers]
        rows = [
            TokenAnswer(number // size, self.tokens_of(answer.prompt), answer.ids, is_masked)
            for number, (answer, is_masked) in enumerate(zip(answers, masks, strict=True))
        ]
        own = list(
            self.schedule.micro_batches(size=per_device, rank=self.args.process_index, processes=self.args.world_size)
        )
        needs_reference = self.beta != 0 or self.stage_arguments.kl_budget is not None
        needs_policy = needs_reference or self.is_rloo or self.schedule.steps_of_window > 1 or self.use_vllm
        kl_N, mismatches = torch.zeros(len(rows)), list[Mismatch]()
        for numbers in own if needs_policy else ():
            batch = self._on_device(answer_batch([rows[n] for n in numbers], pad_token_id=self.pad_token_id))
            kept = {"policy": self.log_probs(batch)}
            if needs_reference:
                kept["reference"] = self.reference_log_probs(batch)
                kl_N[list(numbers)] = kl_of(kept["policy"], kept["reference"], batch["completion_mask"]).cpu()
            if self.use_vllm:
                sampled = [answers[n].log_probs or [] for n in numbers]
                mismatches.append(mismatch(kept["policy"], sampled, batch["completion_mask"]))
                kept["ratios"] = mismatches[-1].ratios_N1
            self._batches[numbers[0]] = kept
        for name, value in metrics_of(mismatches).items() if self.use_vllm else ():
            self._metrics["train"][name].append(value)
        if needs_reference:
            kl_N = cast(torch.Tensor, sum(gather_object([kl_N])))
            self._check_budget(float(kl_N.sum()) / max(1, len(rows) - sum(masks)))
        advantages_N = self._advantages(rewards_PK, kl_N.view_as(rewards_PK)).flatten()
        num_tokens = sum(len(row.ids) for row in rows if not row.is_masked)
        for numbers in own:
            kept = self._batches.get(numbers[0], {})
            self._batches[numbers[0]] = self._training_batch(rows, numbers, advantages_N, kept, num_tokens)

    def _check_budget(self, kl: float) -> None:
        """Logs the KL of the window's answers in nats an answer. Raises TrainingEnds beyond the budget."""
        self._metrics["train"]["kl_per_answer"].append(kl)
        budget = self.stage_arguments.kl_budget
        if budget is not None and kl > budget:
            raise TrainingEnds(f"the KL to the reference is {kl:.3g} nats an answer, above kl_budget={budget:g}")

    def _advantages(self, rewards_PK: torch.Tensor, kl_PK: torch.Tensor) -> torch.Tensor:
        """[P, K]. RLOO subtracts beta x KL of the answer from its reward; GRPO has it in the loss."""
        if self.is_rloo:
            normalize = self.stage_arguments.normalize_advantages
            return advantages.rloo_advantages(rewards_PK - self.beta * kl_PK, normalize=normalize)
        return advantages.grpo_advantages(rewards_PK, scale_rewards=self.stage_arguments.scale_rewards)

    def _training_batch(
        self,
        rows: Sequence[TokenAnswer],
        numbers: range,
        advantages_N: torch.Tensor,
        kept: Mapping[str, torch.Tensor],
        num_tokens: int,
    ) -> Batch:
        """What TRL's loss reads for these answers. Those whose advantage is 0 are left out where they change nothing:
        `share` is the part that is computed."""
        computed = [n for n in numbers if (self.beta and not self.is_rloo) or advantages_N[n]] or [numbers[0]]
        places = [n - numbers[0] for n in computed]
        batch = answer_batch([rows[n] for n in computed], pad_token_id=self.pad_token_id)
        batch["advantages"] = advantages_N[computed]
        if self.stage_arguments.loss_type == "bnpo":  # over the answers of the step instead of the window's
            step = numbers[0] // self.schedule.global_batch_size
            of_step = rows[step * self.schedule.global_batch_size : (step + 1) * self.schedule.global_batch_size]
            num_tokens = sum(len(row.ids) for row in of_step if not row.is_masked) * self.schedule.steps_per_window
        batch["num_items_in_batch"] = torch.tensor(num_tokens)
        batch["share"] = torch.tensor(len(computed) / len(numbers))
        width = batch["completion_ids"].size(1)
        if "reference" in kept:
            batch["ref_per_token_logps"] = kept["reference"][places, :width]
        if "policy" in kept:
            policy_NC = kept["policy"][places, :width]
            if self.is_rloo:
                batch["old_logps"] = (policy_NC * batch["completion_mask"].to(policy_NC.device)).sum(1)
            elif self.schedule.steps_of_window > 1:  # else TRL takes the log-probs of the step itself
                batch["old_per_token_logps"] = policy_NC
        if "ratios" in kept:
            batch["importance_sampling_ratio"] = kept["ratios"][places]
        return self._on_device(batch)

    def _on_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.args.device) for name, tensor in batch.items()}

    # -- the loss ---------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
        """TRL's loss of a micro-batch, with the model called on the packed row."""
        inputs = dict(inputs)
        share = inputs.pop("share")
        loss = cast(torch.Tensor, super()._compute_loss(self.on_answers(model, inputs), inputs))  # pyright: ignore[reportAttributeAccessIssue]
        is_mean_over_answers = self.is_rloo or self.stage_arguments.loss_type in ("grpo", "dr_grpo")
        return loss * share if is_mean_over_answers else loss


class GRPOLoopTrainer(PolicyGradientTrainer, GRPOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Group relative policy optimisation (arXiv 2402.03300)."""

    is_rloo = False
    token_row_type = TokenPrompt


class RLOOLoopTrainer(PolicyGradientTrainer, RLOOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """REINFORCE with a leave-one-out baseline (arXiv 2402.14740)."""

    is_rloo = True
    token_row_type = TokenPrompt
