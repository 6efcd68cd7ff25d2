"""Measures training on a GPU beside TRL, and checks it against the CPU, in one command without downloads.

    python -m benchmarks.speed gpu                  # make bench-gpu; docs/benchmarks-gpu.md
    python -m benchmarks.speed gpu --only losses    # parts whose names begin so

Each part (gpu_parts.py) is a separate process with a time limit, and a row of the page: a part that fails is a row with
its error, and the next part goes on. The page and gpu.json beside it are written after each part, so a benchmark that
is stopped leaves what was measured. Finished parts are kept for the same code, versions and device: the same command
again measures those that are missing. Without a GPU the parts run with tiny models, as a test.
"""

import argparse
import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.speed import gpu_page, measure
from benchmarks.speed.gpu_parts import GPU, TINY, Part, Scale, parts_of
from benchmarks.speed.measure import ROOT, Program, Values
from data_schemas.files import hash_files, read_json, write_atomically

LIBRARIES = ("torch", "triton", "transformers", "trl", "accelerate", "flash_attn", "liger_kernel")
CODE = ("engine/**/*.py", "stages/*.py", "data_schemas/*.py", "benchmarks/speed/*.py")
KEPT = "gpu.json"
START_SECONDS = 60  # a part is not started with less time left than this or its limit


