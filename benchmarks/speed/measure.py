"""Runs a side in a separate process, measures its time and memory, keeps each result as a line of a file; ratios."""

import contextlib
import json
import math
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

ROOT = Path(__file__).absolute().parents[2]
MIB = 2**20
Values = dict[str, Any]
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "neon", "asimd", "sve")


@dataclass(frozen=True)
class Ratio:
    """Ratio of our rate to a peer's over several pairs of runs: median, smallest and largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> "Ratio":
        """From the rates of ours and of the peer, pair by pair: what slows the machine down affects both of a pair."""
        each = [our_rate / their_rate for our_rate, their_rate in zip(ours, theirs, strict=True)]
        return cls(statistics.median(each), min(each), max(each))

    @classmethod
    def in_turn(cls, ours: Sequence[float], theirs: Sequence[float]) -> "Ratio":
        """From runs that alternated, ours first: every two neighbouring runs are a pair."""
        pairs = range(num_pairs(ours, theirs))
        return cls.of([ours[(pair + 1) // 2] for pair in pairs], [theirs[pair // 2] for pair in pairs])

    def __str__(self) -> str:
        return f"{self.median:.2f}× [{self.low:.2f}, {self.high:.2f}]"


def num_pairs(ours: Sequence[Any], theirs: Sequence[Any]) -> int:
    """Number of pairs of neighbouring runs, ours first: three if both ran twice, none if one side did not run."""
    return max(0, min(2 * len(ours) - 1, 2 * len(theirs)))


class Measurements:
    """The measurements in a file, one a line. What is recorded there is not measured again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "measurements.jsonl"
        self.done: dict[tuple[str, str, int], Values] = {}  # by workload, side and number of the run
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # the last line, if the benchmark was killed
                row = json.loads(line)
                self.done[row["work"], row["side"], row["run"]] = row["values"]

    def of(self, workload: str, side: str) -> list[Values]:
        """The results of a side, in the order of its runs."""
        runs = sorted(run for name, other_side, run in self.done if (name, other_side) == (workload, side))
        return [self.done[workload, side, run] for run in runs]

    def get(self, workload: str, side: str, run: int, measure: Callable[[], Values]) -> Values:
        """The recorded result, or the one that `measure` returns, which is recorded."""
        key = (workload, side, run)
        if key not in self.done:
            values = measure()
            self.done[key] = values
            row = {"work": workload, "side": side, "run": run, "values": values}
            before = self.path.read_bytes() if self.path.exists() else b""
            with self.path.open("ab") as file:
                if before and not before.endswith(b"\n"):  # the last line is truncated
                    file.write(b"\n")
                file.write(json.dumps(row).encode() + b"\n")
        return self.done[key]


def machine() -> str:
    """Number of cores, their instruction sets, and memory; no names."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    words = next((line.split() for line in text.splitlines() if line.startswith(("flags", "Features"))), [])
    flags = [flag for flag in FLAGS if flag in words]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({platform.machine()}; {', '.join(flags) or 'no known flags'}), {memory:.0f} GiB of memory"


def environment() -> dict[str, str]:
    """Environment of every side: all cores for one process, no network, no progress bars, and it ends with us."""
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
    """Runs a program to its end.

    Returns the last JSON object that it prints, with `peak_mib`: the most memory of the program and all that it
    started, in MiB. Exits with the end of its log if it fails.
    """
    program = Program(words, log, env)
    try:
        return program.measure(is_last=True)
    finally:
        program.end()


class Program:
    """A program to be measured, in a separate session. It prints a JSON object for each line of its input."""

    def __init__(self, words: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.words, self.log, self.output = words, log, log.with_suffix(".out")
        with log.open("wb") as errors, self.output.open("wb") as printed:
            self.process = subprocess.Popen(
                words,
                cwd=ROOT,
                env=dict(env or environment()),
                stdout=printed,
                stderr=errors,
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def measure(self, *, is_last: bool = False, seconds: float = math.inf) -> Values:
        """Sends one line, and waits for the answer to it (`is_last`: for the program's end).

        Raises TimeoutError after so many seconds; the program still runs then.

        Returns the last JSON object that was printed, with `peak_mib`: the most memory of the program and all that it
        started, in MiB. It is sampled before the line is sent and after the answer too, so that even a program that
        answers at once has been measured.
        """
        assert self.process.stdin is not None
        num_before, deadline = len(self.results()), time.monotonic() + seconds
        try:
            peak = _resident(self.process.pid)
            with contextlib.suppress(BrokenPipeError):  # it has ended, and the error below gives its exit code
                self.process.stdin.write(b"\n")
                self.process.stdin.flush()
                if is_last:
                    self.process.stdin.close()
            while self.process.poll() is None and (is_last or len(self.results()) == num_before):
                peak = max(peak, _resident(self.process.pid))
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not complete after {seconds:.0f} s")
                time.sleep(0.1)
            peak = max(peak, _resident(self.process.pid))
        except KeyboardInterrupt:
            self.end()
            raise
        results, code = self.results(), self.process.poll()
        if code or len(results) == num_before:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            words = " ".join(self.words[:5])
            sys.exit(f"{tail}\nerror: {words} … ended with exit code {code}; its complete output is in {self.log}")
        return json.loads(results[-1]) | {"peak_mib": round(peak / MIB)}

    def results(self) -> list[str]:
        """The complete lines of JSON that it has printed, without what a library such as vLLM prints between them."""
        lines = self.output.read_text(errors="replace").splitlines(keepends=True)
        return [line for line in lines if line.startswith("{") and line.endswith("\n")]

    def end(self, *, patience: float = 0.0) -> None:
        """Waits `patience` seconds for the program to end itself, then kills it with all that it has started."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _resident(pid: int) -> int:
    """Resident memory of a process and its children, in bytes.

    For a process without children it is the most that the process has had since it began, as counted by the kernel.
    """
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
