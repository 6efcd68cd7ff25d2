"""Verifies a saved model before the stage writes its record: are its files complete, and is it the model that trained?

| function | what it verifies |
|---|---|
| `check_weights` | every tensor of the saved files exists, is not empty and is finite |
| `check_saved` | the model, loaded back from its files, gives the outputs that were recorded while it trained |
| `check_trained` | the same at the end of a training stage, after its memory is freed |

`probe` records the outputs on a few fixed rows with each best model. Loading back uses the loader of the next stage.
The outputs must be equal bit by bit on one CPU process, and within a tolerance elsewhere. This finds weights that were
not gathered, a score head that is newly initialised when the model is loaded, tied weights that were left out, and an
adapter that was merged into the wrong base.
"""

import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel, Trainer
from trl import ModelConfig

from data_schemas.errors import StageError
from engine.models.adapters import AdapterBase, is_adapter
from engine.models.loading import aligned, load_causal, load_reward, load_with_info, without_launcher
from engine.models.lora import precision_source
from engine.models.precision import TOLERANCES
from engine.runtime import progress, timing
from engine.tokens.token_rows import TokenRow

PROBE = "probe.safetensors"  # beside the weights of a best model, never in `model`
NUM_ROWS, NUM_TOKENS = 4, 128  # of the rows that a probe records
LIMIT_BYTES = 40 * 10**9  # of weights; a larger model is not loaded back
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """How the outputs of the saved model are computed and compared with the recorded ones."""

    is_reward_model: bool
    device: str
    autocast: str | None  # a dtype's name
    tolerance: float  # of the largest output; 0 means equal bit by bit


def fixed_rows(dataset: Dataset, row_type: type[TokenRow]) -> list[list[int]]:
    """The first tokens of the first rows of a tokenized data set."""
    rows = dataset.select(range(min(NUM_ROWS, len(dataset))))
    return [list(row_type.from_columns(columns).sequences[0][:NUM_TOKENS]) for columns in map(dict, rows)]


def outputs_of(model: torch.nn.Module, rows: Sequence[Sequence[int]], *, device: torch.device) -> list[torch.Tensor]:
    """The model's output at the last token of each row, float32: next-token logits, [vocabulary], or the score, [1]."""
    was_training = model.training
    model.eval()
    outputs = []
    with torch.no_grad():
        for row in rows:
            ids_1T = torch.tensor([row], device=device)
            logits = model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), use_cache=False).logits
            outputs.append((logits[0] if logits.dim() == 2 else logits[0, -1]).float().cpu())
    model.train(was_training)
    return outputs


