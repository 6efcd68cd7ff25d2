"""What every training stage adds to its TRL trainer.

Evaluation before the first step, every eval_steps and at the end; the best model by eval_loss, step 0 among the
candidates, is what is saved; early stopping; global batches that do not depend on the number of processes; every logged
number in metrics.jsonl; resume from the newest whole checkpoint.

    class PolicyTrainer(TrainingLoop, SFTTrainer): ...
    return train_and_save(stage, trainer, arguments, model)
"""

import logging
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as HFTrainingArguments
from trl import ModelConfig
from trl.models.utils import prepare_deepspeed

from data_schemas.errors import ConfigError, StageError, UserError
from engine.models.lora import merge_adapter
from engine.models.verification import PROBE, check_trained, check_weights, probe
from engine.runtime import out_of_memory, preemption, timing
from engine.runtime.arguments import TrainingStageArguments
from engine.runtime.complete_folder import move_into_place, write_marker
from engine.runtime.stage import Stage, StageResult
from engine.tokens.contract import contract_of
from engine.tokens.token_rows import TokenRow
from engine.training import checkpoints
from engine.training.evaluation import ExactEvaluation
from engine.training.guards import GuardedSteps

log = logging.getLogger(__name__)

# Ours for TRL's keys, in every training stage.
DEFAULTS: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 0.1,  # a share of all steps
    "save_steps": 0.1,
    "save_total_limit": 2,
    "report_to": "wandb",
}


class TrainingLoop(GuardedSteps, ExactEvaluation):
    """Goes before a TRL trainer in the bases; `stage` and `stage_arguments` are set before `train`."""

    token_row_type: type[TokenRow]  # of the rows of its data sets
    stage: Stage
    stage_arguments: TrainingStageArguments
    _is_stopping = False  # for SIGTERM, with the next checkpoint
    _evaluation_is_due = False  # of the step that the next checkpoint is of

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        rows, folder = self.args.per_device_train_batch_size, Path(str(self.args.output_dir))
        with out_of_memory.halve_on_out_of_memory(
            folder, out_of_memory.TRAINING, rows, of=rows * self.args.gradient_accumulation_steps
        ):
            return super().training_step(*args, **kwargs)

    @timing.part("evaluate")
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Leaves the random state as it was, so that one that is cut off and made again changes nothing."""
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
            if step and not self._evaluation_is_due:  # else it was left over: the checkpoint is there
                self._evaluation_is_due = True
                self._save_checkpoint(self.model, None)
            raise
        self._evaluation_is_due = False
        self.check_evaluation(metrics)
        losses = self.stage.tracker.history("eval_loss") | {step: metrics["eval_loss"]}
        best = best_step(losses)
        if best == step:
            self._save_best(step)
        if self._is_out_of_patience(losses):
            log.info("no better eval_loss in %d evaluations: stopping at step %d", self.stage_arguments.patience, step)
            self.control.should_training_stop = True
        return metrics

    def check_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Raises BadStep where the numbers of an evaluation show that training has failed."""

    def _is_out_of_patience(self, losses: Mapping[int, float]) -> bool:
        patience = self.stage_arguments.patience
        return patience is not None and bool(losses) and sum(at > best_step(losses) for at in losses) >= patience

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Not where training was over when the checkpoint was saved: the Trainer would make one step more."""
        over = self.state.global_step >= self.state.max_steps
        if over or self._is_out_of_patience(self.stage.tracker.history("eval_loss")):
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    @timing.part("evaluate")
    def evaluate_once(self) -> dict[str, float]:
        """What an evaluation outside training says of the model as it was loaded; no best model is kept of it."""
        if self.is_deepspeed_enabled and self.deepspeed is None:
            # Its engine puts the model on the device and, under ZeRO-3, gathers the divided weights layer by layer.
            prepare_deepspeed(self.model, self.accelerator)  # pyright: ignore[reportArgumentType]
        else:  # in the precision of training, as its reference already is
            self.model = self.accelerator.prepare_model(self.model, evaluation_mode=True)
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

    def _get_output_dir(self, trial: Any) -> str:
        """Where the Trainer writes a checkpoint; it is put into its place when all of it is there."""
        return str(Path(str(self.args.output_dir)) / checkpoints.SAVING)

    @timing.part("save")
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(str(self.args.output_dir))
            best = best_step(self.stage.tracker.history("eval_loss"))
            progress = checkpoints.Progress(
                step=self.state.global_step,
                best_step=best,
                num_tokens=int(self._total_train_tokens),
                processes=self.args.world_size,
                evaluation_is_due=self._evaluation_is_due,
                skipped_steps=self.skipped_steps,
                recent_losses=list(self.recent_losses),
            )
            self.stage.tracker.save(Path(self._get_output_dir(trial)) / f"checkpoint-{progress.step}")
            checkpoints.publish(folder, progress)
            checkpoints.prune(folder, keep=self.args.save_total_limit, best_step=best)
        self.accelerator.wait_for_everyone()
        if self._is_stopping:
            raise preemption.Preempted(f"training goes on from step {self.state.global_step}")

    def answer_sigterm(self) -> None:
        """At the end of a step: saves a checkpoint now where SIGTERM has come, the evaluation left for later.

        All processes call this.
        """
        if preemption.is_requested(self.accelerator):
            self._is_stopping, self._evaluation_is_due = True, self.control.should_evaluate
            self.control.should_save, self.control.should_evaluate = True, False

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: what made a model stands in its record."""


def best_step(losses: Mapping[int, float]) -> int:
    """The earliest step with the lowest eval_loss; a loss that is not a number never wins."""
    return min(losses, key=lambda step: (math.inf if math.isnan(losses[step]) else losses[step], step))


