"""A measurement: a side in a process of its own, with its time and its memory, kept as a line of a file; and ratios."""

import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).absolute().parent.parent
MIB = 2**20
Values = dict[str, Any]
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "neon", "asimd", "sve")


@dataclass(frozen=True)
class Ratio:
    """Of several pairs of runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> "Ratio":
        """Ours to theirs, pair by pair: what the machine did meanwhile is in both."""
        each = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        return cls(statistics.median(each), min(each), max(each))

    def __str__(self) -> str:
        return f"{self.median:.2f}× [{self.low:.2f}, {self.high:.2f}]"


def in_turn(sides: Sequence[str], pair: int) -> list[str]:
    """A B, then B A, then A B: whoever comes first in one pair comes last in the next."""
    return list(sides if pair % 2 == 0 else reversed(sides))


class Measurements:
    """Lines of a file, one a measurement: what stands there is not measured again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "measurements.jsonl"
        self.done: dict[tuple[str, str, int], Values] = {}
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # the last one, of a bench that was killed
                row = json.loads(line)
                self.done[row["work"], row["side"], row["pair"]] = row["values"]

    def of(self, work: str, side: str) -> list[Values]:
        """By pair."""
        found = sorted((pair, values) for (name, who, pair), values in self.done.items() if (name, who) == (work, side))
        return [values for _, values in found]

    def get(self, work: str, side: str, pair: int, measure: Callable[[], Values]) -> Values:
        key = (work, side, pair)
        if key not in self.done:
            values = measure()
            self.done[key] = values
            row = {"work": work, "side": side, "pair": pair, "values": values}
            before = self.path.read_bytes() if self.path.exists() else b""
            with self.path.open("ab") as file:
                if before and not before.endswith(b"\n"):  # a line that was cut off
                    file.write(b"\n")
                file.write(json.dumps(row).encode() + b"\n")
        return self.done[key]


def machine() -> str:
    """Cores, memory and what the cores can do; no names."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    words = next((line.split() for line in text.splitlines() if line.startswith(("flags", "Features"))), [])
    flags = [flag for flag in FLAGS if flag in words]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({platform.machine()}; {', '.join(flags) or 'no known flags'}), {memory:.0f} GiB of memory"


def environment() -> dict[str, str]:
    """Of every side: all cores for one process, no network, no progress bars, and its end with ours."""
    cores = str(len(os.sched_getaffinity(0)))
    return os.environ | {
        "OMP_NUM_THREADS": cores,
        "MKL_NUM_THREADS": cores,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "ALIGNLOOP_RUNNER_PID": str(os.getpid()),
    }


def run(words: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Values:
    """Runs a program to its end: the last JSON object it prints, and `peak_mib`, the memory of it and all it started.

    Exits with the end of its log where it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    output = log.with_suffix(".out")
    with log.open("wb") as errors, output.open("wb") as printed:
        process = subprocess.Popen(words, cwd=ROOT, env=dict(env or environment()), stdout=printed, stderr=errors,
                                   stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        code, peak = _watch(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.startswith("{")]
    if code or not lines:  # what a library prints at its end, as vLLM does, is none of it
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        sys.exit(f"{tail}\nerror: {' '.join(words[:5])} … ended with exit code {code}; all it said is in {log}")
    return json.loads(lines[-1]) | {"peak_mib": round(peak / MIB)}


def _watch(process: "subprocess.Popen[bytes]") -> tuple[int, int]:
    """Exit code and peak of the resident memory of the process and its descendants together, in bytes."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(0.1)
    return process.returncode, peak


def _resident(pid: int) -> int:
    """Of a process alone the most that it ever had: the kernel's own count, since it runs what it runs now."""
    with contextlib.suppress(psutil.Error, OSError):
        root = psutil.Process(pid)
        others = root.children(recursive=True)
        if not others:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
        total = root.memory_info().rss
        for process in others:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total
    return 0
