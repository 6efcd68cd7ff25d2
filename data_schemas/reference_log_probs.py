"""Where reference log-probs are kept, and the note by which the plan knows that a step will find its own there.

<run>/reference_log_probs/<digest>/*.jsonl              the numbers: see engine/reference.py
<run>/reference_log_probs/<digest>/<step folder>.json   the note: all that this step asked for is there
"""

from dataclasses import asdict, dataclass
from typing import Any

FOLDER = "reference_log_probs"


@dataclass(frozen=True)
class Passes:
    """What a step's pairs are put together by, in passes over the reference: another way is another set of numbers."""

    batch_size: int  # training pairs a pass, at most
    eval_batch_size: int  # held-out pairs a pass: the evaluation's batches
    processes: int  # which divide the evaluation's batches

    @classmethod
    def of(cls, keys: dict[str, Any], *, processes: int) -> "Passes":
        """As the stage's keys say, defaults included."""
        eval_batch_size = keys["per_device_eval_batch_size"]
        return cls(keys.get("precompute_ref_batch_size") or eval_batch_size, eval_batch_size, processes)

    def as_note(self) -> dict[str, Any]:
        return asdict(self)
