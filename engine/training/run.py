"""One training run of a stage: resume, train, publish the model that `keep` chooses.

return train_and_save(trainer, model_config)
"""

import copy
import logging
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as HFTrainingArguments
from trl import ModelConfig

from data_schemas.errors import ConfigError, StageError, UserError
from engine.models.card import ModelCard, write_card
from engine.models.loading import outside_zero3
from engine.models.lora import describe_adapter, precision_source
from engine.models.merging import write_plain
from engine.models.saved_precision import save_as_it_came
from engine.models.verification import PROBE, check_trained, check_weights
from engine.runtime import notices, preemption, progress, timing
from engine.runtime.arguments import KEEP_ADAPTER, KEEP_BY_ACCURACY
from engine.runtime.stage import StageResult
from engine.tokens.contract import contract_of
from engine.tokens.reward_template import end_at_the_end_token
from engine.training import checkpoints
from engine.training.loop import TrainingLoop, best_step, kept_step
from engine.training.wrapping import check_engine, engine_of

log = logging.getLogger(__name__)


@timing.part("train")
def train_and_save(
    trainer: TrainingLoop, model: ModelConfig, *, metrics: Mapping[str, int] | None = None
) -> StageResult:
    """Trains from the newest complete checkpoint or from the start, and writes the chosen model to `model/`.

    Returns the content of the record: `metrics`, eval_loss at step 0, and the metrics of the step that is saved.
    Raises ConfigError for keys that ZeRO does not support, StageError if no evaluation has a finite loss.
    """
    if trainer.is_deepspeed_enabled and trainer.stage_arguments.on_bad_step == "skip":
        raise ConfigError(
            "on_bad_step: skip is not supported by ZeRO, whose engine takes a step as soon as it has its "
            "gradients; set on_bad_step: stop"
        )
    trainer.remove_callback(PrinterCallback)
    counter = progress.Counter("training", total=0, unit="steps")
    callback = TrackingCallback(trainer, counter)
    trainer.add_callback(callback)
    checkpoint = _resume(trainer)
    with preemption.delayed(), progress.shown(counter):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        preemption.forget()  # training has ended: the stage goes on to its record
    return _publish(trainer, model, metrics or {}, engine=callback.engine)


def _resume(trainer: TrainingLoop) -> Path | None:
    """Restores the newest complete checkpoint's progress and metrics; its folder, or None to train from the start."""
    stage, folder = trainer.stage, Path(str(trainer.args.output_dir))
    newest = _newest_complete(folder, trainer.args.world_size, is_main=stage.is_main)
    # After a resume the Trainer would log step 0's metrics under another step, unless that step has none yet.
    trainer.args.eval_on_start = newest is None or newest[1].evaluation_is_due
    if newest is None:
        stage.tracker.forget_after(-1)
        return None
    checkpoint, progress = newest
    stage.tracker.load(checkpoint)
    stage.tracker.forget_after(progress.step)
    log.info("resuming from step %d", progress.step)
    trainer.restore(progress)
    return checkpoint


def _newest_complete(folder: Path, processes: int, *, is_main: bool) -> tuple[Path, checkpoints.Progress] | None:
    """The checkpoint that all processes resume from: the first process verifies it and broadcasts the answer."""
    answer: list[tuple[Path, checkpoints.Progress] | str | None] = [None]
    if is_main:
        try:
            answer[0] = checkpoints.newest_complete(folder, processes=processes)
        except UserError as error:
            answer[0] = str(error)
    broadcast_object_list(answer)
    if isinstance(answer[0], str):
        raise ConfigError(answer[0])
    return answer[0]


def _publish(trainer: TrainingLoop, model: ModelConfig, metrics: Mapping[str, int], *, engine: str) -> StageResult:
    """Writes the model that `keep` chooses to `model/`, verifies it, and returns the content of the record."""
    stage = trainer.stage
    losses, accuracies = (stage.tracker.history(name) for name in ("eval_loss", trainer.accuracy_metric))
    best, keep = trainer.kept_step(), trainer.stage_arguments.keep
    if not math.isfinite(losses[best]):
        is_lowest = best == best_step(losses)
        where = "every evaluation" if is_lowest else f"step {best}, whose model keep={keep} saves"
        raise StageError(f"eval_loss is nan or infinite at {where}")
    for warning in warnings_of(losses, accuracies, best, keep=keep, measure=trainer.loss_measure):
        notices.warn(log, "%s", warning)
    if trainer.skipped_steps:
        notices.keep(f"{trainer.skipped_steps} steps were skipped, since their loss or gradient was bad; see log.txt")
    if stage.is_main:
        _write_model(trainer, model, best)
    trainer.accelerator.wait_for_everyone()
    at_best: dict[str, float | int | str | None] = {
        key: value for (at, key), value in stage.tracker.values.items() if at == best and key.startswith("eval_")
    }
    recorded = {
        **at_best,
        "eval_loss_at_step_0": losses.get(0),
        "best_step": best,
        "steps": trainer.state.global_step,
        "skipped_steps": trainer.skipped_steps,
        **metrics,
    }
    tokenizer = trainer.processing_class
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return StageResult(
        outputs={"model": "model"},
        metrics=recorded,
        contract=contract_of(tokenizer),
        engine=engine,
    )


