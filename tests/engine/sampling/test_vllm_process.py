"""vLLM's process: its environment, devices and end. With a fake vLLM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_schemas.errors import ConfigError
from engine.sampling.vllm_copies import copy_settings
from tests.engine.sampling.vllm_prompts import PROMPTS
from tests.processes import alive, within
from tests.stage_runs import ROOT


def test_one_vllm_process_serves_all_groups_each_with_an_empty_cache_and_ends(draw, fake):
    draw("a")
    pids = {note["pid"] for note in fake.notes("generate")}
    assert len(pids) == len(fake.notes("load")) == 1
    assert [len(note["asked"]) for note in fake.notes("generate")] == [4, 4, 4, 3]
    assert len(fake.notes("reset")) == 4
    assert not alive(pids.pop())


def test_vllm_gets_none_of_our_environment(draw, fake, monkeypatch, tmp_path):
    ours = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "VIRTUAL_ENV": "x",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "here",
        "ACCELERATE_USE_CPU": "true",
        "TORCHELASTIC_RUN_ID": "1",
        "HF_HUB_OFFLINE": "0",
    }
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin")
    draw("a", [(PROMPTS[0], None)])
    (note,) = fake.notes("import")
    environment, path = note["environment"], note["path"]
    left = {name: environment[name] for name in ours if name in environment}
    assert left == {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    assert environment["PATH"] == f"{tmp_path / 'env' / 'bin'}:/usr/bin:/bin"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" and environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert not [entry for entry in path if str(ROOT) in entry or entry in ("", str(Path.cwd()))]
    assert "words of a library on stdout" in (tmp_path / "a" / "step" / "vllm.log").read_text()


@pytest.mark.parametrize(
    ("ranks", "options", "visible", "cards"),
    [
        # LOCAL_WORLD_SIZE, LOCAL_RANK; what each vLLM of this process sees
        ((1, 0), {}, "0,1", ["0"]),
        ((2, 1), {}, "4,6", ["6"]),
        ((1, 0), {"tensor_parallel_size": 2}, "4,5,6", ["4,5"]),
        ((1, 0), {"data_parallel_size": 3}, "4,5,6", ["4", "5", "6"]),
        ((2, 1), {"data_parallel_size": 2, "tensor_parallel_size": 2}, "0,1,2,3,4,5,6,7", ["4,5", "6,7"]),
    ],
)
def test_each_copy_has_its_own_gpus(ranks, options, visible, cards, tmp_path, monkeypatch):
    for name, value in zip(("LOCAL_WORLD_SIZE", "LOCAL_RANK", "RANK"), (*ranks, ranks[1]), strict=True):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    copies = copy_settings(options, str(tmp_path), use_cpu=False)
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env, _ in copies] == cards
    assert all(own == {"tensor_parallel_size": options.get("tensor_parallel_size", 1)} for own, _, _ in copies)
    assert len({log for _, _, log in copies}) == len(copies)


def test_more_gpus_than_there_are_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError) as error:
        copy_settings({"tensor_parallel_size": 2}, str(tmp_path), use_cpu=False)
    assert str(error.value) == (
        "vllm needs 2 processes x data_parallel_size 1 x tensor_parallel_size 2 = 4 GPUs, 3 are available; "
        "lower one of them"
    )


def test_on_a_cpu_the_cores_and_the_memory_are_divided(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 5, 7})
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    copies = copy_settings({"data_parallel_size": 2}, str(tmp_path), use_cpu=True)
    assert [env["VLLM_CPU_OMP_THREADS_BIND"] for _, env, _ in copies] == ["2,3", "5,7"]
    assert [env["OMP_NUM_THREADS"] for _, env, _ in copies] == ["2", "2"]
    assert [own["gpu_memory_utilization"] for own, _, _ in copies] == [0.2, 0.2]
    (sharded,) = copy_settings({"tensor_parallel_size": 2, "gpu_memory_utilization": 0.3}, str(tmp_path), use_cpu=True)
    assert sharded[1]["VLLM_CPU_OMP_THREADS_BIND"] == "2,3|5,7" and sharded[0]["gpu_memory_utilization"] == 0.3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4})
    copies = copy_settings({"data_parallel_size": 2}, str(tmp_path), use_cpu=True)
    assert [env["VLLM_CPU_OMP_THREADS_BIND"] for _, env, _ in copies] == ["4", "4"]
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "1-3")
    ((_, env, _),) = copy_settings({}, str(tmp_path), use_cpu=True)
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "1-3"


def test_on_a_cpu_compiled_code_is_cached_where_it_can_be_loaded(tmp_path, monkeypatch):
    def option(*, use_cpu):
        ((_, env, _),) = copy_settings({}, str(tmp_path), use_cpu=use_cpu)
        return env.get("VLLM_USE_AOT_COMPILE")

    monkeypatch.delenv("VLLM_USE_AOT_COMPILE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert (option(use_cpu=True), option(use_cpu=False)) == ("0", None)
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "1")  # set by the user
    assert option(use_cpu=True) == "1"


# Draws with the fake vLLM. SIGKILL ends the process without a message.
DRAWS = """
import sys
from pathlib import Path
from data_schemas.rows import Message, Prompt
from engine.runtime.arguments import GenerationArguments
from engine.sampling.answers import Policy, SamplingSettings
from engine.sampling.sampler import sample_in_turn
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker

folder, model, python = sys.argv[1:]
stage = Stage("test", Path(folder), {}, Tracker(Path(folder), active=False), is_main=True)
prompts = [(Prompt(prompt=[Message(role="user", content=f"q{number}")]), None) for number in range(8)]
arguments = GenerationArguments(max_new_tokens=3, generation_batch_size=2, engine="vllm", vllm={"python": python},
                                use_cpu=True)
settings = SamplingSettings.of(arguments, purpose="p")
sample_in_turn(stage, [Policy(model, "policy")], prompts, settings, num_answers=2)
"""


@pytest.mark.parametrize("behaviour", [{"group_waits_for": "never"}, {"load_seconds": 600}])
def test_vllm_ends_when_the_stage_is_killed(behaviour, fake, tiny_model, tmp_path):
    fake.behave(**behaviour)
    command = [sys.executable, "-c", DRAWS, str(tmp_path), str(tiny_model), fake.python]
    stage = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    event = "generate" if "group_waits_for" in behaviour else "load"
    try:
        assert within(120, lambda: fake.notes(event) or stage.poll() is not None)
        pid = fake.notes(event)[0]["pid"]
        assert alive(pid)
    finally:
        stage.kill()
        stage.wait()
    assert within(60, lambda: not alive(pid))