class _Track(TrainerCallback):
    """Logged values into the tracker; evaluation and a log line at the last step; plain lines off a terminal; SIGTERM
    answered after every step and every batch of an evaluation."""

    def __init__(self, trainer: TrainingLoop) -> None:
        self.trainer, self.tracker, self.is_main = trainer, trainer.stage.tracker, trainer.stage.is_main

    def on_prediction_step(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if preemption.is_requested(self.trainer.accelerator):
            raise preemption.Preempted(f"training goes on from step {state.global_step}")

    def on_step_end(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_log = True
        self.trainer.remember_step()
        self.trainer.answer_sigterm()

    def on_log(
        self,
        args: HFTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        # Timings are in the record; a resumed run would log them twice, and these two of the steps since then alone.
        left_out = ("_runtime", "_per_second", "train_loss", "total_flos")
        values = {key: value for key, value in logs.items() if not key.endswith(left_out)}
        self.tracker.log(values, step=state.global_step)
        if self.is_main and not sys.stderr.isatty():
            shown = {
                key: value
                for key, value in values.items()
                if (isinstance(value, float) and "loss" in key) or key == "learning_rate"
            }
            text = "  ".join(f"{key} {value:.4g}" for key, value in shown.items())
            if text:
                log.info("step %d/%d  %s", state.global_step, state.max_steps, text)


def prepare_config(training: Any) -> None:
    """TRL's config as every stage needs it; called before the trainer is made."""
    training.report_to = []  # ours is the tracker
    training.eval_on_start = False
    training.load_best_model_at_end = False
    training.dataloader_drop_last = False
    training.shuffle_dataset = False
    training.remove_unused_columns = False
    if hasattr(training, "eval_packing"):
        training.eval_packing = False
    if not getattr(training, "packing", False):
        training.max_length = None  # longer rows are left out when they are tokenized: TRL would cut off their ends


def _newest_whole(folder: Path, processes: int, *, is_main: bool) -> tuple[Path, checkpoints.Progress] | None:
    """The checkpoint that all processes resume from: verified by the first one, told to the others."""
    found: list[Any] = [None, None]
    if is_main:
        try:
            found[0] = checkpoints.newest_complete(folder, processes=processes)
        except UserError as error:
            found[1] = str(error)
    broadcast_object_list(found)
    if found[1]:
        raise ConfigError(found[1])
    return found[0]


@timing.part("train")
def train_and_save(
    stage: Stage,
    trainer: Any,
    arguments: TrainingStageArguments,
    model: ModelConfig,
    *,
    is_reward_model: bool = False,
    metrics: Mapping[str, int] | None = None,
) -> StageResult:
    """Trains from the newest whole checkpoint or from the start, and leaves the best model in `model/`.

    Returns what the record says: `metrics`, eval_loss at step 0 and at the best step, and that step's metrics.
    """
    if trainer.is_deepspeed_enabled and arguments.on_bad_step == "skip":
        raise ConfigError(
            "on_bad_step: skip does not go with ZeRO, whose engine takes a step as soon as it has its "
            "gradients; set on_bad_step: stop"
        )
    folder = Path(str(trainer.args.output_dir))
    trainer.stage, trainer.stage_arguments = stage, arguments
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Track(trainer))
    newest = _newest_whole(folder, trainer.args.world_size, is_main=stage.is_main)
    # After a resume it would log step 0's numbers under another step, but where that step's are missing.
    trainer.args.eval_on_start = newest is None or newest[1].evaluation_is_due
    if newest:
        stage.tracker.load(newest[0])
    stage.tracker.forget_after(newest[1].step if newest else -1)
    if newest:
        log.info("resuming from step %d", newest[1].step)
        trainer._total_train_tokens = newest[1].num_tokens
        trainer._evaluation_is_due = newest[1].evaluation_is_due
        trainer.skipped_steps, trainer.recent_losses = newest[1].skipped_steps, newest[1].recent_losses
    with preemption.delayed():
        trainer.train(resume_from_checkpoint=str(newest[0]) if newest else None)
        preemption.forget()  # training is over: what is left leaves the record

    steps = trainer.state.global_step
    losses = stage.tracker.history("eval_loss")
    best = best_step(losses)
    if not math.isfinite(losses[best]):
        raise StageError("eval_loss is nan or infinite at every evaluation")
    if best == 0:
        log.warning("no step was better than the start (eval_loss %.4f): the model is saved as it came", losses[0])
    if stage.is_main:
        best_model = checkpoints.best_folder(folder, best)
        target = stage.folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        if model.use_peft:
            base = str(model.model_name_or_path)
            merge_adapter(
                base,
                best_model,
                target,
                is_reward_model=is_reward_model,
                dtype=model.dtype or "float32",
                in_own_process=trainer.is_deepspeed_enabled,
            )
        else:
            checkpoints.link(best_model, target, leave_out=PROBE)
        check_weights(target)
        check_trained(trainer, target, best_model / PROBE, model, is_reward_model=is_reward_model)
    trainer.accelerator.wait_for_everyone()
    at_best: dict[str, float | int | str | None] = {
        key: value for (at, key), value in stage.tracker.values.items() if at == best and key.startswith("eval_")
    }
    made = {
        **at_best,
        "eval_loss_at_step_0": losses.get(0),
        "best_step": best,
        "steps": steps,
        "skipped_steps": trainer.skipped_steps,
        **(metrics or {}),
    }
    return StageResult(outputs={"model": "model"}, metrics=made, contract=contract_of(trainer.processing_class))
