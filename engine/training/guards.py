"""Guards against harmful optimizer steps: a loss or gradient that is not finite, or a loss far above the recent ones.

Such a step is detected before the optimizer takes it. Training then stops and keeps a checkpoint of the step before, or
the step is skipped and counted, as the key `on_bad_step` says.
"""

import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from data_schemas.errors import StageError
from engine.training import checkpoints
from engine.training.global_batches import GlobalBatching
from engine.training.host import Batch

WINDOW = 128  # recent losses that a new one is compared with, once half of them exist (OLMo 2, arXiv 2501.00656, 3.1)
log = logging.getLogger(__name__)


class BadStep(StageError):
    """A step that must not be taken, or after which the model learns nothing; the message gives cause and remedy."""


class GuardedSteps(GlobalBatching):
    """Mixin, to be placed before a TRL trainer among the bases."""

    def __init__(self, *args, **kwargs) -> None:
        self.skipped_steps = 0
        self.recent_losses: Sequence[float] = ()  # of the last WINDOW steps
        self._micro_losses: list[torch.Tensor] = []  # of the micro-batches since the last optimizer step
        # CPU random state, those of the GPUs, token count
        self._at_last_step: tuple[torch.Tensor, list[torch.Tensor] | None, int] | None = None
        super().__init__(*args, **kwargs)

    def remember_step(self) -> None:
        """At the end of a step, keeps what a checkpoint of it has to hold, in case that the next step is bad."""
        devices = torch.cuda.get_rng_state_all() if self.args.device.type == "cuda" else None
        self._at_last_step = (torch.get_rng_state(), devices, self._total_train_tokens)

    def _save_last_step(self) -> str:
        """Saves a checkpoint of the step before the current one; returns a clause for the message.

        All processes call this.
        """
        step = self.state.global_step
        if self.is_deepspeed_enabled:  # its engine has taken the step already
            return "a checkpoint of an earlier step is kept if one was saved"
        if not step or self._at_last_step is None:
            return "nothing was trained yet"
        if not checkpoints.is_there(Path(str(self.args.output_dir)), step):
            cpu, devices, self._total_train_tokens = self._at_last_step
            torch.set_rng_state(cpu)
            if devices is not None:
                torch.cuda.set_rng_state_all(devices)
            self._save_checkpoint(self.model, None)
        return f"a checkpoint of step {step} is kept"

    def training_step(
        self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_losses.append(loss.detach())
        return loss

    def _get_grad_norm(
        self, model: torch.nn.Module, grad_norm: torch.Tensor | float | None = None
    ) -> torch.Tensor | float | None:
        """The Trainer calls this once a step, after the gradients are complete and before the optimizer's step.

        DeepSpeed's engine has taken the step by then, so training can only stop after it. Raises BadStep.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        local = torch.stack(self._micro_losses).sum()
        self._micro_losses = []
        loss = float(self.accelerator.reduce(local, reduction="mean"))  # pyright: ignore[reportArgumentType]
        # In fp16 a gradient that overflows lowers the loss scale; the scaler itself leaves that step out.
        known_norm = 0.0 if self.args.fp16 or norm is None else float(norm)
        wrong = what_is_wrong(loss, known_norm, self.recent_losses, self.stage_arguments.spike_sigma)
        if not wrong:
            self.recent_losses = [*self.recent_losses, loss][-WINDOW:]
            return norm
        step = self.state.global_step + 1
        if self.stage_arguments.on_bad_step == "stop":
            rows = ", ".join(map(str, self.rows_of_step(step)))
            other_precision = ", use bf16 instead of fp16" if self.args.fp16 else ""
            raise BadStep(
                f"step {step}: {wrong}; training rows {rows}; {self._save_last_step()}. Lower learning_rate (now "
                f"{self._get_learning_rate():g}) or max_grad_norm ({self.args.max_grad_norm:g}){other_precision}, "
                "inspect these rows, or set on_bad_step: skip"
            )
        self.skipped_steps += 1
        log.warning("step %d is skipped: %s (skipped so far: %d)", step, wrong, self.skipped_steps)
        model.zero_grad(set_to_none=True)  # the optimizer then changes nothing
        return norm


def what_is_wrong(loss: float, grad_norm: float, recent: Sequence[float], sigma: float | None) -> str:
    """Why a step must not be taken, or the empty string.

    `recent` are the losses of the last steps; a loss more than `sigma` of their standard deviations above their mean
    is a spike (None: no loss is).
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"the gradient's norm is {grad_norm}"
    if sigma is not None and len(recent) >= WINDOW // 2:
        mean, deviation = statistics.fmean(recent), statistics.pstdev(recent)
        if loss > mean + sigma * deviation > mean:
            return (
                f"the loss is {loss:.4g}, {(loss - mean) / deviation:.0f} standard deviations above the mean of "
                f"the last {len(recent)} ({mean:.4g})"
            )
    return ""
