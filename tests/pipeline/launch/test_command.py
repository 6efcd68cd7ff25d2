"""How a stage is launched: its command, its profile and its environment."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import yaml

from data_schemas.locks import is_locked
from pipeline.launch import command_line
from pipeline.plan import Step
from pipeline.recipe.sections import Launch
from pipeline.report import terminal
from tests.patience import PATIENCE


def test_a_slot_of_gpus_is_all_that_its_step_sees(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    step = step_with(profile="zero2", num_processes=2, main_process_port=29500, devices=[0, 1, 2, 3])
    slot = command_line.slots(step.launch, 2)[1]
    values = command_line.environment(step, tmp_path / "step", tmp_path, slot)
    assert values["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert Path(values["TORCH_EXTENSIONS_DIR"]).name == ".torch_extensions-1"  # locked by another process
    command_line.launch_command(step, tmp_path, slot)
    assert yaml.safe_load((tmp_path / "accelerate.yaml").read_text())["main_process_port"] == 29501
    assert "CUDA_VISIBLE_DEVICES" not in command_line.environment(step_with(), tmp_path, tmp_path).keys() - os.environ


def step_with(**launch) -> Step:
    return Step("round-1.dpo", "dpo", 1, "dpo", {}, {}, Launch(**launch))


def test_one_process_is_plain_python(tmp_path):
    command = command_line.launch_command(step_with(device="cpu"), tmp_path)
    assert command == [
        sys.executable,
        str(command_line.ROOT / "stages" / "dpo.py"),
        "--config",
        f"{tmp_path}/config.yaml",
    ]


def test_several_processes_and_zero_go_through_accelerate_with_the_steps_own_profile(tmp_path):
    step = step_with(profile="zero3", num_processes=2, device="cpu", main_process_port=29555)
    command = command_line.launch_command(step, tmp_path)
    assert command[1:6] == [
        "-P",
        "-m",
        "engine.runtime.loopback_launch",
        "--config_file",
        f"{tmp_path}/accelerate.yaml",
    ]
    profile = yaml.safe_load((tmp_path / "accelerate.yaml").read_text())
    assert (profile["use_cpu"], profile["num_processes"], profile["main_process_port"]) == (True, 2, 29555)
    assert profile["deepspeed_config"]["zero_stage"] == 3
    offloaded = command_line.launch_command(step_with(profile="zero3_offload"), tmp_path)
    assert "engine.runtime.loopback_launch" in offloaded  # one GPU with its optimizer in the CPU's memory
    assert yaml.safe_load((tmp_path / "accelerate.yaml").read_text())["use_cpu"] is False


def test_the_environment_divides_the_cores_and_names_the_device_as_the_profile_expects(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    cpu = command_line.environment(step_with(profile="ddp", num_processes=3, device="cpu"), tmp_path, tmp_path)
    assert (cpu["OMP_NUM_THREADS"], cpu["ACCELERATE_USE_CPU"]) == ("2", "true")
    assert cpu["PYTHONPATH"].split(os.pathsep)[0] == str(command_line.ROOT)
    # With this variable accelerate drops DeepSpeed silently.
    zero = command_line.environment(step_with(profile="zero2", num_processes=2, device="cpu"), tmp_path, tmp_path)
    assert "ACCELERATE_USE_CPU" not in zero
    assert "ACCELERATE_USE_CPU" not in command_line.environment(step_with(), tmp_path, tmp_path)


def test_waiting_threads_give_their_core_away_unless_the_user_says_how_they_wait(tmp_path, monkeypatch):
    ways = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in ways:
        monkeypatch.delenv(name, raising=False)
    assert command_line.environment(step_with(), tmp_path, tmp_path)["GOMP_SPINCOUNT"] == "1000"
    for name, value in zip(ways, ("ACTIVE", "infinity"), strict=True):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            values = command_line.environment(step_with(), tmp_path, tmp_path)
        assert {way: values[way] for way in ways if way in values} == {name: value}


def test_every_profile_of_a_recipe_is_a_file_without_precision_accumulation_or_clipping():
    folder = command_line.ROOT / "configs" / "accelerate"
    assert {path.stem for path in folder.glob("*.yaml")} == set(get_args(Launch.model_fields["profile"].annotation))
    for path in folder.glob("*.yaml"):
        profile = yaml.safe_load(path.read_text())
        text = json.dumps(profile)
        assert not any(word in text for word in ("mixed_precision", "gradient_accumulation", "gradient_clipping"))
        if path.stem.startswith("zero"):
            assert profile["deepspeed_config"]["zero_stage"] == int(path.stem[4])
        if path.stem.startswith("zero3"):
            assert profile["deepspeed_config"]["zero3_save_16bit_model"] is True
            assert profile["deepspeed_config"]["zero3_init_flag"] is True


def test_accelerate_itself_accepts_every_profile(tmp_path):
    check = (
        "import sys; from accelerate.commands.launch import launch_command_parser, _validate_launch_command as v\n"
        "for path in sys.argv[1:]:\n"
        "    args, *_ = v(launch_command_parser().parse_args(['--config_file', path, 'x.py']))\n"
        "    print(path.rpartition('/')[2], bool(args.use_deepspeed), args.num_processes)\n"
    )
    paths = []
    for name in ("ddp", "zero1", "zero2", "zero3", "zero3_offload"):
        (tmp_path / name).mkdir()
        command_line.launch_command(step_with(profile=name, num_processes=2, device="cpu"), tmp_path / name)
        paths.append(str((tmp_path / name / "accelerate.yaml").rename(tmp_path / f"{name}.yaml")))
    done = subprocess.run([sys.executable, "-c", check, *paths], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines() == [
        "ddp.yaml False 2",
        "zero1.yaml True 2",
        "zero2.yaml True 2",
        "zero3.yaml True 2",
        "zero3_offload.yaml True 2",
    ], done.stderr


def test_a_lock_is_seen_from_outside(tmp_path):
    assert not is_locked(tmp_path)
    with (tmp_path / ".lock").open("w") as file:
        assert not is_locked(tmp_path)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_locked(tmp_path)


def test_numbers_and_intervals_are_shown_short():
    assert [terminal.number(value) for value in (None, 0.12345, 3, "gold")] == ["-", "0.123", "3", "gold"]


def test_a_killed_compilation_does_not_stop_later_zero_launches(tmp_path, monkeypatch):
    left = tmp_path / "run" / ".torch_extensions" / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    left.parent.mkdir(parents=True)
    left.touch()
    zero = step_with(profile="zero2", num_processes=2, device="cpu")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/the/users/own")
    assert (
        command_line.environment(zero, tmp_path / "run" / "step", tmp_path)["TORCH_EXTENSIONS_DIR"] == "/the/users/own"
    )
    assert left.exists()
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    environment = command_line.environment(zero, tmp_path / "run" / "step", tmp_path)
    assert environment["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "run" / ".torch_extensions") and not left.exists()
