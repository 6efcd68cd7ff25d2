"""How a stage is started: its command, its environment, and its GPUs or cores."""

import os
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from data_schemas.progress import LAUNCHED
from pipeline.plan import Step
from pipeline.recipe.sections import Launch

ROOT = Path(__file__).absolute().parents[2]  # holds stages/ and configs/, in the source tree and where it is installed
STEP_FOLDER = "ALIGNLOOP_STEP_FOLDER"  # a variable of every process that a step starts, by which they are found
OF_ONE_STEP = (STEP_FOLDER, LAUNCHED)  # what tells the environment of a step from that of another of the same kind


@dataclass(frozen=True)
class Slot:
    """The share of the machine of one of several steps that run at the same time."""

    number: int = 0
    devices: tuple[int, ...] | None = None  # GPUs, or on the CPU cores; None: all of them


def slots(launch: Launch, num_steps: int) -> list[Slot]:
    """One slot for each step that can run at the same time; a single slot where `launch.devices` is not set.

    A step gets `num_processes` GPUs. Cores are divided evenly, since a process may use several.
    """
    if launch.devices is None:
        return [Slot()]
    count = max(1, min(num_steps, len(launch.devices) // launch.num_processes))
    share = launch.num_processes if launch.device == "gpu" else len(launch.devices) // count
    return [Slot(number, tuple(launch.devices[number * share : (number + 1) * share])) for number in range(count)]


ALONE = Slot()


def launch_command(step: Step, folder: Path, slot: Slot = ALONE) -> list[str]:
    """Plain Python for one process. For several processes and for ZeRO `accelerate launch`, with a copy of the profile
    in the step's folder. A wrapper command comes first; with several machines it starts accelerate on each.
    """
    launch = step.launch
    script = [str(ROOT / "stages" / f"{step.stage}.py"), "--config", str(folder / "config.yaml")]
    # -P: a folder pipeline/ in the working directory would be imported in place of ours.
    ours = [sys.executable, "-P", "-m"]
    wrapper = [*ours, "pipeline.launch.wrapper", *shlex.split(launch.wrapper)] if launch.wrapper else []
    if _is_one_process(launch):
        return [*wrapper, sys.executable, *script]
    profile = yaml.safe_load((ROOT / "configs" / "accelerate" / f"{launch.profile}.yaml").read_text())
    profile |= {
        "num_processes": launch.num_processes,
        "num_machines": launch.num_machines,
        "main_process_port": launch.main_process_port + slot.number if launch.main_process_port else _free_port(),
        "use_cpu": launch.device == "cpu",
    }
    if launch.num_machines > 1:
        profile["main_process_ip"] = launch.main_process_ip
    copy = folder / "accelerate.yaml"
    copy.write_text(yaml.safe_dump(profile, sort_keys=False))
    if launch.num_machines > 1:
        return [*wrapper, *ours, "pipeline.launch.node", str(copy), *script]
    return [*wrapper, *ours, "engine.runtime.loopback_launch", "--config_file", str(copy), *script]


def _is_one_process(launch: Launch) -> bool:
    return launch.num_processes == 1 and launch.profile in ("single", "ddp")


def num_threads(processes: int, cores: Sequence[int] | None = None) -> int:
    """Threads of each process: the given cores, or all cores available, divided by the number of processes."""
    return max(1, len(cores or available_cores()) // processes)


def _loopback() -> str | None:
    """The name of the loopback interface; `lo` on Linux."""
    addresses = psutil.net_if_addrs()
    return next((name for name, listed in addresses.items() if any(a.address == "127.0.0.1" for a in listed)), None)


def _free_port() -> int:
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return connection.getsockname()[1]


def environment(step: Step, folder: Path, function_folder: Path, slot: Slot = ALONE) -> dict[str, str]:
    """The environment of a stage: our packages come first, and threads and device are set."""
    processes = step.launch.num_processes // step.launch.num_machines
    path = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    inherited = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    values = inherited | {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",  # of console.txt, whatever the terminal has
        "OMP_NUM_THREADS": str(num_threads(processes, cores_of(step, slot))),
        "TOKENIZERS_PARALLELISM": "false",
        "ALIGNLOOP_RUNNER_PID": str(os.getpid()),
        "ALIGNLOOP_RUNNER_HOST": socket.gethostname(),
        "ALIGNLOOP_FUNCTION_PATH": str(function_folder),
        STEP_FOLDER: str(folder),
        LAUNCHED: str(time.monotonic()),
    }
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & values.keys():
        # A thread that waits for the others gives its core away soon: where another program holds a core, they would
        # otherwise spin for most of the time (measured: a thirteenth of the steps a second; alone, no difference).
        values["GOMP_SPINCOUNT"] = "1000"
    if step.launch.num_machines == 1 and not _is_one_process(step.launch) and (loopback := _loopback()):
        # The processes of one machine are reachable from no other. A user's own choice stays.
        values = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback} | values
    if slot.devices is not None and step.launch.device == "gpu":
        values["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, slot.devices))
    # Not with ZeRO: accelerate would then silently ignore DeepSpeed. There `use_cpu` in the stage's config is enough.
    if step.launch.device == "cpu" and not step.launch.profile.startswith("zero"):
        values["ACCELERATE_USE_CPU"] = "true"
    if step.launch.profile.startswith("zero") and "TORCH_EXTENSIONS_DIR" not in values:
        # DeepSpeed compiles into a folder with a lock file, which a killed process leaves behind; every later launch
        # would then wait for ever. In a folder of this run only one step compiles at a time, so such a lock is stale.
        compiled = folder.parent / f".torch_extensions{f'-{slot.number}' if slot.number else ''}"
        for lock in compiled.rglob("lock"):
            lock.unlink(missing_ok=True)
        values["TORCH_EXTENSIONS_DIR"] = str(compiled)
    return values


def available_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cores_of(step: Step, slot: Slot) -> tuple[int, ...] | None:
    """The cores that the step is restricted to; None: all of them."""
    return slot.devices if step.launch.device == "cpu" else None


def can_be_warm(launch: Launch) -> bool:
    """Whether a step may run in a fork of a warm Python (pipeline/launch/warm.py)."""
    return launch.warm and launch.device == "cpu" and _is_one_process(launch) and launch.wrapper is None
