"""The training loop: what every training stage adds to its TRL trainer.

Evaluation before the first step, every eval_steps and at the end. The key `keep` chooses the model that is saved: by
default the one with the lowest eval_loss, step 0 included. Also here: early stopping, checkpoints that are complete or
absent, SIGTERM, and smaller batches after the device ran out of memory. Global batches, exact evaluation and guarded
steps are its base classes.

    class PolicyTrainer(TrainingLoop, SFTTrainer): ...
    trainer = PolicyTrainer(model, args=config, stage=stage, stage_arguments=arguments, ...)
    return train_and_save(trainer, model_config)
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PrinterCallback
from trl import DPOConfig, RewardConfig, SFTConfig
from trl.models.utils import prepare_deepspeed

from data_schemas.stage_keys import Keys
from engine.models.lora import Adapters, start_adapters
from engine.models.new_tokens import give_head_its_bias
from engine.models.verification import PROBE, probe
from engine.runtime import out_of_memory, preemption, progress, timing
from engine.runtime.arguments import KEEP_BY_ACCURACY, KEEP_LAST
from engine.runtime.complete_folder import move_into_place, write_marker
from engine.runtime.stage import Stage
from engine.tokens.token_rows import TokenRow
from engine.training import checkpoints
from engine.training.evaluation import ExactEvaluation
from engine.training.guards import GuardedSteps
from engine.training.host import Batch
from engine.training.unlogged import Unlogged

TRLConfig = SFTConfig | RewardConfig | DPOConfig
log = logging.getLogger(__name__)

# This project's defaults for TRL's keys, in every training stage.
DEFAULTS: Keys = {
    "eval_strategy": "steps",
    "eval_steps": 0.1,  # a share of all steps
    "save_steps": 0.1,
    "save_total_limit": 2,
    "report_to": "wandb",
}


class TrainingLoop(GuardedSteps, ExactEvaluation):
    """Mixin, to be placed before a TRL trainer among the bases. Its constructor also takes `stage`,
    `stage_arguments` and `adapters`."""

    token_row_type: type[TokenRow]  # of the rows in its datasets
    is_reward_model_trainer = False  # SharedRowsMixin reads it too
    loss_measure = ("eval_loss", 1)  # what messages call the held-out loss, and the sign by which they show it
    accuracy_metric = ""  # what keep: best_by_accuracy compares; empty where the rows hold no answers to compare

    def __init__(self, *args, stage: Stage, adapters: Adapters, **kwargs) -> None:
        self.stage, self.continued_adapter = stage, adapters.continued
        self._is_stopping = False  # SIGTERM came: training ends with the next checkpoint
        self._unlogged: Unlogged | None = None  # of the checkpoint that training resumes from
        self._evaluation_is_due = False  # the evaluation of the step that the next checkpoint holds has not run
        super().__init__(*args, peft_config=adapters.config, **kwargs)
        start_adapters(self.model, adapters.continued)
        give_head_its_bias(self.model)  # after the constructor has added the adapters

    def restore(self, progress: checkpoints.Progress) -> None:
        """Takes over what the Trainer itself does not restore from a checkpoint."""
        self._total_train_tokens = progress.num_tokens
        self._evaluation_is_due = progress.evaluation_is_due
        self.skipped_steps, self.recent_losses = progress.skipped_steps, progress.recent_losses
        self._unlogged = Unlogged.read(progress.unlogged)

    def counters(self) -> dict[str, int]:
        """What a kind of trainer counts beyond the Trainer, as of the last step, for the checkpoint."""
        return {}

    def training_step(
        self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        rows, folder = self.args.per_device_train_batch_size, Path(str(self.args.output_dir))
        with out_of_memory.halve_on_out_of_memory(
            folder, out_of_memory.TRAINING, rows, of=rows * self.args.gradient_accumulation_steps
        ):
            return super().training_step(model, inputs, num_items_in_batch)

    @timing.part("evaluate")
    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Restores the random state afterwards, so that repeating an interrupted evaluation changes nothing."""
        step = self.state.global_step
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        rows, folder = self.args.per_device_eval_batch_size, Path(str(self.args.output_dir))
        try:
            with (
                torch.random.fork_rng(devices),
                out_of_memory.halve_on_out_of_memory(folder, out_of_memory.EVALUATION, rows),
            ):
                metrics = super().evaluate(*args, **kwargs)
        except preemption.Preempted:
            if step and not self._evaluation_is_due:  # else a resumed run's: the checkpoint of this step exists
                self._evaluation_is_due = True
                self._save_checkpoint(self.model, None)
            raise
        self._evaluation_is_due = False
        self.check_evaluation(metrics)
        losses = self.stage.tracker.history("eval_loss") | {step: metrics["eval_loss"]}
        if self.kept_step({step: metrics}) == step:
            self._save_best(step)
        if self._is_out_of_patience(losses):
            log.info("no better eval_loss in %d evaluations: stopping at step %d", self.stage_arguments.patience, step)
            self.control.should_training_stop = True
        return metrics

    def kept_step(self, latest: Mapping[int, Mapping[str, float]] | None = None) -> int:
        """The evaluated step whose model `keep` saves; `latest` are metrics by step that are not in the tracker yet."""
        losses, accuracies = (
            self.stage.tracker.history(name)
            | {step: metrics[name] for step, metrics in (latest or {}).items() if name in metrics}
            for name in ("eval_loss", self.accuracy_metric)
        )
        return kept_step(losses, accuracies, keep=self.stage_arguments.keep)

    def check_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Raises BadStep if the metrics of an evaluation show that training has failed."""

    def _is_out_of_patience(self, losses: Mapping[int, float]) -> bool:
        patience = self.stage_arguments.patience
        return patience is not None and bool(losses) and sum(at > best_step(losses) for at in losses) >= patience

    def _run_epoch(self, *args, **kwargs) -> None:
        """Skips the epoch if training had ended when the checkpoint was saved: the Trainer would take one more step."""
        if self._unlogged:
            self._unlogged.give_back(self)
            self._unlogged = None
        if self.has_ended():
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def has_ended(self) -> bool:
        """Whether training has ended by the steps taken and the evaluations logged so far."""
        is_last = self.state.global_step >= self.state.max_steps
        return is_last or self._is_out_of_patience(self.stage.tracker.history("eval_loss"))

    @timing.part("evaluate")
    def evaluate_once(self) -> dict[str, float]:
        """The metrics of the model as it was loaded, without training. Saves no best model and logs no step."""
        if self.is_deepspeed_enabled and self.deepspeed is None:
            # Its engine moves the model to the device and, under ZeRO-3, gathers the sharded weights layer by layer.
            prepare_deepspeed(self.model, self.accelerator)
        else:  # in the precision of training, like the reference's log-probs
            self.model = cast(PreTrainedModel, self.accelerator.prepare_model(self.model, evaluation_mode=True))
        self.remove_callback(PrinterCallback)
        with out_of_memory.explain_out_of_memory(
            out_of_memory.EVALUATION, self.args.per_device_eval_batch_size, hint="; the numbers stay the same"
        ):
            metrics = super().evaluate()
        timings = ("_runtime", "_per_second")
        return {
            name: value for name, value in metrics.items() if name.startswith("eval_") and not name.endswith(timings)
        }

    @timing.part("save")
    @progress.activity("saving the best model")
    def _save_best(self, step: int) -> None:
        """All processes call this: under ZeRO-3 the weights are gathered from all of them."""
        folder = Path(str(self.args.output_dir))
        partial = folder / f".best-{step}.partial"
        self.save_model(str(partial))
        probed = probe(self, self.token_row_type)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for leftover in ("training_args.bin", "README.md"):
                (partial / leftover).unlink(missing_ok=True)
            save_file(probed, partial / PROBE)
            write_marker(partial)
            move_into_place(partial, checkpoints.best_folder(folder, step))
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial) -> str:
        """Where the Trainer writes a checkpoint, which is moved into place once it is complete."""
        return str(Path(str(self.args.output_dir)) / checkpoints.SAVING)

    @timing.part("save")
    @progress.activity("saving a checkpoint")
    def _save_checkpoint(self, model: torch.nn.Module, trial) -> None:
        """A complete checkpoint with this project's own progress. Raises Preempted if SIGTERM has come."""
        super()._save_checkpoint(model, trial)
        unlogged = Unlogged.of(self)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(str(self.args.output_dir))
            best = self.kept_step()
            progress = checkpoints.Progress(
                step=self.state.global_step,
                best_step=best,
                num_tokens=int(self._total_train_tokens),
                processes=self.args.world_size,
                evaluation_is_due=self._evaluation_is_due,
                skipped_steps=self.skipped_steps,
                recent_losses=list(self.recent_losses),
                unlogged=unlogged.content() if unlogged else None,
                counters=self.counters(),
            )
            self.stage.tracker.save(Path(self._get_output_dir(trial)) / f"checkpoint-{progress.step}")
            checkpoints.publish(folder, progress)
            checkpoints.prune(folder, keep=self.args.save_total_limit, best_step=best)
        self.accelerator.wait_for_everyone()
        if self._is_stopping:
            raise preemption.Preempted(f"training resumes from step {self.state.global_step}")

    def answer_sigterm(self) -> None:
        """At the end of a step: if SIGTERM has come, saves a checkpoint now and leaves the evaluation for later.

        All processes call this.
        """
        if preemption.is_requested(self.accelerator):
            self._is_stopping, self._evaluation_is_due = True, self.control.should_evaluate
            self.control.should_save, self.control.should_evaluate = True, False

    def create_model_card(self, *args, **kwargs) -> None:
        """Writes none: the stage's record says how the model was trained."""


