"""The reference's log-probs, once: of every pair, before the first step. Then the model is let go of.

A DPO loss reads two numbers a pair of its reference: the sums of log p over the tokens of each answer. They hang on the
pair's tokens and masks and on the reference, on nothing that is trained. So they are kept beside the steps' folders,
where other seeds, learning rates, betas, losses, variants and restarts find them:

    <run>/reference_log_probs/<digest of the reference and of how it computes>/<time>-<process>.jsonl

A line is one pass over the model, with its own digest; its key is the hash of its pairs in their order. A pass is taken
over whole or made again, never pair by pair: the last bits of a pair's numbers hang on the pairs beside it, and what
happened to lie there must not change a result. Training pairs go into passes by length and content, not by their order
in a file, and some of them (by their hash) end a pass: a pair more or less then changes a few passes, not all that
follow. Held-out pairs go in the evaluation's own batches, so that a policy that is its reference has margins of exactly
0, in bf16 too.
"""

import contextlib
import gc
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from trl.models.utils import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head

from data_schemas.artifact import Artifact
from data_schemas.files import digest_record, digest_text, hash_files, verified_text, with_digest, write_atomically
from data_schemas.reference_log_probs import FOLDER, Passes
from engine.models.loading import load_causal, read_config
from engine.runtime import out_of_memory, preemption
from engine.training.evaluation import rank_batches
from engine.training.loop import TrainingLoop

# Shapes: B = pairs of a pass.

COMPUTATION_VERSION = 2  # raised when the same pairs and reference give other numbers
REFERENCE_COLUMNS = (
    "prompt_ids",
    "chosen_ids",
    "rejected_ids",
    "chosen_content",
    "rejected_content",
)  # of a pair, by a reference
COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's names
Sums = list[tuple[float, float]]  # of chosen and rejected, a pair each
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """The reference policy: its folder or hub name, what it is loaded with, whether training starts from it."""

    path: str
    is_start: bool
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Pass:
    """Pairs that go through the reference together."""

    key: str
    side: str  # "train" or "eval"
    rows: Sequence[int]


