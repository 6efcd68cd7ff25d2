"""Averages of models: numbers worked out by hand, what must agree, and the memory used."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from data_schemas.errors import DataError
from engine.models.averaging import (
    arc_weights,
    check_same_architecture,
    greedy_weights,
    normalised,
    write_average,
    write_slerp,
)
from tests.patience import PATIENCE
from tests.stage_runs import weights_of
from tests.toy_models import tiny_llama


def model_of(folder: Path, *files: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    """A folder with these tensors, each in a separate file, and the other files of a model."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 2} | (config or {})))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "padding": None}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    if len(files) == 1:
        save_file(files[0], folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    for name, tensors in zip(names, files, strict=True):
        save_file(tensors, folder / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


# -- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1.0, 1.0, 1.0], [3.0, 4.0]),
        ([2.0, 1.0, 1.0], [2.5, 3.25]),
        ([0.0, 3.0, 1.0], [3.5, 5.75]),
        ([0.0, 0.0, 5.0], [5.0, 5.0]),
    ],
)
def test_the_average_is_the_weighted_mean_of_every_tensor(tmp_path, weights, expected):
    values = ([1.0, 1.0], [3.0, 6.0], [5.0, 5.0])
    parts = [model_of(tmp_path / str(n), {"w": torch.tensor(value)}) for n, value in enumerate(values)]
    write_average(parts, tmp_path / "out", weights=normalised(weights))
    assert weights_of(tmp_path / "out")["w"].tolist() == expected


def test_the_greedy_soup_adds_a_part_only_where_the_loss_does_not_rise():
    # By their losses the order is 1, 3, 0, 2. Adding 3 lowers the loss, 0 raises it, 2 does not change it.
    asked = []

    def loss_of(weights: list[float]) -> float:
        asked.append(weights)
        return {(0, 0.5, 0, 0.5): 0.8, (1 / 3, 1 / 3, 0, 1 / 3): 0.81, (0, 1 / 3, 1 / 3, 1 / 3): 0.8}[tuple(weights)]

    assert greedy_weights([1.2, 0.9, 1.5, 1.0], loss_of) == [0, 1 / 3, 1 / 3, 1 / 3]
    assert len(asked) == 3
    assert greedy_weights([math.nan, 0.9], lambda _: math.nan) == [0, 1]


@pytest.mark.parametrize(
    ("one", "other", "fraction", "expected"),
    [
        ([1.0, 0.0], [0.0, 1.0], 0.5, [math.sqrt(0.5), math.sqrt(0.5)]),
        ([1.0, 0.0], [0.0, 1.0], 1 / 3, [math.cos(math.pi / 6), math.sin(math.pi / 6)]),
        ([1.0, 0.0], [0.0, 3.0], 1 / 3, [math.cos(math.pi / 6), 3 * math.sin(math.pi / 6)]),
        ([1.0, 2.0], [2.0, 4.0], 0.25, [1.25, 2.5]),  # one direction: linear
        ([1.0, 0.0], [-1.0, 0.0], 0.25, [0.5, 0.0]),  # opposite: no arc is the shortest
        ([0.0, 0.0], [4.0, 8.0], 0.25, [1.0, 2.0]),  # no direction
    ],
)
def test_slerp_follows_the_arc_and_is_linear_where_there_is_none(one, other, fraction, expected):
    weights = arc_weights(torch.tensor(one), torch.tensor(other), fraction=fraction)
    assert [x * weights[0] + y * weights[1] for x, y in zip(one, other, strict=True)] == pytest.approx(expected)


def test_slerp_of_folders_treats_each_tensor_separately(tmp_path):
    parts = [
        model_of(tmp_path / str(n), {"a": torch.tensor(a), "b": torch.tensor(b)})
        for n, (a, b) in enumerate([([[1.0, 0.0]], [1.0]), ([[0.0, 1.0]], [2.0])])
    ]
    write_slerp(parts[0], parts[1], tmp_path / "out", fraction=0.5)
    made = weights_of(tmp_path / "out")
    assert made["a"].tolist() == [pytest.approx([math.sqrt(0.5)] * 2)]
    assert made["b"].tolist() == [1.5]


# -- how it is written ----------------------------------------------------------------------------------------------


def test_the_average_has_the_file_layout_of_the_first_part(tmp_path):
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([[4.0]])
    first = model_of(tmp_path / "first", {"a": a}, {"b": b})
    (first / "training_args.bin").write_bytes(b"a pickle")
    second = model_of(tmp_path / "second", {"b": b + 2, "a": a + 2})
    write_average([first, second], tmp_path / "out", weights=[0.5, 0.5])
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {path.name for path in first.iterdir()} - {"training_args.bin"}
    for name in ("config.json", "tokenizer.json", "generation_config.json", "model.safetensors.index.json"):
        assert (tmp_path / "out" / name).read_bytes() == (first / name).read_bytes()
    assert {name: tensor.tolist() for name, tensor in weights_of(tmp_path / "out").items()} == {
        "a": [2.0, 3.0],
        "b": [[5.0]],
    }


def test_bf16_stays_bf16_and_is_rounded_once(tmp_path):
    # (256 + 1 + 1) / 3 = 86. Summed up in bf16, whose steps are 2 above 256, it would be 256 / 3 = 85.5.
    values = [256.0, 1.0, 1.0]
    parts = [
        model_of(tmp_path / str(n), {"w": torch.tensor([value, 3.0], dtype=torch.bfloat16)})
        for n, value in enumerate(values)
    ]
    write_average(parts, tmp_path / "out", weights=normalised([1, 1, 1]))
    made = weights_of(tmp_path / "out")["w"]
    assert made.dtype == torch.bfloat16
    assert made.tolist() == [86.0, 3.0]


