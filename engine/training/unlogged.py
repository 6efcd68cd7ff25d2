"""What steps have added to the next line of the log: kept in a checkpoint, so that resumed training logs the same."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch
from accelerate import Accelerator


class _Trainer(Protocol):
    """The parts of the Trainer and of TRL's trainers in which they add up what they log."""

    accelerator: Accelerator
    _tr_loss: torch.Tensor
    _globalstep_last_logged: int
    _metrics: dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Unlogged:
    """Sums over the steps since the last line of the log."""

    loss: float  # the mean over the processes
    last_logged: int  # the step of that line
    means: dict[str, list[float]] = field(default_factory=dict)  # TRL's metrics: name -> one mean a batch

    @classmethod
    def of(cls, trainer: _Trainer) -> "Unlogged | None":
        """All processes call this. None before training has begun."""
        if not hasattr(trainer, "_tr_loss"):
            return None
        loss = trainer.accelerator.reduce(trainer._tr_loss.detach().clone(), reduction="mean")
        means = {name: [float(mean) for mean in kept] for name, kept in trainer._metrics["train"].items()}
        return cls(float(loss), trainer._globalstep_last_logged, means)  # pyright: ignore[reportArgumentType]

    @classmethod
    def read(cls, content: Mapping[str, object] | None) -> "Unlogged | None":
        """From the marker of a checkpoint; None where an older version wrote it."""
        return cls(**content) if content else None  # pyright: ignore[reportArgumentType]

    def content(self) -> dict[str, object]:
        return asdict(self)

    def give_back(self, trainer: _Trainer) -> None:
        """Called once training has begun, which sets all of them to nothing."""
        trainer._tr_loss = torch.full_like(trainer._tr_loss, self.loss)
        trainer._globalstep_last_logged = self.last_logged
        trainer._metrics["train"] = defaultdict(list, {name: list(means) for name, means in self.means.items()})