class PrecomputedReference(TrainingLoop):
    """Goes before a TRL trainer in the bases; `reference` is set before `train` or `numbers`."""

    reference: Reference | None = None  # None: no loss reads one, or it changes while the policy trains

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.attach_reference_log_probs("train", "eval")
        return super().train(*args, **kwargs)

    def evaluate_once(self) -> dict[str, float]:
        self.attach_reference_log_probs("eval")
        return super().evaluate_once()

    def attach_reference_log_probs(self, *sides: str) -> None:
        """Gives the rows of `sides` their reference's sums, as columns. All processes call this, before training."""
        if self.reference is None:
            return
        tables = {side: getattr(self, f"{side}_dataset") for side in sides}
        keys = {side: [content_of(row) for row in table] for side, table in tables.items()}
        size = Passes.of(vars(self.args), processes=self.args.world_size)
        passes: list[Pass] = []
        if "eval" in tables:
            passes += passes_of("eval", keys["eval"], self._evaluation_batches(size))
        if "train" in tables:
            cut = cut_passes(keys["train"], list(map(length_of, tables["train"])), size=size.batch_size)
            passes += passes_of("train", keys["train"], cut)
        found = self._found_or_made(passes, tables)
        if self.stage.is_main and len(sides) == 2:
            note = self._folder() / f"{self.stage.folder.name}.json"
            write_atomically(note, json.dumps(size.as_note()))
        for side, table in tables.items():
            sums = {
                keys[side][row]: pair
                for one in passes
                if one.side == side
                for row, pair in zip(one.rows, found[one.key], strict=True)
            }
            for place, name in enumerate(COLUMNS):
                table = table.add_column(name, [sums[key][place] for key in keys[side]])
            setattr(self, f"{side}_dataset", table)

    def _evaluation_batches(self, size: Passes) -> list[list[int]]:
        """The held-out rows of each batch of an evaluation, of all processes."""
        assert isinstance(self.eval_dataset, Dataset)
        by_process = (
            rank_batches(len(self.eval_dataset), batch_size=size.eval_batch_size, rank=rank, processes=size.processes)
            for rank in range(size.processes)
        )
        return [batch for batches in zip(*by_process, strict=True) for batch in batches if batch]

    def _found_or_made(self, passes: Sequence[Pass], tables: Mapping[str, Dataset]) -> dict[str, Sums]:
        """The sums of every pass, by key: from files, the rest from the reference."""
        shared: list[Any] = [None]
        if self.stage.is_main:
            wanted = {one.key: len(one.rows) for one in passes}
            folders = [self._folder(), self._beside()]
            shared = [{key: sums for key, sums in read_sums(folders).items() if wanted.get(key) == len(sums)}]
        broadcast_object_list(shared)
        found: dict[str, Sums] = shared[0]
        missing = [one for one in passes if one.key not in found]
        if missing:
            self._make(missing, tables, found)
            gc.collect()  # a model is a ring of references
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        made, pairs = (sum(len(one.rows) for one in some) for some in (missing, passes))
        log.info("reference log-probs: %d pairs computed, %d were there already", made, pairs - made)
        return found

    def _make(self, missing: Sequence[Pass], tables: Mapping[str, Dataset], found: dict[str, Sums]) -> None:
        """Adds the sums of the missing passes to `found` and to a file, a pass of each process at a time."""
        processes, rank = self.args.world_size, self.args.process_index
        started = last = time.monotonic()
        with contextlib.ExitStack() as stack:
            model, file = stack.enter_context(self._reference_model()), None
            if self.stage.is_main:
                path = self._folder() / f"{time.time_ns()}-{os.getpid()}.jsonl"
                file = stack.enter_context(path.open("w", encoding="utf-8"))
            for start in range(0, len(missing), processes):
                # All make the same collective calls: a process with nothing left makes the last one, for nothing.
                mine = missing[min(start + rank, len(missing) - 1)]
                table = tables[mine.side]
                sums = self._sums_of(model, [table[row] for row in mine.rows])
                for key, made in gather_object([(mine.key, sums)]):
                    if key not in found:
                        found[key] = made
                        if file:
                            file.write(with_digest(json.dumps({"pass": key, "sums": made})) + "\n")
                if file:
                    file.flush()
                if preemption.is_requested(self.accelerator):
                    raise preemption.Preempted("the reference's log-probs so far are kept")
                if time.monotonic() - last > 10:
                    last = time.monotonic()
                    log.info(
                        "reference log-probs: %d of %d passes in %.0f s",
                        start + processes,
                        len(missing),
                        last - started,
                    )

    def _sums_of(self, model: Any, rows: list[dict[str, Any]]) -> Sums:
        trainer: Any = self
        with self._in_memory():
            inputs = self._prepare_inputs(trainer.data_collator(rows))
            chosen_B, rejected_B = trainer.compute_ref_log_probs(model, inputs)
        return list(zip(chosen_B.tolist(), rejected_B.tolist(), strict=True))

    def _in_memory(self) -> contextlib.AbstractContextManager[None]:
        """Around a pass: where it fills the memory, those of the next start are half as large, as an evaluation's."""
        given = self.args.precompute_ref_batch_size  # pyright: ignore[reportAttributeAccessIssue]
        if given:
            return out_of_memory.explain_out_of_memory(
                "precompute_ref_batch_size", given, hint="; the numbers stay the same to rounding"
            )
        rows, folder = self.args.per_device_eval_batch_size, Path(str(self.args.output_dir))
        return out_of_memory.halve_on_out_of_memory(folder, out_of_memory.EVALUATION, rows)

    @contextlib.contextmanager
    def _reference_model(self) -> Iterator[Any]:
        """The reference on its device, in evaluation mode: the policy itself where it is what training starts from."""
        assert self.reference is not None and isinstance(self.model, torch.nn.Module)
        policy: torch.nn.Module = self.model
        was_training = policy.training
        if self.reference.is_start:
            model: Any = policy
        else:
            model = load_causal(self.reference.path, **self.reference.options)
            add_fused_lm_head(model)
        engine = None
        if self.is_deepspeed_enabled:  # it puts the model on the device, and gathers what ZeRO-3 has divided
            model = engine = prepare_deepspeed(model, self.accelerator)
        elif not getattr(model, "is_quantized", False):
            model = model.to(self.args.device)
        model.eval()
        try:
            yield model
        finally:
            if engine is not None:
                engine.destroy()  # its hooks would stay on the policy
            policy.train(was_training)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Under DeepSpeed the Trainer casts what floats to the weights' dtype: in bf16 a sum of -300 is off by one."""
        kept = {name: inputs[name].to(self.args.device) for name in COLUMNS if name in inputs}
        return super()._prepare_inputs(inputs) | kept

    def _folder(self) -> Path:
        """Where the numbers are written: beside the step's folder, or in it where that can't be written to."""
        beside = self._beside()
        with contextlib.suppress(OSError):
            beside.mkdir(parents=True, exist_ok=True)
        if os.access(beside, os.W_OK):
            return beside
        own = self.stage.folder / "checkpoints" / beside.name
        own.mkdir(parents=True, exist_ok=True)
        return own

    def _beside(self) -> Path:
        if not hasattr(self, "_digest_of_reference"):
            self._digest_of_reference = self._cache_key()
        return self.stage.folder.parent / FOLDER / self._digest_of_reference

    def _cache_key(self) -> str:
        """A digest of all but the pairs."""
        assert self.reference is not None
        trainer: Any = self
        what = {
            "way": COMPUTATION_VERSION,
            "weights": weights_of(self.reference.path, revision=self.reference.options.get("revision", "main")),
            "loaded": self.reference.options,
            "adapters": self.reference.is_start and hasattr(self.model, "peft_config"),
            "precision": [self.args.bf16, self.args.fp16, self.args.tf32],
            "share_prompts": trainer.data_collator.share_prompts,
            "ld_alpha": trainer.ld_alpha,
            "zero": self.is_deepspeed_enabled,
            "device": self.args.device.type,
        }
        return digest_text(json.dumps(what, sort_keys=True, default=str))[:16]


