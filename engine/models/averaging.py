"""Averages of model folders, tensor by tensor (Llama 3, arXiv 2407.21783, 4.1.5; model soups, arXiv 2203.05482).

    check_same_architecture(folders)
    write_average(folders, out, weights=[0.5, 0.5])

Only safetensors are read and written. The output has the same shards, index and dtypes as the first folder, and all
other files are copied from there. At any time one tensor of each folder and their average are in memory.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypedDict

import torch
from safetensors import safe_open

from data_schemas.errors import DataError
from data_schemas.files import read_json
from engine.models.card import CARD

# Entries of config.json that say where a model was saved, by what and in which precision, not its architecture.
NOT_ARCHITECTURE = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
CALL_STATE = ("padding", "truncation")  # tokenizer.json keeps how the tokenizer was last called
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
SAME_DIRECTION = 1e-6  # radians; for smaller angles the sines of slerp are mostly rounding
CHUNK = 2**18  # numbers that are summed at once, in float64

# Shapes: N = numbers of a tensor, flattened; P = parts, the models that are averaged.
WeightsOf = Callable[[Sequence[torch.Tensor]], Sequence[float]]  # one tensor [N] of each part -> their weights [P]


class TensorHeader(TypedDict):
    """One entry in the header of a safetensors file."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]  # first byte and the one after the last, counted from the end of the header


# -- what must agree ------------------------------------------------------------------------------------------------


def check_same_architecture(folders: Sequence[Path]) -> None:
    """Raises DataError naming a folder that is not a local model in safetensors, or two folders and their first
    difference in architecture, tokenizer, chat template or tensor shapes."""
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise DataError(f"{folder} is not a model folder (no config.json); an average needs local folders")
        if not any(folder.glob("*.safetensors")):
            raise DataError(f"{folder} holds no safetensors; save the model with safe_serialization=True")
    first = folders[0]
    kept = {name: _description(first, name) for name in ("config.json", "tokenizer.json", "chat template", "tensor")}
    for other in folders[1:]:
        for name, description in kept.items():
            if difference := _first_difference(description, _description(other, name)):
                raise DataError(f"{first} and {other} cannot be averaged: {name} {difference}")


def _description(folder: Path, name: str) -> object:
    if name == "chat template":
        template = folder / "chat_template.jinja"
        inside = (read_json(folder / "tokenizer_config.json") or {}).get("chat_template")
        return template.read_text(encoding="utf-8") if template.is_file() else inside
    if name == "tensor":
        return {tensor: shape for tensor, (_, shape) in tensors_of(folder).items()}
    content = read_json(folder / name) or {}
    left_out = NOT_ARCHITECTURE if name == "config.json" else CALL_STATE
    return {key: value for key, value in content.items() if key not in left_out}


