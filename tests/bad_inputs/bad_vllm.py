"""Bad environments of vLLM, and a vLLM that fails, given to a stage that generates by it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.bad_models import annotate, as_it_is, drop, model
from tests.bad_inputs.cases import Call, Case, Place
from tests.engine.sampling.fake_vllm import FakeVLLM


def by_vllm(
    spoil: Callable[[Path], Any] = as_it_is,
    *,
    version: str | None = "0.32.0",
    options: Any = None,
    behaviour: Any = None,
    **keys: Any,
) -> Callable[[Place], Call]:
    """An annotate whose answers a fake vLLM makes."""

    def make(place: Place) -> Call:
        spoil(model(place))
        fake = FakeVLLM(place.folder / "env", version=version, **behaviour or {})
        vllm = {"python": fake.python} | (options or {})
        return place.stage("annotate", **annotate(place, engine="vllm", vllm=vllm) | keys)

    return make


def by_python(name: str, content: str) -> Callable[[Place], Call]:
    """Of an interpreter that is none."""

    def make(place: Place) -> Call:
        place.write("python", content).chmod(0o755)
        return by_vllm(options={"python": name})(place)

    return make


def with_two_gpus(place: Place) -> Call:
    call = by_vllm(options={"tensor_parallel_size": 3}, use_cpu=False)(place)
    place.patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    place.patch.setattr("torch.cuda.is_available", lambda: False)
    return call


def of_recipe(command: str, *settings: str) -> Callable[[Place], Call]:
    return lambda place: place.alignloop(command, *place.recipe(*settings))


CASES = [
    Case(
        "vllm without its interpreter",
        of_recipe("plan", "annotate.engine=vllm"),
        "annotate: vllm.python is missing: the interpreter of vLLM's own environment, as in vllm: {python:",
    ),
    Case(
        "vllm with a misspelt key",
        of_recipe("plan", "annotate.vllm={pyton: x}"),
        "annotate: vllm: unknown key 'pyton'; did you mean 'python'?",
    ),
    Case(
        "vllm with a number past its limit",
        of_recipe("plan", "defaults.vllm={gpu_memory_utilization: 90}"),
        "vllm.gpu_memory_utilization=90: expected a number above 0, at most 1",
    ),
    Case(
        "vllm's interpreter is not there, says run",
        of_recipe("run", "annotate.engine=vllm", "annotate.vllm.python=gone/python"),
        "toy.yaml: annotate.vllm.python='gone/python' is not a program on this machine: give the",
    ),
    Case(
        "vllm's interpreter is not there",
        by_python("gone/python", ""),
        "vllm.python='HERE/gone/python' is not a program on this machine: give the",
    ),
    Case(
        "vllm's interpreter is a folder",
        by_python("env", ""),
        "vllm.python='HERE/env' is not a program",
    ),
    Case(
        "vllm's interpreter is no Python",
        by_python("python", "#!/bin/sh\necho words\nexit 0\n"),
        "vllm.python='HERE/python' is not a working Python interpreter (",
    ),
    Case(
        "vllm's interpreter fails",
        by_python("python", "#!/bin/sh\necho broken >&2\nexit 3\n"),
        "vllm.python='HERE/python' is not a working Python interpreter (broken)",
    ),
    Case(
        "vllm is not installed",
        by_vllm(version=None),
        "vllm.python='HERE/env/bin/python' has no vLLM (No module named 'vllm'): install it there, as in HERE/env/",
    ),
    Case(
        "vllm cannot be imported",
        by_vllm(behaviour={"broken": "libcudart.so.99: cannot open\nshared object"}),
        "vLLM of HERE/env/bin/python cannot be imported (ImportError: libcudart.so.99: cannot open shared object); "
        "its log: HERE/out/vllm.log",
    ),
    Case(
        "vllm does not take the model",
        by_vllm(behaviour={"refusal": "1 validation error\n  no such architecture"}),
        "vLLM does not take model (ValueError: 1 validation error no such architecture); its log: HERE/out/vllm.log",
    ),
    Case(
        "vllm dies",
        by_vllm(behaviour={"die_at": 0}),
        "vLLM's process ended (killed by signal 9); its last lines: one line | cudaErrorMemory: out of memory | last "
        "words; its log: HERE/out/vllm.log",
        1,
    ),
    Case(
        "vllm fails at a group",
        by_vllm(behaviour={"fail_at": 0}),
        "vLLM's process failed (RuntimeError: no blocks are left); its log: HERE/out/vllm.log",
        1,
    ),
    Case(
        "vllm with too short a context",
        by_vllm(options={"max_model_len": 9}),
        "vllm.max_model_len=9 is too little for prompts of up to ",
    ),
    Case(
        "vllm with too few GPUs",
        with_two_gpus,
        "vllm needs 1 processes x data_parallel_size 1 x tensor_parallel_size 3 = 3 GPUs, 2 are available",
    ),
    Case("vllm with a model without a config", by_vllm(drop("config.json")), "model cannot be loaded as a model ("),
]