def weights_of(path: str, *, revision: str = "main") -> str:
    """A model's content: its files' hashes, from its step's record where there is one; of a hub name the commit.

    Not its step's fingerprint: a step that was made again elsewhere has other bits under the same one.
    """
    folder = Path(path)
    if not folder.is_dir():
        config = read_config(path, revision=revision)
        return f"{path}@{getattr(config, '_commit_hash', revision)}"
    record = Artifact.read(folder.parent)
    recorded = record.sha256 if record is not None else {}
    hashes = {Path(name).name: digest for name, digest in recorded.items() if Path(name).parent == Path(folder.name)}
    if not hashes:
        files = sorted(file for file in folder.glob("*") if file.is_file())
        hashes = dict(zip((file.name for file in files), hash_files(files), strict=True))
    return digest_record(hashes)


def content_of(row: Mapping[str, Any]) -> str:
    """What a reference reads of a pair in tokens, as a hash."""
    return digest_text(json.dumps([row[name] for name in REFERENCE_COLUMNS]))


def length_of(row: Mapping[str, Any]) -> int:
    """Tokens of a pair, its prompt once."""
    return sum(len(row[name]) for name in REFERENCE_COLUMNS[:3])


def cut_passes(keys: Sequence[str], lengths: Sequence[int], *, size: int) -> list[list[int]]:
    """Rows in passes of at most `size` pairs, the longest first; of equal pairs the first row alone."""
    row_of = {key: row for row, key in reversed(list(enumerate(keys)))}
    passes: list[list[int]] = [[]]
    for row in sorted(row_of.values(), key=lambda row: (-lengths[row], keys[row])):
        passes[-1].append(row)
        if len(passes[-1]) == size or int(keys[row][:8], 16) % (2 * size) == 0:
            passes.append([])
    return [rows for rows in passes if rows]


def passes_of(side: str, keys: Sequence[str], batches: Iterable[Sequence[int]]) -> list[Pass]:
    return [Pass(digest_text("".join(keys[row] for row in rows)), side, rows) for rows in batches]


def read_sums(folders: Iterable[Path]) -> dict[str, Sums]:
    """The sums of every pass that stands whole in a file of `folders`, by key."""
    found: dict[str, Sums] = {}
    for path in sorted(path for folder in dict.fromkeys(folders) for path in folder.glob("*.jsonl")):
        damaged = 0
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if (text := verified_text(line.rstrip("\n"))) is None:
                    damaged += 1
                    continue
                content = json.loads(text)
                found.setdefault(content["pass"], [(chosen, rejected) for chosen, rejected in content["sums"]])
        if damaged:  # or cut off, by a kill
            log.warning("%s: %d passes are not as they were written: they are made again", path.name, damaged)
    return found
