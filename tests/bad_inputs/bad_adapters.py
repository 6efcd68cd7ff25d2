"""Bad adapters of steps with at_end: keep, given to the stages that start from them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from data_schemas import key_rules
from engine.models.adapters import BASE, WEIGHTS
from tests.bad_inputs.bad_models import model, sft
from tests.bad_inputs.cases import Call, Case, Place
from tests.toy_adapters import adapted

Spoil = Callable[[Path], Any]


def of_adapter(spoil: Spoil, *, form: dict[str, Any] | None = None, **keys: Any) -> Callable[[Place], Call]:
    """SFT from the adapter in the folder `model`, which was trained on the model in the folder `base`."""

    def make(place: Place) -> Call:
        base = model(place, "base")
        adapted(base, place.folder / "model", **(form or {}))
        spoil(place.folder)
        place.patch.setattr(key_rules, "is_installed", lambda package: True)
        return place.stage("sft", **sft(place, **keys))

    return make


def with_another_base(folder: Path) -> None:
    path = folder / "base" / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def with_an_unknown_tensor(folder: Path) -> None:
    path = folder / "model" / WEIGHTS
    tensors = load_file(path)
    tensors |= {name.replace("layers.0", "layers.7"): tensor for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def under_zero3(place: Place) -> Call:
    place.patch.setattr(key_rules, "is_installed", lambda package: True)
    launch = "sft.launch={profile: zero3, num_processes: 2}"
    return place.alignloop("plan", *place.recipe("sft.use_peft=true", "sft.load_in_4bit=true", launch))


CASES = [
    Case(
        "quantized base under ZeRO-3",
        under_zero3,
        "sft.launch: profile zero3 divides weights among processes, which quantized ones do not support; try profile",
    ),
    Case(
        "adapter without its base's name",
        of_adapter(lambda folder: (folder / "model" / BASE).unlink()),
        f"model is a LoRA adapter without a valid {BASE}, which names the model it was trained on; merge it into",
    ),
    Case(
        "adapter whose base is gone",
        of_adapter(lambda folder: shutil.rmtree(folder / "base")),
        "model holds an adapter, and the model that it was trained on is missing: ../base",
    ),
    Case(
        "adapter with another base",
        of_adapter(with_another_base),
        f"base is not the model that the adapter in model was trained on, as {BASE} records it; run the step again",
    ),
    Case(
        "adapter with a bias",
        of_adapter(lambda folder: None, form={"bias": "lora_only"}),
        "model holds an adapter that cannot be merged in memory, because of its bias; train it with at_end: merge",
    ),
    Case(
        "adapter of a larger model",
        of_adapter(with_an_unknown_tensor),
        "the adapter's weight model.layers.7.self_attn.q_proj.weight is not in its base",
    ),
    Case(
        "adapter with other keys on a quantized base",
        of_adapter(lambda folder: None, use_peft=True, load_in_4bit=True),
        "model holds an adapter, and on a quantized base it can only be continued with the keys it was trained with "
        "(load_in_4bit False -> True): set them back, or at_end: merge in the step that trains it",
    ),
]
