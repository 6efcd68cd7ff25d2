"""What is measured of a side: from the first forward pass of any model to the end of its last step or answer.

So imports, loading and tokenizing are left out on both sides, and all that grows with the rows is in, wherever a
trainer does it: passes of a reference before training, padding, packing, the optimizer. Evaluation is left out.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.nn.modules import module as modules
from transformers import PreTrainedModel, Trainer, TrainerCallback

from engine.training.loop import TrainingLoop

FEW = 32  # tokens: a pass on fewer is a trial whether the model takes a mask


class Done(BaseException):
    """The last step has ended: nothing that comes after is measured, or made. No handler of errors catches it."""


@dataclass(frozen=True)
class Pass:
    """One forward pass of a model's layers."""

    model: int
    trains: bool  # with gradients
    evaluates: bool  # in an evaluation
    tokens: int  # padding included


@dataclass
class Watch:
    started: float = 0.0  # of the first forward pass
    ended: float = 0.0
    paused: float = 0.0  # seconds of evaluation between the two
    is_evaluating: bool = False
    how: dict[str, Any] = field(default_factory=dict)  # the trained model: its precision, whether it recomputes
    steps: list[float] = field(default_factory=list)  # seconds of each, from its batch to the optimizer's end
    passes: list[Pass] = field(default_factory=list)  # where they are counted
    models: list[Any] = field(default_factory=list)  # kept, so that no other gets the place of one that is gone

    @property
    def seconds(self) -> float:
        return self.ended - self.started - self.paused

    def reference_passes(self) -> int:
        """Forward passes that neither train nor evaluate the model that is trained."""
        trained = {each.model for each in self.passes if each.trains}
        return sum(
            not each.trains and each.tokens > FEW and not (each.model in trained and each.evaluates)
            for each in self.passes
        )


class _Steps(TrainerCallback):
    def __init__(self, watch: Watch, between: Callable[[], None]) -> None:
        self.watch, self.between, self.began = watch, between, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ended = time.perf_counter()
        self.watch.steps.append(ended - self.began)
        self.between()
        if state.global_step >= state.max_steps:
            self.watch.ended = ended
            model = kwargs["model"]
            dtype = str(next(iter(model.parameters())).dtype).removeprefix("torch.")
            self.watch.how = {
                "dtype": f"{dtype}, autocast bfloat16" if args.bf16 else dtype,
                "activation_checkpointing": bool(model.is_activation_checkpointing),
            }
            raise Done


@contextlib.contextmanager
def watching(*, counts_passes: bool = False, between: Callable[[], None] = lambda: None) -> Iterator[Watch]:
    """Watches what runs inside, and ends it quietly after the last training step; `between` is called after each."""
    watch = Watch()

    def begins(module: Any, args: Any) -> None:
        if not watch.started and isinstance(module, PreTrainedModel):
            watch.started = time.perf_counter()
            first.remove()  # called for every layer of every pass else

    def counts(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if isinstance(module, PreTrainedModel) and module.base_model is module:
            if not any(known is module for known in watch.models):
                watch.models.append(module)
            place = next(place for place, known in enumerate(watch.models) if known is module)
            ids = kwargs.get("input_ids", args[0] if args else None)
            tokens = ids.numel() if ids is not None else FEW + 1
            watch.passes.append(Pass(place, torch.is_grad_enabled(), watch.is_evaluating, tokens))

    train, evaluate = Trainer.train, TrainingLoop.evaluate

    def watched_train(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(_Steps(watch, between))
        return train(self, *args, **kwargs)

    def watched_evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        # What comes before the first evaluation is none of it: a pass in there must not start the clock.
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
            with mock.patch.object(TrainingLoop, "evaluate", watched_evaluate), contextlib.suppress(Done):
                yield watch
            watch.ended = watch.ended or time.perf_counter()
    finally:
        first.remove()
        if counting is not None:
            counting.remove()