class GPUBench:
    """One benchmark of one device and one state of the code, in `root`."""

    def __init__(self, root: Path, docs: Path, scale: Scale, *, minutes: float, command: str) -> None:
        self.root, self.docs, self.scale = root, docs, scale
        self.deadline, self.command = time.monotonic() + minutes * 60, command
        self.page: Values = {"versions": versions(), "code": _code(), "parts": {}}

    def run(self, only: list[str]) -> None:
        """Runs the parts that are wanted and not finished yet."""
        self.root.mkdir(parents=True, exist_ok=True)
        device = "cuda" if self.scale is GPU else "cpu"
        prepare = Part(
            "prepare",
            "prepare",
            120,
            {
                "root": str(self.root / "inputs"),
                "models": list(self.scale.models),
                "rows": dict(self.scale.sets),
                "square": self.scale.square,
                "dtype": "bfloat16" if device == "cuda" else "float32",
            },
        )
        parts = parts_of(self.scale)
        wanted = [part for part in parts if not only or any(part.name.startswith(name) for name in only)]
        values = self.measure(Program(self.words(prepare), self.log(prepare)), prepare, prepare.limit_s)
        if "failed" in values:
            self.page["parts"]["prepare"] = values
            self.write(parts)
            return
        self.page |= {"facts": values["facts"], "peak_measured": values["peak_measured"], "about": values["about"]}
        self.keep_finished()
        self.write(parts)
        missing = [part for part in wanted if "failed" in self.page["parts"].get(part.name, {"failed": ""})]
        for part, program in self.started_ahead(missing):
            left = self.deadline - time.monotonic()
            if left < min(START_SECONDS, part.limit_s):
                self.page["parts"].setdefault(part.name, {"failed": "not measured: the time was over"})
                continue
            self.page["parts"][part.name] = self.measure(program, part, min(left, part.limit_s))
            self.write(parts)
        self.write(parts)

    def started_ahead(self, parts: list[Part]) -> Iterator[tuple[Part, Program]]:
        """Each part with its process, which imports its libraries while the part before it is measured."""
        programs: list[Program] = []
        try:
            for index, part in enumerate(parts):
                for later in parts[index + len(programs) : index + 2]:
                    programs.append(Program(self.words(later), self.log(later), self.environment()))
                program = programs.pop(0)
                yield part, program
                program.end()
        finally:
            for program in programs:
                program.end()

    def measure(self, program: Program, part: Part, seconds: float) -> Values:
        """The result of a part, or what it failed with."""
        started = time.monotonic()
        shutil.rmtree(self.work(part), ignore_errors=True)
        self.work(part).mkdir(parents=True)
        try:
            values = program.measure(is_last=True, seconds=seconds)
        except TimeoutError as error:
            values = {"failed": str(error)}
        except SystemExit:
            values = {"failed": reason_in(self.log(part))}
        finally:
            program.end()
            shutil.rmtree(self.work(part), ignore_errors=True)
        values["part_seconds"] = round(time.monotonic() - started, 1)
        shown = values.get("failed") or "measured"
        print(f"{part.name:<40} {values['part_seconds']:6.1f} s  {shown}", flush=True)
        return values

    def words(self, part: Part) -> list[str]:
        job = {**part.job, "folder": str(self.work(part)), "facts": str(self.root / "inputs" / "facts.json")}
        inputs, model, rows = self.root / "inputs", part.job.get("model", self.scale.models[-1]), part.job.get("set")
        job |= {"base": str(inputs / model), "model": model}
        job |= {"dtype": part.job.get("dtype", "bfloat16"), "weights": "float32", "keys": {}}
        if rows:
            kind = part.job.get("kind")
            name = {"train": "dialogs.jsonl" if kind == "sft" else "pairs.jsonl", "attention": "pairs.jsonl"}
            job["rows"] = str(inputs / rows / name.get(part.function, ""))
        if part.function == "train":
            job["weights"] = "bfloat16"
            job["keys"] = {"bf16": True, "use_cpu": self.scale is not GPU, "optim": "adamw_torch_fused"}
        return [sys.executable, "-m", "benchmarks.speed.gpu_sides", part.function, json.dumps(job)]

    def environment(self) -> dict[str, str]:
        # TRL would otherwise read the reference log-probs that an earlier part has cached. Segments that grow waste
        # less memory where every batch has another length.
        cache = str(self.root / "work" / "datasets")
        return measure.environment() | {"HF_DATASETS_CACHE": cache, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}

    def work(self, part: Part) -> Path:
        return self.root / "work" / _file_name(part)

    def log(self, part: Part) -> Path:
        return self.root / "logs" / f"{_file_name(part)}.log"

    def keep_finished(self) -> None:
        """Takes over the finished parts of an earlier run with the same code, versions and device."""
        before: Any = read_json(self.root / KEPT) or {}
        if all(before.get(name) == self.page[name] for name in ("versions", "code", "facts", "about")):
            self.page["parts"] = {
                name: values for name, values in before["parts"].items() if "failed" not in values
            } | self.page["parts"]

    def write(self, parts: list[Part]) -> None:
        """Writes the page and what it was written from, each at once or not at all."""
        self.page["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
        self.page["command"] = self.command
        write_atomically(self.root / KEPT, json.dumps(self.page))
        self.docs.mkdir(parents=True, exist_ok=True)
        write_atomically(self.docs / "benchmarks-gpu.json", json.dumps(self.page, indent=1) + "\n")
        write_atomically(self.docs / "benchmarks-gpu.md", gpu_page.text_of(self.page, parts, self.scale))


def versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def reason_in(log: Path) -> str:
    """The last line of a log that names an error, without the paths of this machine."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(":")[0] or line.startswith("error:")]
    text = (named or lines or ["it ended without a message"])[-1]
    return text.replace(str(ROOT), ".").replace(str(Path.home()), "~")[:300]


def _code() -> str:
    files = sorted(path for pattern in CODE for path in ROOT.glob(pattern))
    return hashlib.sha256(json.dumps(hash_files(files)).encode()).hexdigest()[:12]


def _file_name(part: Part) -> str:
    return part.name.replace(" ", "-").replace(",", "")


def has_gpu() -> bool:
    """Asked in a separate process, so that this one holds no memory of the device."""
    import subprocess

    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def main(arguments: argparse.Namespace) -> None:
    root = Path(arguments.folder).absolute() / "gpu"
    scale = GPU if has_gpu() else TINY
    if scale is TINY:
        print("no GPU: tiny models on the CPU, whose numbers mean nothing", flush=True)
        if arguments.docs == ROOT / "docs":
            arguments.docs = root  # the page of a CPU is not worth keeping
    command = " ".join(["python -m benchmarks.speed gpu", *(["--only", *arguments.only] if arguments.only else [])])
    GPUBench(root, arguments.docs, scale, minutes=arguments.minutes, command=command).run(arguments.only)
    print(f"written: {arguments.docs / 'benchmarks-gpu.md'}")