def test_integers_are_copied_and_must_agree(tmp_path):
    kept = {"w": torch.tensor([1.0]), "ids": torch.tensor([1, 2]), "count": torch.tensor(3)}
    one, two = model_of(tmp_path / "one", kept), model_of(tmp_path / "two", kept)
    other = model_of(tmp_path / "other", kept | {"ids": torch.tensor([1, 3])})
    write_average([one, two], tmp_path / "out", weights=[0.5, 0.5])
    assert weights_of(tmp_path / "out")["ids"].tolist() == [1, 2]
    assert weights_of(tmp_path / "out")["count"].item() == 3
    with pytest.raises(DataError, match=r"one and .*other cannot be averaged: ids holds torch.int64 and differs"):
        write_average([one, other], tmp_path / "out2", weights=[0.5, 0.5])
    assert not (tmp_path / "out2").exists()


def test_tied_weights_stay_one_tensor(tied_model, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    other = tiny_llama(tokenizer, tmp_path / "other", seed=1, tie_word_embeddings=True)
    check_same_architecture([tied_model, other])
    write_average([tied_model, other], tmp_path / "out", weights=[0.5, 0.5])
    assert "lm_head.weight" not in weights_of(tmp_path / "out")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    name = "model.embed_tokens.weight"
    mean = (weights_of(tied_model)[name].double() + weights_of(other)[name].double()) / 2
    assert torch.equal(model.lm_head.weight, mean.float())


def test_memory_holds_one_tensor_and_never_a_model(tmp_path):
    """RSS of a separate process, mapped files included: 96 MiB a model in 12 tensors of 8 MiB, three models."""
    tensors = {f"layer.{n}": torch.full((2 * 2**20,), float(n)) for n in range(12)}
    for n in range(3):
        model_of(tmp_path / str(n), {name: tensor + n for name, tensor in tensors.items()})
    # Not ru_maxrss, which a process inherits from its parent.
    measure = (
        "import sys; from pathlib import Path; import torch, engine.models.averaging as averaging\n"
        "def mib(name): return int(Path('/proc/self/status').read_text().split(name + ':')[1].split()[0]) / 1024\n"
        "root = Path(sys.argv[1]); Path('/proc/self/clear_refs').write_text('5'); before = mib('VmRSS')\n"
        "averaging.write_average([root / str(n) for n in range(3)], root / 'out', weights=[1 / 3] * 3)\n"
        "print(mib('VmHWM') - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", measure, str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE
    )
    grown = float(done.stdout)
    assert torch.equal(weights_of(tmp_path / "out")["layer.5"], tensors["layer.5"] + 1)
    # A tensor of each folder and the average, 8 MiB each, and pieces in float64: 50 to 71 MiB were measured.
    assert 24 < grown < 96, done.stderr


# -- what must agree ------------------------------------------------------------------------------------------------


def test_only_models_of_one_kind_are_averaged(tmp_path):
    tensors = {"a": torch.zeros(2), "b": torch.zeros(1)}
    first = model_of(tmp_path / "first", tensors, config={"rope": {"theta": 1}, "dtype": "float32"})

    def refusal(name: str, tensors: dict[str, torch.Tensor] = tensors, **files: str) -> str:
        other = model_of(tmp_path / name, tensors, config={"rope": {"theta": 1}, "dtype": "bfloat16"})
        for file, text in files.items():
            (other / file.replace("_json", ".json").replace("_jinja", ".jinja")).write_text(text)
        with pytest.raises(DataError) as caught:
            check_same_architecture([first, other])
        message = str(caught.value)
        assert message.startswith(f"{first} and {other} cannot be averaged: ") and "\n" not in message
        return message.partition("averaged: ")[2]

    assert (
        refusal("wider", config_json='{"hidden_size": 3, "rope": {"theta": 1}}') == "config.json hidden_size is 2 and 3"
    )
    assert (
        refusal("rope", config_json='{"hidden_size": 2, "rope": {"theta": 5}}') == "config.json rope.theta is 1 and 5"
    )
    assert refusal("less", config_json='{"hidden_size": 2}') == 'config.json rope is {"theta": 1} and missing'
    assert refusal("vocab", tokenizer_json='{"model": {"vocab": {"b": 0}}}') == (
        "tokenizer.json model.vocab.a is 0 and missing"
    )
    assert refusal("template", chat_template_jinja="{{ other }}") == (
        'chat template is "{{ messages }}" and "{{ other }}"'
    )
    assert refusal("shape", tensors | {"b": torch.zeros(3)}) == "tensor b is [1] and [3]"
    assert refusal("extra", tensors | {"c": torch.zeros(3)}) == "tensor c is missing and [3]"


def test_differences_in_saving_and_final_padding_are_ignored(tmp_path):
    tensors = {"a": torch.zeros(2)}
    first = model_of(tmp_path / "first", tensors, config={"dtype": "float32", "transformers_version": "5"})
    other = model_of(tmp_path / "other", {"a": torch.ones(2)}, config={"dtype": "bfloat16"})
    (other / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "padding": {"length": 3}}))
    check_same_architecture([first, other])
    write_average([first, other], tmp_path / "average", weights=[0.5, 0.5])
    assert weights_of(tmp_path / "average")["a"].tolist() == [0.5, 0.5]


def test_a_folder_that_is_no_model_is_named(tmp_path):
    first = model_of(tmp_path / "first", {"a": torch.zeros(2)})
    with pytest.raises(DataError, match=r"org/name is not a model folder"):
        check_same_architecture([first, Path("org/name")])
    pickled = model_of(tmp_path / "pickled", {"a": torch.zeros(2)})
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pickled holds no safetensors"):
        check_same_architecture([first, pickled])
