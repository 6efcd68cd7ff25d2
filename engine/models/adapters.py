"""A trained LoRA adapter (arXiv 2106.09685) and what it was trained on: its merged weights, one tensor at a time.

    adapter = Adapter.read(folder)
    weight = adapter.merged("model.layers.0.self_attn.q_proj.weight", weight)

The merged weight is W + s B A, where W is the base's weight as training saw it: for a quantised base (QLoRA,
arXiv 2305.14314) quantised and restored. s is alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732). DoRA
(arXiv 2402.09353, eq. 5) scales each row of W + s B A to its trained length. Everything is computed in float32.

A folder with an adapter has PEFT's two files, BASE, and config.json and tokenizer of the complete model.
"""

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from data_schemas.errors import DataError
from data_schemas.files import read_json
from data_schemas.packages import is_installed, to_install

# Shapes: O = outputs of a layer, I = its inputs, R = rank, V = rows of the embeddings, H = their width.

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names
BASE = "adapter_base.json"
PREFIX = "base_model.model."  # of every tensor in PEFT's file
LOW_RANK = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B")
HEAD = "lm_head.weight"
TOKENS = "token_adapter.trainable_tokens_delta"  # the complete rows, not what is added to them


class UnsupportedAdapter(Exception):
    """The adapter has parts that only PEFT can merge."""


@dataclass(frozen=True)
class Quantization:
    """How the base's matrices were quantised while the adapter was trained."""

    kind: str  # nf4, fp4 or int8
    nested: bool  # the scales are quantised too
    modules: Sequence[str]  # that have such a matrix

    def restored(self, weight_OI: torch.Tensor) -> torch.Tensor:
        """The matrix quantised and restored, in float32. Raises DataError where bitsandbytes is not installed."""
        if not is_installed("bitsandbytes"):
            raise DataError(
                "the adapter was trained on a quantized base, and the package bitsandbytes is not installed, which "
                f"quantizes its weights; {to_install('bitsandbytes')}"
            )
        functional: Any = importlib.import_module("bitsandbytes.functional")  # an extra, so pyright may not find it
        if self.kind == "int8":
            rows_OI, scales_O, _ = functional.int8_vectorwise_quant(weight_OI.to(torch.float16))
            return functional.int8_vectorwise_dequant(rows_OI, scales_O).float()
        packed, state = functional.quantize_4bit(
            weight_OI.contiguous(), quant_type=self.kind, compress_statistics=self.nested
        )
        return functional.dequantize_4bit(packed, state).float()


