"""Comes before a TRL trainer in the bases: calls the model on a batch's packed row, or on padded rows as a fallback."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer
from trl.trainer.utils import FusedCausalLMOutput

from engine.packing.shared_rows import Batch, SharedRows, unwrapped
from engine.packing.support import PADDED, supports_shared_rows
from engine.runtime import notices

log = logging.getLogger(__name__)


class SharedRowsMixin(Trainer):
    """Comes before a TRL trainer in the bases: calls the model on a batch's packed row if the model supports it."""

    is_reward_model_trainer = False

    @functools.cached_property
    def _supported_types(self) -> dict[type, bool]:
        """The result of `supports_shared_rows` for each class of model; a reference may be of another class."""
        return {}

    def shared_rows_of(self, model: torch.nn.Module, inputs: Batch) -> SharedRows | None:
        """Takes the packed row out of `inputs`; None where there is none, or where the model does not support it.

        The first call with each class of model runs the model, so all processes have to call this.
        """
        rows = SharedRows.pop_from(inputs)
        if rows is None:
            return None
        kind = type(unwrapped(model))
        if kind not in self._supported_types:
            self._supported_types[kind] = supports_shared_rows(
                model, self.args.device, is_reward_model=self.is_reward_model_trainer
            )
            if not self._supported_types[kind]:
                self.without_shared_rows(times=rows.times_as_many_tokens(inputs["input_ids"]))
        return rows if self._supported_types[kind] else None

    def without_shared_rows(self, *, times: float) -> None:
        """Called once for each class of model that does not support packed rows. A subclass may raise an error.

        `times` is how many times as many tokens the first batch has with padding.
        """
        notices.warn(log, PADDED, times)

    def on_shared_rows(self, model: torch.nn.Module, inputs: Batch) -> Callable[..., Any]:
        """A function that is called like the language model and runs it on the packed row of `inputs`.

        Returns the model itself where there is no packed row or the model does not support it.
        """
        shared = self.shared_rows_of(model, inputs)
        if shared is None:
            return model

        def call(
            *, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **options: object
        ) -> FusedCausalLMOutput:
            return shared.log_probs(model, labels, **options)

        return call
