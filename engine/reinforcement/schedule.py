"""Which prompts each window has, and which answers each optimizer step sees: known from the keys before training."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from data_schemas.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Windows of `steps_per_window` x `num_iterations` optimizer steps, each of `global_batch_size` answers.

    Answers of a window are numbered prompt by prompt. Every iteration takes the same answers in the same steps. Raises
    ConfigError for fewer prompts than one window has.
    """

    num_prompts: int
    num_generations: int  # K, answers to each prompt
    global_batch_size: int  # answers of an optimizer step, a multiple of K
    steps_per_window: int
    num_iterations: int
    seed: int
    round: int

    def __post_init__(self) -> None:
        if self.num_prompts < self.prompts_per_window:
            raise ConfigError(
                f"{self.num_prompts} training prompts are fewer than the {self.prompts_per_window} of one window "
                f"(global_batch_size={self.global_batch_size} x steps_per_window={self.steps_per_window} / "
                f"num_generations={self.num_generations}); lower global_batch_size, or give more prompts"
            )

    @property
    def answers_per_window(self) -> int:
        return self.global_batch_size * self.steps_per_window

    @property
    def prompts_per_window(self) -> int:
        return self.answers_per_window // self.num_generations

    @property
    def steps_of_window(self) -> int:
        """Optimizer steps between two times that answers are sampled."""
        return self.steps_per_window * self.num_iterations

    @property
    def windows_per_epoch(self) -> int:
        return self.num_prompts // self.prompts_per_window

    @property
    def rows_per_epoch(self) -> int:
        """Answers that the optimizer sees in one pass over the prompts; an answer counts once for each iteration."""
        return self.windows_per_epoch * self.steps_of_window * self.global_batch_size

    def window_of(self, step: int) -> int:
        """The window, from 0, that the optimizer step after `step` steps is in."""
        return step // self.steps_of_window

    def is_boundary(self, step: int) -> bool:
        """Whether a window ends with this optimizer step."""
        return step % self.steps_of_window == 0

    def prompts_of(self, window: int) -> list[int]:
        """The numbers of the window's prompts. Each epoch has its own order, drawn by seed and round."""
        epoch, place = divmod(window, self.windows_per_epoch)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.round) * 1_000_003 + epoch)
        order = torch.randperm(self.num_prompts, generator=generator).tolist()
        return order[place * self.prompts_per_window : (place + 1) * self.prompts_per_window]

    def micro_batches(self, *, size: int, rank: int, processes: int) -> Iterator[range]:
        """The answers, by number, of each micro-batch of one process in a window, in the order of its steps.

        Micro-batches are dealt to the processes in turn, as accelerate divides the batches of a loader.
        """
        for start in range(rank * size, self.answers_per_window, processes * size):
            yield range(start, start + size)
