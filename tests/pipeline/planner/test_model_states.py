"""Model states by the ZeRO formulas, beside values that are worked out by hand."""

import pytest

from pipeline.planner.model_states import NESTED_BITS, ModelStates, TrainedModel, model_states
from pipeline.planner.shapes import KNOWN, Shape

GIB = 2**30
LLAMA_8B, LLAMA_70B = (Shape.of(KNOWN[f"meta-llama/Llama-3.1-{size}"]) for size in ("8B", "70B"))
# GiB a GPU of 8.03 and 70.6 billion parameters, without the layers that ZeRO-3 gathers:
# (4 + 12 / g, 2 + 14 / g, 16 / g) bytes for each.
TABLE = [
    ("8B", "zero1", {1: 119.7, 8: 41.1, 16: 35.5, 64: 31.3}),
    ("8B", "zero2", {1: 119.7, 8: 28.0, 16: 21.5, 64: 16.6}),
    ("8B", "zero3", {1: 119.7, 8: 15.0, 16: 7.5, 64: 1.9}),
    ("70B", "zero1", {8: 361.4, 16: 312.1, 32: 287.5, 64: 275.2}),
    ("70B", "zero2", {8: 246.4, 16: 188.9, 32: 160.2, 64: 145.8}),
    ("70B", "zero3", {8: 131.4, 16: 65.7, 32: 32.9, 64: 16.4}),
]


def fully_trained(shape: Shape) -> TrainedModel:
    return TrainedModel(shape.parameters(), shape.parameters(), shape.largest_layer)


def without_gathered(states: ModelStates) -> float:
    return (states.device - states.gathered) / GIB


def test_the_parameters_of_llama_3():
    assert LLAMA_8B is not None and LLAMA_70B is not None
    assert LLAMA_8B.parameters() == 8_030_261_248
    assert LLAMA_70B.parameters() == 70_553_706_496
    assert LLAMA_8B.parameters(has_head=False) == 8_030_261_248 - 128_256 * 4096 + 4096


@pytest.mark.parametrize(("size", "profile", "expected"), TABLE)
def test_zero_divides_the_states_as_its_paper_says(size, profile, expected):
    shape = {"8B": LLAMA_8B, "70B": LLAMA_70B}[size]
    assert shape is not None
    found = {
        processes: round(without_gathered(model_states(fully_trained(shape), profile=profile, processes=processes)), 1)
        for processes in expected
    }
    assert found == expected


def test_without_zero_every_process_holds_sixteen_bytes_a_parameter():
    model = TrainedModel(parameters=1000, trainable=1000, largest_layer=100)
    for mixed in (True, False):
        states = model_states(model, profile="ddp", processes=8, mixed=mixed)
        assert (states.weights, states.gradients, states.optimizer) == (4000, 4000, 8000)


def test_fsdp2_divides_the_float32_states_and_gathers_two_layers_in_half_precision():
    model = TrainedModel(parameters=1000, trainable=1000, largest_layer=100)
    states = model_states(model, profile="fsdp2", processes=8)
    assert (states.weights, states.gradients, states.optimizer, states.gathered) == (500, 500, 1000, 400)
    assert model_states(model, profile="fsdp2", processes=8, mixed=False).gathered == 800


def test_frozen_weights_have_neither_gradients_nor_moments():
    lora = TrainedModel(parameters=1100, trainable=100, largest_layer=100)
    states = model_states(lora, profile="zero2", processes=10)
    assert (states.weights, states.gradients, states.optimizer) == (2200, 20, 120)
    bfloat16 = TrainedModel(parameters=1100, trainable=100, largest_layer=100, frozen_width=2)
    assert model_states(bfloat16, profile="single", processes=1).weights == 2000 + 400


def test_a_quantised_base_has_four_bits_in_its_matrices_and_all_bytes_in_its_embeddings():
    sizes = {"parameters": 1100, "trainable": 100, "largest_layer": 100, "quantised": 900, "frozen_width": 2}
    # 4.5 bits for each of 900 weights, 2 bytes for each of the 100 others, 4 bytes for each of 100 trained ones
    assert model_states(TrainedModel(**sizes), profile="single", processes=1).weights == 900 * 4.5 / 8 + 200 + 400
    nested = TrainedModel(**sizes, quantised_bits=NESTED_BITS)
    assert pytest.approx(4.127, abs=1e-3) == NESTED_BITS
    assert model_states(nested, profile="single", processes=1).weights == pytest.approx(900 * 4.127 / 8 + 600, abs=0.1)


def test_the_parameters_of_adapters():
    assert LLAMA_8B is not None
    # PEFT counts 3,407,872 for rank 8 on the query and value projections, and 41,943,040 for rank 16 on all matrices.
    assert LLAMA_8B.adapters(8, None) == 32 * 8 * (4096 + 4096 + 4096 + 1024) == 3_407_872
    assert LLAMA_8B.adapters(16, ["all-linear"]) == 41_943_040
    assert LLAMA_8B.adapters(8, ["q_proj"], dora=True) == 32 * (8 * 8192 + 4096)


def test_offload_keeps_two_layers_on_the_gpu_and_sixteen_bytes_a_parameter_on_the_host():
    model = TrainedModel(parameters=1000, trainable=1000, largest_layer=100)
    states = model_states(model, profile="zero3_offload", processes=8, machines=2)
    assert states.device == 2 * 100 * 2
    assert states.host == 1.5 * 16 * 1000 / 2
