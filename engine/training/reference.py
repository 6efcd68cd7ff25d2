"""Computes the reference log-probs of every pair once, before training, and frees the reference model.

A DPO loss reads two numbers of its reference for each pair: the sums of log p over the tokens of each answer. They
depend on the pair's tokens and masks and on the reference, on nothing that is trained. So they are kept beside the
steps' folders, where other seeds, learning rates, betas, losses, variants and restarts find them (reference_cache.py).

Held-out pairs are computed in the evaluation's own batches, so that a policy that is its own reference has margins of
exactly 0, in bf16 too.
"""

import contextlib
import gc
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from transformers.trainer_utils import TrainOutput
from trl import DPOConfig
from trl.models.utils import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head

from data_schemas.files import digest_text, write_atomically
from data_schemas.reference_log_probs import FOLDER, Passes
from data_schemas.stage_keys import Values
from engine.models.loading import load_causal
from engine.runtime import out_of_memory, preemption, progress
from engine.training.evaluation import rank_batches
from engine.training.host import Batch
from engine.training.loop import TrainingLoop
from engine.training.reference_cache import (
    LogProbSums,
    ReferenceBatch,
    batches_of,
    cache_line,
    cut_into_batches,
    key_of_pair,
    num_tokens_of,
    read_cache,
    weights_of,
)

# Shapes: B = pairs of a batch.

