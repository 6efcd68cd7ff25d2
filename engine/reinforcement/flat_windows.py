"""Windows that teach nothing: every group's rewards are equal, or its answers are masked. Training ends after three."""

import torch

from data_schemas.errors import StageError
from engine.reinforcement import advantages
from engine.reinforcement.arguments import PolicyGradientConfig
from engine.training.checkpoints import Progress

MOST = 3  # in a row
REMEDY = (
    "check the reward, raise num_generations or temperature, or give prompts that the policy sometimes answers well"
)


class TrainingEnds(Exception):
    """A guard ends training; the best model so far is saved."""


class FlatWindows:
    """How many windows in a row, up to the present one, teach nothing."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self.has_learned = False  # an earlier window taught something
        self.all_masked = False  # no answer of the present window is trained on

    def count(
        self, rewards_PK: torch.Tensor, masked_PK: torch.Tensor, *, arguments: PolicyGradientConfig, example: str
    ) -> None:
        """Counts the present window, one of whose answers is `example`.

        Raises StageError where training began with MOST of them, TrainingEnds where they come later.
        """
        flat_P1 = advantages.without_variance(rewards_PK)[:, None]
        is_flat, self.all_masked = bool((flat_P1 | masked_PK).all()), bool(masked_PK.all())
        self.in_a_row = self.in_a_row + 1 if is_flat else 0
        self.has_learned |= not is_flat
        if self.in_a_row < MOST:
            return
        found = f"all {rewards_PK.size(1)} answers to each prompt have the same reward"
        remedy = REMEDY
        if masked_PK.any():
            found += ", or were cut off and are left out by mask_truncated_completions"
        if self.all_masked:
            found = f"no answer ended within max_completion_length={arguments.max_completion_length}"
            remedy = "raise it, or leave out mask_truncated_completions, by which such answers do not train"
        found = f"in {MOST} windows in a row {found}"
        if self.has_learned:
            raise TrainingEnds(found)
        raise StageError(f"{found} (the first one is {example[:60]!r}): there is nothing to learn from; {remedy}")

    def counters(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"flat_windows": self.in_a_row, "has_learned": int(self.has_learned)}

    def restore(self, progress: Progress) -> None:
        self.in_a_row = progress.counters.get("flat_windows", 0)
        self.has_learned = bool(progress.counters.get("has_learned"))
