"""Weights leave a stage in the precision they came in.

A base in bfloat16 is trained with float32 weights (`dtype`), whose small updates bfloat16 would lose, and is saved as
bfloat16 again: half the size, and what the next program expects. Nothing is ever widened, and a base in float32 stays
float32: prepare_base's `dtype` chooses the precision of a run's models once.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data_schemas.files import write_atomically
from engine.models.loading import read_config
from engine.runtime import progress, timing

NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}  # as the headers of safetensors name them
log = logging.getLogger(__name__)


@timing.part("save")
@progress.activity("saving in the base model's precision")
def save_as_it_came(folder: Path, base: str) -> bool:
    """Rewrites the float32 tensors of a saved model in the 16-bit precision that the base has; whether there were any.

    A tensor that the base lacks, as a score head, gets the precision of most of the base's. Files that are links are
    replaced, not written through.
    """
    precisions = _precisions_of(base)
    most = Counter(precisions.values()).most_common(1)
    usual = most[0][0] if most else None
    if not any(precision in NARROW for precision in precisions.values()):
        return False
    num_bytes, changed_files = 0, 0
    for path in sorted(folder.glob("*.safetensors")):
        tensors: dict[str, torch.Tensor] = {}
        is_changed = False
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor, precision = file.get_tensor(name), precisions.get(name, usual)
                if tensor.dtype == torch.float32 and precision in NARROW:
                    tensor, is_changed = tensor.to(NARROW[precision]), True
                tensors[name] = tensor
                num_bytes += tensor.numel() * tensor.element_size()
        if is_changed:
            partial = path.with_name(f".{path.name}.partial")
            save_file(tensors, partial, metadata=metadata)
            partial.replace(path)
            changed_files += 1
    if changed_files:
        _describe(folder, NARROW.get(str(usual)), num_bytes)
    return bool(changed_files)


def _describe(folder: Path, dtype: torch.dtype | None, num_bytes: int) -> None:
    """Writes the precision into config.json, by which `dtype: auto` loads, and the size into the index of shards."""
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        _edit(folder / "config.json", lambda content: content.update(dtype=name))
        log.info("the weights are saved in %s, as they came", name)
    if (index := folder / "model.safetensors.index.json").exists():
        _edit(index, lambda content: content.setdefault("metadata", {}).update(total_size=num_bytes))


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _precisions_of(base: str) -> dict[str, str]:
    """The precision of every floating-point tensor of a model folder; of a hub name, that of its configuration."""
    precisions: dict[str, str] = {}
    if not Path(base).is_dir():
        names = {dtype: name for name, dtype in NARROW.items()}
        name = names.get(getattr(read_config(base), "dtype", None) or torch.float32)
        return {"": name} if name else {}
    for path in sorted(Path(base).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                if (precision := file.get_slice(name).get_dtype()).startswith(("F", "BF")):
                    precisions[name] = precision
    return precisions