@dataclass(frozen=True)
class AdapterBase:
    """The model that an adapter was trained on."""

    path: str  # a hub name, or a folder: relative to that of the adapter, so that both can be moved
    revision: str
    identity: str  # of its weights
    dtype: str  # in which it was loaded
    keys: Mapping[str, Any]  # the recipe's keys that decide the adapter's form and the base's precision
    quantization: Quantization | None = None

    @classmethod
    def read(cls, folder: Path) -> "AdapterBase":
        """Raises DataError where the folder does not say what its adapter was trained on."""
        content = read_json(folder / BASE)
        try:
            quantization = (content or {})["quantization"]
            return cls(**{**(content or {}), "quantization": Quantization(**quantization) if quantization else None})
        except (KeyError, TypeError):
            raise DataError(
                f"{folder} is a LoRA adapter without a valid {BASE}, which names the model it was trained on; "
                "merge it into its base with PEFT first"
            ) from None

    def write(self, folder: Path) -> None:
        (folder / BASE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def resolved(self, folder: Path) -> str:
        """The base's path, or its hub name. `folder` is that of the adapter."""
        beside = folder / self.path
        return str(beside.resolve()) if beside.is_dir() else self.path

    def as_trained_on(self, name: str, weight: torch.Tensor, *, is_transposed: bool = False) -> torch.Tensor:
        """A weight of the base with the values that training saw, in float32."""
        weight = weight.to(getattr(torch, self.dtype))
        if self.quantization is None or name.removesuffix(".weight") not in self.quantization.modules:
            return weight.float()
        # GPT-2's layers hold their matrices transposed, and bitsandbytes turns them before it quantises them.
        return self.quantization.restored(weight.T).T if is_transposed else self.quantization.restored(weight)


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds an adapter instead of a complete model."""
    return (Path(path) / CONFIG).is_file()


@dataclass(frozen=True)
class Adapter:
    """An adapter's tensors, by the module of the complete model to which they belong."""

    base: AdapterBase
    config: Mapping[str, Any]  # PEFT's
    parts: Mapping[str, Mapping[str, torch.Tensor]] = field(repr=False)  # module -> a name of LOW_RANK or TOKENS
    complete: Mapping[str, torch.Tensor] = field(repr=False)  # weights that were trained in full, by name

    @classmethod
    def read(cls, folder: Path) -> "Adapter":
        """Raises DataError for a folder without a valid BASE, UnsupportedAdapter for parts that only PEFT can merge."""
        base, config = AdapterBase.read(folder), read_json(folder / CONFIG) or {}
        parts: dict[str, dict[str, torch.Tensor]] = {}
        complete: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(folder / WEIGHTS).items():
            name = name.removeprefix(PREFIX)
            part = next((part for part in (*LOW_RANK, TOKENS) if name.endswith(f".{part}")), None)
            if part:
                parts.setdefault(name.removesuffix(f".{part}"), {})[part] = tensor
            elif ".base_layer." not in name:  # PEFT keeps a copy of embeddings that have an adapter
                complete[name] = tensor
        for key in ("rank_pattern", "alpha_pattern", "target_parameters", "lora_bias", "layer_replication"):
            if config.get(key):
                raise UnsupportedAdapter(key)
        if config.get("bias", "none") != "none" or any("lora_" in name for name in complete):
            raise UnsupportedAdapter("bias")
        if any({"lora_embedding_A", "lora_magnitude_vector"} <= own.keys() for own in parts.values()):
            raise UnsupportedAdapter("DoRA of embeddings")
        return cls(base, config, parts, complete)

    @property
    def scale(self) -> float:
        rank, alpha = self.config["r"], self.config["lora_alpha"]
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    @property
    def names(self) -> set[str]:
        """The weights that differ from the base's."""
        return {f"{module}.weight" for module in self.parts} | set(self.complete)

    def with_tied_head(self, embeddings: str) -> "Adapter":
        """The adapter of a model whose head is its embeddings, by the embeddings' name: PEFT may use the head's."""
        complete = {name: weight for name, weight in self.complete.items() if name != HEAD}
        parts = {name: own for name, own in self.parts.items() if f"{name}.weight" != HEAD}
        if HEAD in self.complete and embeddings not in complete:
            complete[embeddings] = self.complete[HEAD]
        return replace(self, parts=parts, complete=complete)

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight of the complete model by this name, in float32; `weight` is the base's."""
        if name in self.complete:
            return self.complete[name].float()
        own = self.parts.get(name.removesuffix(".weight"), {})
        is_transposed = bool(self.config.get("fan_in_fan_out")) and "lora_A.weight" in own
        result = self.base.as_trained_on(name, weight, is_transposed=is_transposed)
        own = {part: tensor.to(result.device, torch.float32) for part, tensor in own.items()}
        if "lora_A.weight" in own:
            merged_OI = self._low_rank(
                result.T if is_transposed else result,
                own["lora_A.weight"],
                own["lora_B.weight"],
                own.get("lora_magnitude_vector"),
            )
            result = merged_OI.T if is_transposed else merged_OI
        elif "lora_embedding_A" in own:
            result = result + self.scale * (own["lora_embedding_B"] @ own["lora_embedding_A"]).T
        if TOKENS in own:
            indices = self.config["trainable_token_indices"]
            rows = indices[name.split(".")[-2]] if isinstance(indices, Mapping) else indices
            result = result.index_copy(0, torch.tensor(rows, device=result.device), own[TOKENS])
        return result

    def _low_rank(
        self, weight_OI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, lengths_O: torch.Tensor | None
    ) -> torch.Tensor:
        weight_OI = weight_OI + self.scale * (b_OR @ a_RI)
        return weight_OI if lengths_O is None else (lengths_O / weight_OI.norm(dim=1)).view(-1, 1) * weight_OI
