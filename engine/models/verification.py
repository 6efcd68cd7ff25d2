"""Is what was saved what was trained? Answered before a stage writes its record.

While a model is trained its outputs on a few fixed rows are kept with it. At the end the model is loaded back from its
files, by the loader that the next stage will use, and must give the same outputs: bit by bit on one CPU process, within
a tolerance elsewhere. What this finds: weights that were not gathered, a score head that is newly made when it is
loaded, tied weights that were left out, an adapter merged into the wrong base.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import ModelConfig

from data_schemas.errors import StageError
from engine.models.loading import aligned, without_launcher
from engine.models.precision import TOLERANCES
from engine.runtime import timing
from engine.runtime.process import trusts_code
from engine.tokens.inspection import sequences_of

PROBE = "probe.safetensors"  # beside the weights of a best model, never in `model`
NUM_ROWS, NUM_TOKENS = 4, 128
LIMIT_BYTES = 40 * 10**9  # of weights that are loaded back whole
log = logging.getLogger(__name__)


def fixed_rows(dataset: Any) -> list[list[int]]:
    """The first tokens of the first rows of a tokenized data set, whatever the stage."""
    rows = []
    for row in dataset.select(range(min(NUM_ROWS, len(dataset)))):
        rows.append(list(sequences_of(row)[0][:NUM_TOKENS]))
    return rows


def outputs_of(model: Any, rows: Sequence[Sequence[int]], *, device: torch.device) -> list[torch.Tensor]:
    """What the model says after each row: logits of the next token, [vocabulary], or the score, [1]."""
    was_training = model.training
    model.eval()
    found = []
    with torch.no_grad():
        for row in rows:
            ids_1T = torch.tensor([row], device=device)
            logits = model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), use_cache=False).logits
            found.append((logits[0] if logits.dim() == 2 else logits[0, -1]).float().cpu())
    model.train(was_training)
    return found


def as_tensors(rows: Sequence[Sequence[int]], outputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows and what the model said after each, as a safetensors file holds them."""
    tensors = {f"row-{number}": torch.tensor(row) for number, row in enumerate(rows)}
    return tensors | {f"output-{number}": output.contiguous() for number, output in enumerate(outputs)}


def probe(trainer: Any) -> dict[str, torch.Tensor]:
    """What the trainer's model says now. All processes call this: under ZeRO-3 the weights are divided among them."""
    rows = fixed_rows(trainer.eval_dataset)
    with trainer.compute_loss_context_manager():
        return as_tensors(rows, outputs_of(trainer.model, rows, device=trainer.args.device))


def check_saved(model: Path, probe: Path, how: Mapping[str, Any]) -> None:
    """Raises StageError where the model in `model` is not whole, or does not answer as `probe` says.

    `how`: is_reward_model, device, autocast (a dtype's name or null), tolerance (of the largest output; 0: bit by bit).
    """
    cls = AutoModelForSequenceClassification if how["is_reward_model"] else AutoModelForCausalLM
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    if size > LIMIT_BYTES:
        log.info("%s has %.0f GB: its tensors were checked, it was not loaded back", model, size / 1e9)
        return
    both: Any = cls.from_pretrained(
        model, dtype="auto", output_loading_info=True, use_safetensors=True, trust_remote_code=trusts_code()
    )
    loaded: Any = aligned(both[0])
    info = both[1]
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        raise StageError(f"the saved model is not whole: {json.dumps(wrong)[:300]}")
    probed = load_file(probe)
    rows = [probed[f"row-{number}"].tolist() for number in range(len(probed) // 2)]
    device = torch.device(how["device"])
    loaded.to(device)
    with torch.autocast(
        device.type, dtype=getattr(torch, how["autocast"] or "bfloat16"), enabled=bool(how["autocast"])
    ):
        found = outputs_of(loaded, rows, device=device)
    for number, output in enumerate(found):
        wanted = probed[f"output-{number}"]
        difference = float((output - wanted).abs().max()) if output.shape == wanted.shape else float("inf")
        allowed = how["tolerance"] * float(wanted.abs().max())
        if not difference <= allowed:
            raise StageError(
                f"the saved model is not the trained one: after row {number + 1} of the held-out rows their outputs "
                f"differ by up to {difference:.3g} (allowed: {allowed:.3g})"
            )


@timing.part("save")
def check_trained(trainer: Any, target: Path, probe: Path, model: ModelConfig, *, is_reward_model: bool) -> None:
    """`check_saved` after training, whose memory is given back before. Raises StageError as it does."""
    if model.load_in_4bit or model.load_in_8bit:
        log.info("trained on a quantized base and merged into the plain one: their answers are not the same")
        return
    training, is_alone = trainer.args, trainer.args.world_size == 1
    autocast = "bfloat16" if training.bf16 else "float16" if training.fp16 else None
    exact = is_alone and training.device.type == "cpu" and not model.use_peft and not trainer.is_deepspeed_enabled
    how = {
        "is_reward_model": is_reward_model,
        "device": str(training.device),
        "autocast": autocast,
        "tolerance": 0.0 if exact else TOLERANCES[autocast or "float32"],
    }
    if trainer.is_deepspeed_enabled:
        check_in_own_process(target, probe, how)
        return
    trainer.optimizer = trainer.lr_scheduler = trainer.model_wrapped = None
    trainer.model.to("cpu")
    trainer.accelerator.free_memory()
    check_saved(target, probe, how)


def check_in_own_process(model: Path, probe: Path, how: Mapping[str, Any]) -> None:
    """`check_saved` in a process that no ZeRO state reaches."""
    command = [sys.executable, "-P", "-m", "engine.models.verification", str(model), str(probe), json.dumps(how)]
    done = subprocess.run(command, env=without_launcher(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageError(done.stderr.strip().splitlines()[-1].removeprefix("data_schemas.errors.StageError: "))


@timing.part("save")
def check_weights(folder: Path) -> None:
    """Every tensor of the saved model is there, not empty, and finite. Raises StageError naming the tensor."""
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
        raise StageError(f"{folder} misses {len(expected - seen)} tensors, such as {min(expected - seen)}")


if __name__ == "__main__":
    check_saved(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
