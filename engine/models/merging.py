"""Merges an adapter into its base, shard by shard: at most two shards of the base are in memory at the same time.

    write_plain(folder, out)                    # a folder with an adapter -> a complete model
    plain_folder(path, scratch)                 # any model's folder -> one that other programs can read

Parts that engine/models/adapters.py can't compute are merged by PEFT, in a process that holds the complete model.
"""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from data_schemas.errors import UserError
from data_schemas.files import read_json
from engine.models.adapters import BASE, CONFIG, WEIGHTS, Adapter, AdapterBase, UnsupportedAdapter, is_adapter
from engine.models.card import CARD
from engine.models.loading import (
    check_base,
    is_reward_model,
    load_causal,
    load_reward,
    read_config,
    without_launcher,
)
from engine.models.merged_in_memory import adapter_for
from engine.runtime import progress, timing
from engine.runtime.world import wait_until_exists

INDEX = "model.safetensors.index.json"
log = logging.getLogger(__name__)


@timing.part("save")
@progress.activity("merging the adapter")
def write_plain(folder: Path, out: Path, *, dtype: str | None = None, device: torch.device | None = None) -> None:
    """Writes the complete model of a folder with an adapter into the folder `out`, with its config and tokenizer.

    `dtype` is a torch dtype's name; None keeps that of each of the base's tensors. Quantised bases are quantised again
    on `device`, which is that of training. Raises DataError where the base is missing or is another model.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    base = AdapterBase.read(folder)
    check_base(folder, base)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in (CONFIG, WEIGHTS, BASE, CARD):
            shutil.copyfile(path, out / path.name)
    try:
        model = _without_memory(folder)
        adapter = adapter_for(model, Adapter.read(folder))
        names = set(dict(model.named_parameters())) | set(dict(model.named_buffers()))  # a tied head is no parameter
        source = _files_of(base, folder, out)
        _merge_shards(adapter, source, out, names=names, dtype=dtype, device=device or torch.device("cpu"))
    except UnsupportedAdapter as part:
        log.info("PEFT merges the adapter in memory, because of its %s", part)
        for path in out.glob("*.safetensors*"):
            path.unlink()
        _merge_by_peft(folder, out, dtype=dtype)
    shutil.rmtree(out.with_name(f".{out.name}.base"), ignore_errors=True)


def plain_folder(path: str, scratch: Path, *, writes: bool = True) -> str:
    """The folder of a complete model: `path` itself, or the merged model of its adapter, written below `scratch`.

    A process that does not write waits for the one that does.
    """
    if not is_adapter(path):
        return path
    out = scratch / f"merged-{Path(path).absolute().parent.name}"
    if not writes:
        wait_until_exists(out)
    elif not out.exists():
        partial = out.with_name(f".{out.name}.partial")
        write_plain(Path(path), partial)
        partial.rename(out)
    return str(out)


def _files_of(base: AdapterBase, folder: Path, out: Path) -> Path:
    """The folder with the base's safetensors. A base that is an adapter itself is merged first, beside `out`."""
    path = base.resolved(folder)
    if is_adapter(path):
        merged = out.with_name(f".{out.name}.base")
        write_plain(Path(path), merged)
        return merged
    if Path(path).is_dir():
        return Path(path)
    return Path(snapshot_download(path, revision=base.revision, allow_patterns=["*.safetensors", INDEX]))


def _without_memory(folder: Path) -> PreTrainedModel:
    """The complete model on the meta device, for the names of its tensors."""
    kind = AutoModelForSequenceClassification if is_reward_model(str(folder)) else AutoModelForCausalLM
    with torch.device("meta"):
        return kind.from_config(read_config(str(folder)))


def _merge_shards(
    adapter: Adapter, source: Path, out: Path, *, names: set[str], dtype: str | None, device: torch.device
) -> None:
    shards = sorted(source.glob("*.safetensors"))
    changed, seen, weight_map, num_bytes = adapter.names, set[str](), dict[str, str](), 0
    for path in shards:
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                if name in names:
                    tensors[name] = _merged(adapter, name, file.get_tensor(name), dtype=dtype, device=device)
        seen |= tensors.keys()
        if path == shards[-1]:
            tensors |= _added(adapter, names - seen, like=tensors, dtype=dtype)
            seen |= tensors.keys()
        save_file(tensors, out / path.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, path.name)
        num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if missing := changed - seen:
        raise UnsupportedAdapter(f"weight {min(missing)}, which the files of the base do not have")
    if len(shards) > 1:
        index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _describe(out, weight_map, dtype)


def _merged(
    adapter: Adapter, name: str, weight: torch.Tensor, *, dtype: str | None, device: torch.device
) -> torch.Tensor:
    if not weight.is_floating_point():
        return weight
    target = getattr(torch, dtype) if dtype else weight.dtype
    return adapter.merged(name, weight.to(device)).to("cpu", target).contiguous()


def _added(
    adapter: Adapter, missing: set[str], *, like: Mapping[str, torch.Tensor], dtype: str | None
) -> dict[str, torch.Tensor]:
    """Weights that were trained in full and that the base does not have: a reward model's head."""
    usual = next((tensor.dtype for tensor in like.values() if tensor.is_floating_point()), torch.float32)
    target = getattr(torch, dtype) if dtype else usual
    return {name: weight.to(target) for name, weight in adapter.complete.items() if name in missing}


def _describe(out: Path, weight_map: Mapping[str, str], dtype: str | None) -> None:
    """Writes the precision into config.json, by which `dtype: auto` loads."""
    config = read_json(out / "config.json") or {}
    if dtype is not None and weight_map:
        (out / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=2) + "\n", encoding="utf-8")


def _merge_by_peft(folder: Path, out: Path, *, dtype: str | None) -> None:
    # A process under ZeRO would divide the weights that are loaded. -P: a folder named engine/ in the working
    # directory would mask ours.
    command = [sys.executable, "-P", "-m", "engine.models.merging", str(folder), str(out), dtype or "auto"]
    done = subprocess.run(command, env=without_launcher(), capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"merging the adapter of {folder} failed: {lines[-1]}")


def _by_peft(folder: str, out: str, dtype: str) -> None:
    from peft import PeftModel

    base = AdapterBase.read(Path(folder))
    load = load_reward if is_reward_model(folder) else load_causal
    model = load(base.resolved(Path(folder)), dtype=dtype, revision=base.revision, config=read_config(folder))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(base.as_trained_on(name, weight))
    PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(out)  # pyright: ignore[reportCallIssue]


def main(folder: str, out: str, dtype: str | None = None) -> int:
    """Merges by PEFT if a precision is given, else shard by shard: `alignloop export` starts it so."""
    try:
        if dtype is not None:
            _by_peft(folder, out, dtype)
        else:
            write_plain(Path(folder), Path(out))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
