"""Measures a side from the first forward pass of any model to the end of its last step or answer.

Imports, loading and tokenization are therefore excluded on both sides. Everything that grows with the rows is
included, wherever a trainer does it: the reference's passes before training, padding, packing and the optimizer.
Evaluation is excluded.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.nn.modules import module as modules
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from engine.training.loop import TrainingLoop

MAX_PROBE_TOKENS = 32  # a pass on no more tokens than these only probes whether the model accepts a mask


class LastStepEnded(BaseException):
    """Ends a side after its last step, since nothing after it is measured. `except Exception` does not catch it."""


@dataclass(frozen=True)
class Pass:
    """One forward pass of a model's layers."""

    model: int  # its index in Watch.models
    trains: bool  # with gradients
    evaluates: bool  # in an evaluation
    tokens: int  # padding included
    rows: int = 0  # of the batch that the model is called on; 1 where its sequences are packed
    ended: float = 0.0  # time; 0 of a training pass, which is not waited for


@dataclass
class Watch:
    """Times and passes of a side."""

    started: float = 0.0  # time of the first forward pass
    ended: float = 0.0
    paused: float = 0.0  # seconds of evaluation between the two
    is_evaluating: bool = False
    settings: dict[str, str | bool] = field(default_factory=dict)  # of the trained model: dtype, checkpointing
    steps: list[float] = field(default_factory=list)  # seconds of each, from its batch to the end of the optimizer
    losses: list[float] = field(default_factory=list)  # logged; that of the last step is not
    passes: list[Pass] = field(default_factory=list)  # empty unless passes are counted
    models: list[object] = field(default_factory=list)  # kept alive, so that an index is never used twice

    @property
    def seconds(self) -> float:
        return self.ended - self.started - self.paused

    def reference_passes(self) -> int:
        """Number of forward passes that neither train nor evaluate the model that is trained."""
        trained = {each.model for each in self.passes if each.trains}
        return sum(
            not each.trains and each.tokens > MAX_PROBE_TOKENS and not (each.model in trained and each.evaluates)
            for each in self.passes
        )

    def pass_values(self) -> dict[str, int | float | None]:
        """Tokens and rows of the last training pass, and the seconds of all reference passes together.

        The first reference pass, in which kernels are loaded and compiled, is counted as the mean of the others.
        """
        training = [each for each in self.passes if each.trains]
        ended = [
            each.ended
            for each in self.passes
            if not each.trains and not each.evaluates and each.tokens > MAX_PROBE_TOKENS
        ]
        between = [later - earlier for earlier, later in itertools.pairwise(ended)]
        return {
            "pass_tokens": training[-1].tokens if training else None,
            "pass_rows": training[-1].rows if training else None,
            "reference_seconds": statistics.fmean(between) * len(ended) if between else None,
        }


class _Steps(TrainerCallback):
    def __init__(self, watch: Watch, between: Callable[[], None]) -> None:
        self.watch, self.between, self.began = watch, between, 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        _wait_for_device()
        self.began = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if logs and "loss" in logs:
            self.watch.losses.append(float(logs["loss"]))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        _wait_for_device()
        ended = time.perf_counter()
        self.watch.steps.append(ended - self.began)
        self.between()
        if state.global_step >= state.max_steps:
            self.watch.ended = ended
            model = kwargs["model"]
            dtype = str(next(iter(model.parameters())).dtype).removeprefix("torch.")
            self.watch.settings = {
                "dtype": f"{dtype}, autocast bfloat16" if args.bf16 else dtype,
                "activation_checkpointing": bool(model.is_activation_checkpointing),
            }
            raise LastStepEnded


def _wait_for_device() -> None:
    """A GPU runs its kernels later than they are launched."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextlib.contextmanager
def watching(*, counts_passes: bool = False, between: Callable[[], None] = lambda: None) -> Iterator[Watch]:
    """Measures the code inside the `with`, and leaves it without an error after the last training step.

    `between` is called after each training step; its time is part of no step.
    """
    watch = Watch()

    def begins(module: torch.nn.Module, args: object) -> None:
        if not watch.started and isinstance(module, PreTrainedModel):
            watch.started = time.perf_counter()
            first.remove()  # otherwise it is called for every layer of every pass

    def counts(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        if isinstance(module, PreTrainedModel) and module.base_model is module:
            if not any(known is module for known in watch.models):
                watch.models.append(module)
            index = next(index for index, known in enumerate(watch.models) if known is module)
            ids = kwargs.get("input_ids", args[0] if args else None)
            tokens = ids.numel() if ids is not None else MAX_PROBE_TOKENS + 1
            trains, rows = torch.is_grad_enabled(), len(ids) if ids is not None else 0
            if not trains:
                _wait_for_device()
            ended = 0.0 if trains else time.perf_counter()
            watch.passes.append(Pass(index, trains, watch.is_evaluating, tokens, rows, ended))

    train, evaluate = Trainer.train, TrainingLoop.evaluate

    def watched_train(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(_Steps(watch, between))
        return train(self, *args, **kwargs)

    def watched_evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        # An evaluation that comes first starts the clock. If one of its passes did, more than its part is subtracted.
        watch.started, began, watch.is_evaluating = watch.started or time.perf_counter(), time.perf_counter(), True
        try:
            return evaluate(self, *args, **kwargs)
        finally:
            watch.is_evaluating = False
            watch.paused += time.perf_counter() - began

    first = modules.register_module_forward_pre_hook(begins)
    counting = modules.register_module_forward_hook(counts, with_kwargs=True) if counts_passes else None
    try:
        with mock.patch.object(Trainer, "train", watched_train):
            with mock.patch.object(TrainingLoop, "evaluate", watched_evaluate), contextlib.suppress(LastStepEnded):
                yield watch
            watch.ended = watch.ended or time.perf_counter()
    finally:
        first.remove()
        if counting is not None:
            counting.remove()
