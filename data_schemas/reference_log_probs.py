"""Where reference log-probs are kept, and the note by which the plan knows that a step will find its own there.

<run>/reference_log_probs/<digest>/*.jsonl              the numbers: see engine/training/reference.py
<run>/reference_log_probs/<digest>/<step folder>.json   the note: all numbers that this step needs are there
"""

from dataclasses import asdict, dataclass

from data_schemas.stage_keys import Values

FOLDER = "reference_log_probs"


@dataclass(frozen=True)
class Passes:
    """How a step's pairs are batched for the reference model. Other batches give other last bits of the numbers."""

    batch_size: int  # training pairs in a batch, at most
    eval_batch_size: int  # held-out pairs in a batch: the evaluation's batches
    processes: int  # which divide the evaluation's batches

    @classmethod
    def of(cls, keys: Values, *, processes: int) -> "Passes":
        """From the stage's keys, defaults included."""
        eval_batch_size = keys["per_device_eval_batch_size"]
        return cls(keys.get("precompute_ref_batch_size") or eval_batch_size, eval_batch_size, processes)

    def as_note(self) -> dict[str, int]:
        """The content of the note."""
        return asdict(self)