def as_tensors(rows: Sequence[Sequence[int]], outputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows and the model's output for each, as the tensors of a safetensors file."""
    tensors = {f"row-{number}": torch.tensor(row) for number, row in enumerate(rows)}
    return tensors | {f"output-{number}": output.contiguous() for number, output in enumerate(outputs)}


def probe(trainer: Trainer, row_type: type[TokenRow]) -> dict[str, torch.Tensor]:
    """The current outputs of the trainer's model on fixed rows of its evaluation set, to be kept beside its weights.

    All processes call this, because under ZeRO-3 the weights are divided among them.
    """
    assert isinstance(trainer.eval_dataset, Dataset)
    assert isinstance(trainer.model, torch.nn.Module)
    rows = fixed_rows(trainer.eval_dataset, row_type)
    with trainer.compute_loss_context_manager():
        return as_tensors(rows, outputs_of(trainer.model, rows, device=trainer.args.device))


def check_saved(model: Path, probe: Path, comparison: Comparison) -> None:
    """Loads the model folder back and compares its outputs with those in the file `probe`.

    Raises StageError where tensors are missing, unexpected or of another shape, or where the outputs differ.
    """
    size = sum(file.stat().st_size for file in Path(precision_source(str(model))).glob("*.safetensors"))
    if size > LIMIT_BYTES:
        log.info("%s has %.0f GB: its tensors were checked, it was not loaded back", model, size / 1e9)
        return
    loaded = _load_back(model, is_reward_model=comparison.is_reward_model)
    probed = load_file(probe)
    rows = [probed[f"row-{number}"].tolist() for number in range(len(probed) // 2)]
    device, autocast = torch.device(comparison.device), comparison.autocast
    loaded.to(device)  # pyright: ignore[reportArgumentType]
    with torch.autocast(device.type, dtype=getattr(torch, autocast or "bfloat16"), enabled=bool(autocast)):
        outputs = outputs_of(loaded, rows, device=device)
    for number, output in enumerate(outputs):
        expected = probed[f"output-{number}"]
        difference = float((output - expected).abs().max()) if output.shape == expected.shape else float("inf")
        allowed = comparison.tolerance * float(expected.abs().max())
        if not difference <= allowed:
            raise StageError(
                f"the saved model is not the trained one: after row {number + 1} of the held-out rows their outputs "
                f"differ by up to {difference:.3g} (allowed: {allowed:.3g})"
            )


def _load_back(folder: Path, *, is_reward_model: bool) -> PreTrainedModel:
    if is_adapter(folder):
        load = load_reward if is_reward_model else load_causal
        return load(str(folder), dtype=AdapterBase.read(folder).dtype)
    cls = AutoModelForSequenceClassification if is_reward_model else AutoModelForCausalLM
    model, info = load_with_info(cls, folder, dtype="auto")
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        raise StageError(f"the saved model is not complete: {json.dumps(wrong)[:300]}")
    return aligned(model)


@timing.part("save")
@progress.activity("checking the saved model")
def check_trained(trainer: Trainer, target: Path, probe: Path, model: ModelConfig, *, is_reward_model: bool) -> None:
    """`check_saved` for the model that a trainer saved in `target`. First frees the trainer's memory, so the trainer
    can't be used afterwards. Raises StageError as `check_saved` does."""
    if model.load_in_8bit:
        log.info("the saved model is not compared: a base of 8 bits also rounds what its layers read")
        return
    training = trainer.args
    autocast = "bfloat16" if training.bf16 else "float16" if training.fp16 else None
    is_cpu_process = training.world_size == 1 and training.device.type == "cpu"
    is_exact = is_cpu_process and not model.use_peft and not trainer.is_deepspeed_enabled
    comparison = Comparison(
        is_reward_model=is_reward_model,
        device=str(training.device),
        autocast=autocast,
        tolerance=0.0 if is_exact else TOLERANCES.get(autocast or str(model.dtype), TOLERANCES["float32"]),
    )
    if trainer.is_deepspeed_enabled:
        check_in_own_process(target, probe, comparison)
        return
    trainer.optimizer = trainer.lr_scheduler = trainer.model_wrapped = None
    trainer.model.to("cpu")  # pyright: ignore[reportArgumentType, reportOptionalMemberAccess]
    trainer.accelerator.free_memory()
    check_saved(target, probe, comparison)


def check_in_own_process(model: Path, probe: Path, comparison: Comparison) -> None:
    """`check_saved` in a new process, because ZeRO's state in this one would divide the weights that are loaded."""
    settings = json.dumps(dataclasses.asdict(comparison))
    # -P: a folder named engine/ in the working directory would mask ours.
    command = [sys.executable, "-P", "-m", "engine.models.verification", str(model), str(probe), settings]
    done = subprocess.run(command, env=without_launcher(), capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the check of {model} ended with exit code {done.returncode}"]
        raise StageError(lines[-1])


@timing.part("save")
def check_weights(folder: Path) -> None:
    """Checks that every tensor of the saved model exists, is not empty and is finite.

    Raises StageError naming the tensor.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise StageError(f"{folder} holds no weights")
    index = folder / "model.safetensors.index.json"
    expected = set(json.loads(index.read_text())["weight_map"]) if index.exists() else None
    seen: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = file.get_tensor(name)
                seen.add(name)
                if tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
                    raise StageError(f"{path.name}: {name} is {'empty' if tensor.numel() == 0 else 'nan or infinite'}")
    if expected is not None and expected - seen:
        raise StageError(f"{folder} lacks {len(expected - seen)} tensors, such as {min(expected - seen)}")


def _main() -> int:
    try:
        check_saved(Path(sys.argv[1]), Path(sys.argv[2]), Comparison(**json.loads(sys.argv[3])))
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