COMPUTATION_VERSION = 2  # raised when the same pairs and reference give other numbers
COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's names
SECONDS_BETWEEN_LOGS = 10
Side = Literal["train", "eval"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """The reference policy."""

    path: str  # a folder or a hub name
    is_start: bool  # training starts from it
    options: Values  # keyword arguments of from_pretrained


class PrecomputedReference(TrainingLoop):
    """Mixin, to be placed before TRL's DPO trainer among the bases. `reference` is None if no loss has one, or if it
    changes while the policy is trained."""

    args: DPOConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    compute_ref_log_probs: Callable[[torch.nn.Module, Batch], tuple[torch.Tensor, torch.Tensor]]
    ld_alpha: float | None  # of TRL's trainer: weights the tokens of the sums

    def __init__(self, *args, reference: Reference | None = None, **kwargs) -> None:
        self.reference = reference
        self._cache_digest: str | None = None
        super().__init__(*args, **kwargs)

    def train(self, *args, **kwargs) -> TrainOutput:
        self.attach_reference_log_probs("train", "eval")
        return super().train(*args, **kwargs)

    def evaluate_once(self) -> dict[str, float]:
        self.attach_reference_log_probs("eval")
        return super().evaluate_once()

    def attach_reference_log_probs(self, *sides: Side) -> None:
        """Adds the reference's sums to the rows of `sides`, as the columns that TRL reads.

        All processes call this, before training.
        """
        if self.reference is None:
            return
        tables: dict[Side, Dataset] = {side: self._table(side) for side in sides}
        keys = {side: [key_of_pair(row) for row in _rows_of(table)] for side, table in tables.items()}
        size = Passes.of(vars(self.args), processes=self.args.world_size)
        batches: list[ReferenceBatch] = []
        if "eval" in tables:
            batches += batches_of("eval", keys["eval"], self._evaluation_batches(size))
        if "train" in tables:
            cut = cut_into_batches(
                keys["train"], list(map(num_tokens_of, _rows_of(tables["train"]))), size=size.batch_size
            )
            batches += batches_of("train", keys["train"], cut)
        sums_of_batch = self._read_or_compute(batches, tables)
        if self.stage.is_main and len(sides) == 2:
            note = self._writable_folder() / f"{self.stage.folder.name}.json"
            write_atomically(note, json.dumps(size.as_note()))
        for side, table in tables.items():
            sums_of_pair = {
                keys[side][row]: sums
                for batch in batches
                if batch.side == side
                for row, sums in zip(batch.rows, sums_of_batch[batch.key], strict=True)
            }
            for answer, column in enumerate(COLUMNS):
                table = table.add_column(column, [sums_of_pair[key][answer] for key in keys[side]])  # pyright: ignore[reportCallIssue]
            setattr(self, f"{side}_dataset", table)

    def _table(self, side: Side) -> Dataset:
        return cast(Dataset, self.train_dataset if side == "train" else self.eval_dataset)

    def _evaluation_batches(self, size: Passes) -> list[list[int]]:
        """The held-out rows of each batch of an evaluation, of all processes."""
        by_process = (
            rank_batches(len(self._table("eval")), batch_size=size.eval_batch_size, rank=rank, processes=size.processes)
            for rank in range(size.processes)
        )
        return [batch for batches in zip(*by_process, strict=True) for batch in batches if batch]

    def _read_or_compute(
        self, batches: Sequence[ReferenceBatch], tables: Mapping[Side, Dataset]
    ) -> dict[str, LogProbSums]:
        """The sums of every batch, by key: from the cache, and what is missing there from the reference."""
        shared: list[dict[str, LogProbSums]] = [{}]
        if self.stage.is_main:
            sizes = {batch.key: len(batch.rows) for batch in batches}
            cached = read_cache([self._writable_folder(), self._shared_folder()])
            shared = [{key: sums for key, sums in cached.items() if sizes.get(key) == len(sums)}]
        broadcast_object_list(shared)
        known = shared[0]
        missing = [batch for batch in batches if batch.key not in known]
        if missing:
            self._compute(missing, tables, known)
            gc.collect()  # a model holds reference cycles
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        computed, total = (sum(len(batch.rows) for batch in some) for some in (missing, batches))
        log.info("reference log-probs: %d pairs computed, %d read from the cache", computed, total - computed)
        return known

    def _compute(
        self, missing: Sequence[ReferenceBatch], tables: Mapping[Side, Dataset], known: dict[str, LogProbSums]
    ) -> None:
        """Adds the sums of the missing batches to `known` and to a new file, one batch of each process at a time.

        Raises Preempted if SIGTERM has come; what is written by then is kept.
        """
        processes, rank = self.args.world_size, self.args.process_index
        started = logged = time.monotonic()
        with contextlib.ExitStack() as stack:
            model = stack.enter_context(self._reference_model())
            file: IO[str] | None = None
            if self.stage.is_main:
                path = self._writable_folder() / f"{time.time_ns()}-{os.getpid()}.jsonl"
                file = stack.enter_context(path.open("w", encoding="utf-8"))
            total = sum(len(batch.rows) for batch in missing)
            counter = stack.enter_context(progress.activity("computing reference log-probs", total=total, unit="pairs"))
            for start in range(0, len(missing), processes):
                # All processes make the same collective calls: one without a batch left repeats the last batch.
                batch = missing[min(start + rank, len(missing) - 1)]
                table = tables[batch.side]
                sums = self._sums_of(model, [table[row] for row in batch.rows])
                for key, computed in gather_object([(batch.key, sums)]):
                    if key not in known:
                        known[key] = computed
                        if file:
                            file.write(cache_line(key, computed))
                counter.advance(sum(len(batch.rows) for batch in missing[start : start + processes]))
                if file:
                    file.flush()
                if preemption.is_requested(self.accelerator):
                    raise preemption.Preempted("the reference log-probs computed so far are kept")
                if time.monotonic() - logged > SECONDS_BETWEEN_LOGS:
                    logged = time.monotonic()
                    log.info(
                        "reference log-probs: %d of %d batches in %.0f s",
                        start + processes,
                        len(missing),
                        logged - started,
                    )

    def _sums_of(self, model: torch.nn.Module, rows: list[dict[str, list[int]]]) -> LogProbSums:
        with self._memory_guard():
            inputs = self._prepare_inputs(self.data_collator(rows))
            chosen_B, rejected_B = self.compute_ref_log_probs(model, inputs)
        return list(zip(chosen_B.tolist(), rejected_B.tolist(), strict=True))

    def _memory_guard(self) -> contextlib.AbstractContextManager[None]:
        """Around a forward pass. If it runs out of memory, evaluation batches are halved from the next start on; a
        batch size that was given explicitly is not changed, and the error names it."""
        given = self.args.precompute_ref_batch_size
        if given:
            return out_of_memory.explain_out_of_memory(
                "precompute_ref_batch_size", given, hint="; the numbers stay the same to rounding"
            )
        rows, folder = self.args.per_device_eval_batch_size, Path(str(self.args.output_dir))
        return out_of_memory.halve_on_out_of_memory(folder, out_of_memory.EVALUATION, rows)

    @contextlib.contextmanager
    def _reference_model(self) -> Iterator[torch.nn.Module]:
        """The reference on its device, in evaluation mode; the policy itself if training starts from the reference."""
        assert self.reference is not None
        policy = self.model
        was_training = policy.training
        if self.reference.is_start:
            model = policy
        else:
            model = load_causal(self.reference.path, **self.reference.options)
            add_fused_lm_head(model)
        engine = None
        if self.is_deepspeed_enabled:  # its engine moves the model to the device, and gathers what ZeRO-3 has sharded
            model = engine = prepare_deepspeed(model, self.accelerator)
        elif not getattr(model, "is_quantized", False):
            model = model.to(self.args.device)  # pyright: ignore[reportArgumentType]
        model.eval()
        try:
            yield model
        finally:
            if engine is not None:
                engine.destroy()  # its hooks would stay on the policy
            policy.train(was_training)

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        """Keeps the reference's sums in float32. Under DeepSpeed the Trainer casts every float to the weights' dtype:
        in bf16 a sum of -300 would be off by one."""
        kept = {name: inputs[name].to(self.args.device) for name in COLUMNS if name in inputs}
        return super()._prepare_inputs(inputs) | kept

    def _writable_folder(self) -> Path:
        """Where sums are written: the folder shared by all steps, or the step's own if that is not writable."""
        shared = self._shared_folder()
        with contextlib.suppress(OSError):
            shared.mkdir(parents=True, exist_ok=True)
        if os.access(shared, os.W_OK):
            return shared
        own = self.stage.folder / "checkpoints" / shared.name
        own.mkdir(parents=True, exist_ok=True)
        return own

    def _shared_folder(self) -> Path:
        """The folder of this reference beside the steps' folders, computed once."""
        if self._cache_digest is None:
            self._cache_digest = self._cache_key()
        return self.stage.folder.parent / FOLDER / self._cache_digest

    def _cache_key(self) -> str:
        """A digest of everything that the sums depend on, except the pairs."""
        assert self.reference is not None
        identity = {
            "way": COMPUTATION_VERSION,
            "weights": weights_of(self.reference.path, revision=self.reference.options.get("revision", "main")),
            "loaded": self.reference.options,
            "adapters": self.reference.is_start and hasattr(self.model, "peft_config"),
            "precision": [self.args.bf16, self.args.fp16, self.args.tf32],
            "share_prompts": self.data_collator.share_prompts,  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
            "ld_alpha": self.ld_alpha,
            "zero": self.is_deepspeed_enabled,
            "device": self.args.device.type,
        }
        return digest_text(json.dumps(identity, sort_keys=True, default=str))[:16]


def _rows_of(table: Dataset) -> Iterator[dict[str, list[int]]]:
    return cast(Iterator[dict[str, list[int]]], iter(table))