def _first_difference(one: object, other: object) -> str:
    """The key and both values, as in `rope.theta is 1 and 2`; the empty string where nothing differs."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys(), key=str):
            if one.get(key) != other.get(key):
                inner = _first_difference(one.get(key), other.get(key))
                return f"{key}{' ' if inner.startswith('is ') else '.'}{inner}"
        return ""
    return "" if one == other else f"is {_short(one)} and {_short(other)}"


def _short(value: object) -> str:
    text = "missing" if value is None else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def tensors_of(folder: Path) -> dict[str, tuple[Path, list[int]]]:
    """Every tensor's file and shape. Reads only the headers of the files."""
    tensors: dict[str, tuple[Path, list[int]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header, _ = _read_header(file)
        tensors |= {name: (path, entry["shape"]) for name, entry in header.items()}
    return tensors


def _read_header(file: BinaryIO) -> tuple[dict[str, TensorHeader], bytes]:
    """The entries by tensor name, in the order of the tensors' bytes, and the header's own bytes."""
    length = file.read(8)
    text = file.read(int.from_bytes(length, "little"))
    header: dict[str, TensorHeader] = {
        name: entry for name, entry in json.loads(text).items() if name != "__metadata__"
    }
    return dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"])), length + text


# -- averaging ------------------------------------------------------------------------------------------------------


def write_average(folders: Sequence[Path], out: Path, *, weights: Sequence[float]) -> None:
    """Writes the weighted mean of all tensors into `out`, which appears only once it is complete.

    `weights` must sum to 1; a folder with weight 0 is not read. Raises DataError where an integer tensor differs
    between two folders.
    """
    used = [(folder, weight) for folder, weight in zip(folders, weights, strict=True) if weight]
    _write(folders[0], [folder for folder, _ in used], out, lambda _: [weight for _, weight in used])


def write_slerp(one: Path, other: Path, out: Path, *, fraction: float) -> None:
    """Writes the spherical interpolation: each tensor, as a vector, lies `fraction` of the way along the arc from `one`
    to `other`; see `arc_weights`."""
    _write(one, [one, other], out, lambda both: arc_weights(*both, fraction=fraction))


def arc_weights(one_N: torch.Tensor, other_N: torch.Tensor, *, fraction: float) -> list[float]:
    """The weights of slerp (Shoemake 1985): sin((1-t)w)/sin(w) and sin(tw)/sin(w), with t the fraction and w the angle
    between the vectors.

    They are 1-t and t, those of linear interpolation, where w is undefined (a norm of 0) or near 0 or pi.
    """
    products = torch.zeros(3, dtype=torch.float64)
    for (one, other), _ in _chunks([one_N, other_N]):
        products += torch.stack([one @ one, other @ other, one @ other])
    one_squared, other_squared, dot = products.tolist()
    norms = math.sqrt(one_squared) * math.sqrt(other_squared)
    angle = math.acos(max(-1.0, min(1.0, dot / norms))) if norms else 0.0
    if not SAME_DIRECTION < angle < math.pi - SAME_DIRECTION:
        return [1 - fraction, fraction]
    return [math.sin((1 - fraction) * angle) / math.sin(angle), math.sin(fraction * angle) / math.sin(angle)]


def _weighted_sum(tensors: Sequence[torch.Tensor], weights: Sequence[float], *, dtype: torch.dtype) -> torch.Tensor:
    """[N]. Summed in float64 and rounded once, so a model averaged with itself is unchanged to the last bit."""
    total_N = torch.empty(len(tensors[0]), dtype=dtype)
    for chunks, place in _chunks(tensors):
        total_N[place] = sum(chunk * weight for chunk, weight in zip(chunks, weights, strict=True))
    return total_N


def _chunks(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[list[torch.Tensor], slice]]:
    """The same slice of every tensor [N] in float64, and that slice."""
    for start in range(0, len(tensors[0]), CHUNK):
        place = slice(start, start + CHUNK)
        yield [tensor[place].double() for tensor in tensors], place


def _write(first: Path, folders: Sequence[Path], out: Path, weights_of: WeightsOf) -> None:
    tensors = [tensors_of(folder) for folder in folders]
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in sorted(first.iterdir()):
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                header, text = _read_header(file)
            # The names, dtypes and shapes are the same, so the header is too, and each tensor is written at once.
            with (partial / path.name).open("wb") as file:
                file.write(text)
                for name in header:
                    # Not tofile, which raises no error when the disk is full.
                    file.write(_averaged(name, path, tensors, weights_of).view(torch.uint8).numpy().data)
        elif path.is_file() and path.suffix not in PICKLED and path.name != CARD:
            shutil.copyfile(path, partial / path.name)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _averaged(
    name: str, first: Path, folders: Sequence[Mapping[str, tuple[Path, list[int]]]], weights_of: WeightsOf
) -> torch.Tensor:
    """[N]: the average of one tensor, in the first folder's dtype. An integer tensor must be equal in all folders."""
    like = _read(first, name)
    paths = [folder[name][0] for folder in folders]
    if like.is_floating_point():
        tensors = [_read(path, name) for path in paths]
        return _weighted_sum(tensors, weights_of(tensors), dtype=like.dtype)
    for path in paths:
        if not torch.equal(_read(path, name), like):
            raise DataError(
                f"{first.parent} and {path.parent} cannot be averaged: {name} holds {like.dtype} and differs"
            )
    return like


def _read(path: Path, name: str) -> torch.Tensor:
    """[N]: a tensor as a vector, mapped into memory."""
    # The file is opened for each tensor, since an open file keeps every page that was read in memory.
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).reshape(-1)


# -- weights --------------------------------------------------------------------------------------------------------


def normalised(weights: Sequence[float]) -> list[float]:
    """The weights divided by their sum."""
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def greedy_weights(losses: Sequence[float], loss_of: Callable[[list[float]], float]) -> list[float]:
    """The greedy soup (arXiv 2203.05482, recipe 1): starts with the best part and adds, in order of their losses, each
    part that does not raise the loss of the average.

    `losses` [P] are those of the parts; `loss_of` evaluates the average with the weights [P] that it is given.
    """
    order = sorted(range(len(losses)), key=lambda part: (math.isnan(losses[part]), losses[part], part))
    kept, best = [order[0]], losses[order[0]]
    for part in order[1:]:
        loss = loss_of(_equal([*kept, part], len(losses)))
        if loss <= best:
            kept, best = [*kept, part], loss
    return _equal(kept, len(losses))


def _equal(kept: Sequence[int], count: int) -> list[float]:
    return [1 / len(kept) if part in kept else 0.0 for part in range(count)]
