"""Optimizer steps that would do harm: a loss or gradient that is not finite, or a loss far above the ones before.

Such a step is seen before the optimizer takes it. Training stops there and leaves a checkpoint of the step before, or
the step is skipped and counted (`on_bad_step`).
"""

import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_schemas.errors import StageError
from engine.training import checkpoints
from engine.training.global_batches import GlobalBatching

WINDOW = 128  # losses that a new one is compared with, and half of them before any is (OLMo 2, arXiv 2501.00656, 3.1)
log = logging.getLogger(__name__)


class BadStep(StageError):
    """A step that must not be taken, or after which nothing is learnt; the message says why, and the way out."""


class GuardedSteps(GlobalBatching):
    """Goes before a TRL trainer in the bases."""

    _total_train_tokens: int  # TRL's count, which it does not save
    skipped_steps = 0
    _at_last_step: Any = None  # random state and token count
    recent_losses: Sequence[float] = ()  # the last WINDOW

    def remember_step(self) -> None:
        """At the end of each step: what a checkpoint of it must say, should the next one be bad."""
        devices = torch.cuda.get_rng_state_all() if self.args.device.type == "cuda" else None
        self._at_last_step = (torch.get_rng_state(), devices, self._total_train_tokens)

    def _save_last_step(self) -> str:
        """A checkpoint of the step before the one that is under way. All processes call this. Returns what to say."""
        step = self.state.global_step
        if self.is_deepspeed_enabled:  # its engine has taken the step already
            return "a checkpoint of an earlier step is kept, where one was saved"
        if not step or self._at_last_step is None:
            return "nothing was trained yet"
        said = f"a checkpoint of step {step} is kept"
        if checkpoints.is_there(Path(str(self.args.output_dir)), step):
            return said
        cpu, devices, self._total_train_tokens = self._at_last_step
        torch.set_rng_state(cpu)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)
        assert isinstance(self.model, torch.nn.Module)
        self._save_checkpoint(self.model, None)
        return said

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._micro_losses = [*getattr(self, "_micro_losses", ()), loss.detach()]
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The Trainer calls this once a step, after the gradients are complete and before the optimizer's step.

        DeepSpeed's engine has taken the step by then: there it can only be stopped after.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        mine = torch.stack(self._micro_losses).sum()
        self._micro_losses = []
        loss = float(self.accelerator.reduce(mine, reduction="mean"))  # pyright: ignore[reportArgumentType]
        # In fp16 a gradient that overflows lowers the loss scale; that step is left out by the scaler itself.
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
                f"step {step}: {wrong}; training rows {rows}; {self._save_last_step()}. Lower learning_rate (it is "
                f"{self._get_learning_rate():g} here) or max_grad_norm ({self.args.max_grad_norm:g}){other_precision}, "
                "look at these rows, or set on_bad_step: skip"
            )
        self.skipped_steps += 1
        log.warning("step %d is skipped: %s (skipped so far: %d)", step, wrong, self.skipped_steps)
        model.zero_grad(set_to_none=True)  # the optimizer then has nothing to do
        return norm


def what_is_wrong(loss: float, grad_norm: float, recent: Sequence[float], sigma: float | None) -> str:
    """Why a step must not be taken, or the empty string."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"the gradient's norm is {grad_norm}"
    if sigma is not None and len(recent) >= WINDOW // 2:
        mean, deviation = statistics.fmean(recent), statistics.pstdev(recent)
        if loss > mean + sigma * deviation > mean:
            return (
                f"the loss is {loss:.4g}, {(loss - mean) / deviation:.0f} standard deviations above the mean of "
                f"the {len(recent)} before ({mean:.4g})"
            )
    return ""