def best_step(losses: Mapping[int, float]) -> int:
    """The earliest step with the lowest eval_loss; a loss that is not a number never wins."""
    return min(losses, key=lambda step: (math.inf if math.isnan(losses[step]) else losses[step], step))


def kept_step(losses: Mapping[int, float], accuracies: Mapping[int, float], *, keep: str) -> int:
    """The step whose model is saved, of those with an eval_loss. Of equal accuracies it is that with the lower loss."""
    if keep == KEEP_LAST:
        return max(losses)
    if keep == KEEP_BY_ACCURACY:
        known = {step: value for step, value in accuracies.items() if step in losses and not math.isnan(value)}
        highest = max(known.values(), default=math.nan)
        return best_step({step: losses[step] for step, value in known.items() if value == highest} or losses)
    return best_step(losses)


def prepare_config(training: TRLConfig) -> None:
    """Sets, in place, what every stage needs in TRL's config; called before the trainer is constructed."""
    training.report_to = []  # the stage's own tracker logs
    training.eval_on_start = False
    training.load_best_model_at_end = False
    training.dataloader_drop_last = False
    training.remove_unused_columns = False
    if isinstance(training, SFTConfig):
        training.shuffle_dataset = False
        training.eval_packing = False
    if not (isinstance(training, SFTConfig) and training.packing):
        training.max_length = None  # longer rows were left out when they were tokenized: TRL would cut off their ends