def warnings_of(
    losses: Mapping[int, float],
    accuracies: Mapping[int, float],
    kept: int,
    *,
    keep: str,
    measure: tuple[str, int] = ("eval_loss", 1),
) -> Iterator[str]:
    """What a user should know of the model that is saved. `measure` is what the losses are called, and the sign by
    which they are shown: -1 where they are rewards."""
    name, sign = measure
    if kept == 0:
        at_start = "accuracy" if keep == KEEP_BY_ACCURACY else f"{name} {sign * losses[0]:.4f}"
        warning = f"no step was better than the start ({at_start}): the model is saved as it was loaded"
        by_accuracy = kept_step(losses, accuracies, keep=KEEP_BY_ACCURACY)
        if by_accuracy:
            warning += (
                f"; the accuracy on held-out pairs rose from {accuracies[0]:.3f} to {accuracies[by_accuracy]:.3f} at "
                f"step {by_accuracy}, which keep={KEEP_BY_ACCURACY} saves"
            )
        yield warning
    elif losses[kept] > losses.get(0, math.inf):
        yield (
            f"the saved model, of step {kept}, has a {'higher' if sign > 0 else 'lower'} {name} "
            f"({sign * losses[kept]:.4f}) than the start ({sign * losses[0]:.4f}), since keep is {keep}"
        )


def _write_model(trainer: TrainingLoop, model: ModelConfig, best: int) -> None:
    """The best model in `model/`, its adapter merged unless `at_end` keeps it. Raises StageError if it is not the
    trained one."""
    best_model = checkpoints.best_folder(Path(str(trainer.args.output_dir)), best)
    target, is_reward_model = trainer.stage.folder / "model", trainer.is_reward_model_trainer
    shutil.rmtree(target, ignore_errors=True)
    if not model.use_peft:
        checkpoints.link(best_model, target, leave_out=PROBE)
    elif trainer.stage_arguments.at_end == KEEP_ADAPTER:
        _write_adapter(trainer, model, best_model, target)
    else:
        adapter = best_model.with_name(f"adapter-{best}")
        _write_adapter(trainer, model, best_model, adapter)
        with outside_zero3():  # only the main process is here
            write_plain(adapter, target, dtype=model.dtype or "float32", device=trainer.args.device)
        shutil.rmtree(adapter)
    _describe(trainer, model, target, best)
    check_weights(target)
    check_trained(trainer, target, best_model / PROBE, model, is_reward_model=is_reward_model)
    if model.model_name_or_path and save_as_it_came(target, precision_source(model.model_name_or_path)):
        check_weights(target)


def _write_adapter(trainer: TrainingLoop, model: ModelConfig, best_model: Path, folder: Path) -> None:
    """The best model's adapter, and what it was trained on."""
    shutil.rmtree(folder, ignore_errors=True)
    checkpoints.link(best_model, folder, leave_out=PROBE)
    describe_adapter(trainer.model, model, folder, continued=trainer.continued_adapter)


def _describe(trainer: TrainingLoop, model: ModelConfig, target: Path, best: int) -> None:
    """Writes the model card, and the tokenizer with which a reward model is read where it was trained to be."""
    tokenizer = trainer.processing_class
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if trainer.is_reward_model_trainer:
        saved = copy.deepcopy(tokenizer)
        end_at_the_end_token(saved)
        for file in target.glob("*token*.json"):
            file.unlink()  # a link to the checkpoint's file, which must not be written through
        (target / "chat_template.jinja").unlink(missing_ok=True)
        saved.save_pretrained(target)
    card = ModelCard(
        stage=trainer.stage.name,
        base=str(model.model_name_or_path or ""),
        data=[Path(path).name for path in trainer.stage_arguments.train_data],
        step=best,
        eval_loss=trainer.stage.tracker.history("eval_loss")[best],
        contract=contract_of(tokenizer),
        is_reward_model=trainer.is_reward_model_trainer,
    )
    write_card(target, card)


class TrackingCallback(TrainerCallback):
    """Sends logged values to the tracker, evaluates and logs at the last step, and prints plain lines if stderr is no
    terminal. Counts the steps. Answers SIGTERM after every step and every batch of an evaluation. `engine` is the one
    that wraps the model, once training has begun."""

    def __init__(self, trainer: TrainingLoop, counter: progress.Counter) -> None:
        self.counter, self.engine = counter, ""
        self.trainer, self.tracker, self.is_main = trainer, trainer.stage.tracker, trainer.stage.is_main

    def on_train_begin(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.engine = engine_of(cast(torch.nn.Module, self.trainer.model_wrapped))
        check_engine(self.engine)
        log.info("the engine that wraps the model: %s", self.engine)
        self.counter.total = state.max_steps
        self.counter.skip(state.global_step)

    def on_prediction_step(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if preemption.is_requested(self.trainer.accelerator):
            raise preemption.Preempted(f"training resumes from step {state.global_step}")

    def on_step_end(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_log = True
        self.counter.advance_to(state.global_step)
        self.counter.loss = self.trainer.recent_losses[-1] if self.trainer.recent_losses else None
        self.trainer.remember_step()
        self.trainer.answer_sigterm()

    def on_log(
        self,
        args: HFTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        # Timings are in the record; a resumed run would log them twice, and the last two only for the steps since then.
        left_out = ("_runtime", "_per_second", "train_loss", "total_flos")
        values = {key: value for key, value in (logs or {}).items() if not key.endswith(left_out)}
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
