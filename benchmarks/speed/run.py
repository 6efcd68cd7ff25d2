"""Measures how fast a step is compared with its peers, on the same machine with the same model and rows, as ratios.

    python -m benchmarks.speed table --base_model DIR --pairs FILE [--instructions FILE …] [--vllm_python PYTHON]
    python -m benchmarks.speed grid --base_model DIR        # cost against the size of model, rows and batch
    python -m benchmarks.speed report                       # docs/benchmarks.md and its plots, from kept measurements
    python -m benchmarks.speed gpu                          # docs/benchmarks-gpu.md; see gpu.py

Every side runs in a separate process (benchmarks/speed/sides.py), and the sides alternate: A B A B …. A ratio compares
two neighbouring runs, and the median of --num_pairs ratios counts. Measurements are kept in runs/bench, in a folder
named by a hash of the model, the rows, the settings, the versions and our code: a benchmark that was killed is resumed,
and changed code is measured again.
"""

import argparse
import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed import measure
from benchmarks.speed.flops import faster
from benchmarks.speed.measure import ROOT, Measurements, Program, Values
from benchmarks.speed.workloads import (
    BATCHES,
    LENGTHS,
    QUICK,
    SIZES,
    VLLM,
    WORKLOADS,
    Settings,
    Workload,
    cell,
)
from data_schemas.artifact import RECORD
from data_schemas.errors import ConfigError, UserError
from data_schemas.files import hash_files, read_json, write_atomically

LIBRARIES = ("torch", "transformers", "trl", "accelerate", "datasets")
CODE = ("engine/**/*.py", "stages/*.py", "data_schemas/*.py")
SIDES_CODE = ("sides", "instruments", "samples", "flops", "vllm_side")
VLLM_SECONDS_TO_END = 60


class Bench:
    """The benchmark of one base model, one set of rows and one state of the code."""

    def __init__(self, arguments: argparse.Namespace, settings: Settings) -> None:
        self.arguments, self.settings = arguments, settings
        source = Path(arguments.base_model)
        if not (source / "config.json").is_file():
            raise ConfigError(f"{source} is not a model folder (no config.json); give a model folder as --base_model")
        self.files = [Path(path) for path in [arguments.pairs, *arguments.instructions] if path]
        for path in self.files:
            if not path.is_file():
                raise ConfigError(f"{path} does not exist; give a file of rows")
        if arguments.vllm_python and not Path(arguments.vllm_python).is_file():
            raise ConfigError(f"{arguments.vllm_python} does not exist; give the Python of vLLM's environment")
        root = Path(arguments.folder).absolute()
        model = _digest(hash_files(sorted(path for path in source.iterdir() if path.is_file())))
        code = hash_files(
            sorted(
                [
                    *(path for pattern in CODE for path in ROOT.glob(pattern)),
                    *(ROOT / "benchmarks" / "speed" / f"{name}.py" for name in SIDES_CODE),
                ]
            )
        )
        self.versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
        values = {name: value for name, value in settings.__dict__.items() if name != "num_pairs"}
        parts = [model, hash_files(self.files), values, self.versions, code, arguments.part]
        self.folder = root / f"{arguments.part}-{_digest(parts)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.base = root / f"base-{model}" / "model"
        self.measured = Measurements(self.folder)
        self.vllm: Program | None = None
        self.prepare_base(source)
        about = {
            "settings": settings.__dict__,
            "versions": self.versions,
            "is_quick": arguments.quick,
            "machine": measure.machine(),
        }
        write_atomically(self.folder / "about.json", json.dumps(about))
        write_atomically(root / f"{arguments.part}.json", json.dumps({"folder": self.folder.name}))

    def prepare_base(self, source: Path) -> None:
        """Writes the model with the separate pad token that our stages need.

        All sides get the same weights, tokenizer and template.
        """
        folder = self.base.parent
        if (folder / RECORD).exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        words = [
            sys.executable,
            "stages/prepare_base.py",
            "--model_name_or_path",
            str(source),
            "--dtype",
            "float32",
            "--use_cpu",
            "true",
            "--report_to",
            "none",
            "--output_dir",
            str(folder),
        ]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=measure.environment(), check=False)
        if done.returncode:
            raise ConfigError(f"{source} can't be prepared: {done.stderr.strip().splitlines()[-1]}")

    def job(self, **keys: object) -> Values:
        return {**self.settings.__dict__, "base": str(self.base), "folder": str(self.folder / "work"), **keys}

    def measure(self, workload: str, side: str, job: Values, *, run: int = 0) -> Values:
        """Measures a side in a separate process, in a folder that is empty before and deleted afterwards.

        Only vLLM keeps its process, because its start takes minutes.
        """

        def measure_now() -> Values:
            shutil.rmtree(self.folder / "work", ignore_errors=True)
            (self.folder / "work").mkdir()
            # Otherwise TRL would take the reference log-probs that an earlier run has cached.
            env = measure.environment() | {"HF_DATASETS_CACHE": str(self.folder / "work" / "datasets")}
            log, started = self.folder / f"{workload}-{side}.log", time.monotonic()
            if side == VLLM:
                words = [self.arguments.vllm_python, "benchmarks/speed/vllm_side.py", json.dumps(job)]
                self.vllm = self.vllm or Program(words, log, env)
                values = self.vllm.measure()
            else:
                values = measure.run([sys.executable, "-m", "benchmarks.speed.sides", side, json.dumps(job)], log, env)
            shutil.rmtree(self.folder / "work", ignore_errors=True)
            took = time.monotonic() - started
            seconds = f"{values['seconds']:7.1f} s" if "seconds" in values else " " * 9
            print(
                f"{workload:<12} {side:<20} {seconds}  {values['peak_mib']:6} MiB  ({took:.0f} s in total)", flush=True
            )
            return values

        return self.measured.get(workload, side, run, measure_now)

    def table(self, only: Sequence[str]) -> None:
        """Measures all workloads and the demo, or only those that are named."""
        sample = self.job(
            pairs=str(self.files[0].absolute()),
            folder=str(self.folder),
            instructions=[str(path.absolute()) for path in self.files[1:]],
        )
        if not (self.folder / "prompt_ids.json").exists():
            self.measured.done.pop(("sample", "prepare", 0), None)
        self.measure("sample", "prepare", sample)
        rows = {name: str(self.folder / f"{name}.jsonl") for name in ("pairs", "grouped", "dialogs", "prompts")}
        arithmetic = self.measure("arithmetic", "arithmetic", self.job(rows=rows["pairs"]))
        sampling = {"dtype": faster(arithmetic["generation"]), "prompt_ids": str(self.folder / "prompt_ids.json")}
        try:
            for workload in WORKLOADS:
                if not only or workload.name in only:
                    more = sampling if workload.name == "sampling" else {}
                    self.compare(workload, self.job(rows=rows[workload.rows], **more))
        finally:
            if self.vllm is not None:
                self.vllm.end(patience=VLLM_SECONDS_TO_END)
        if not only or "demo" in only:
            self.measured.get("demo", "demo", 0, self.demo)

    def compare(self, workload: Workload, job: Values) -> None:
        """Alternates between our side and all others. Each turn after the first adds one pair of neighbouring runs."""
        sides = [side for side in workload.sides if side != VLLM or self.arguments.vllm_python]
        for turn in range(self.settings.num_pairs + 1):
            for side in sides[1:] if turn % 2 else sides[:1]:
                self.measure(workload.name, side, job | {"run": turn // 2}, run=turn // 2)

    def demo(self) -> Values:
        """Seconds by stage and part of a finished run of configs/demo.yaml, or of a new run."""
        if self.arguments.demo and (finished := loop_time(Path(self.arguments.demo))):
            return finished
        folder = self.folder / "demo"
        shutil.rmtree(folder, ignore_errors=True)
        words = [
            sys.executable,
            "-m",
            "pipeline.cli",
            "run",
            "configs/demo.yaml",
            "--set",
            "name=demo",
            "--set",
            f"output_dir={self.folder}",
        ]
        started = time.monotonic()
        subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        wall = time.monotonic() - started
        values = loop_time(folder)
        assert values is not None
        print(f"{'demo':<12} {'':<20} {wall:7.1f} s", flush=True)
        return values | {"wall": wall}

    def grid(self) -> None:
        """Measures both sides for every model size, length and batch, with as many steps as `min_words` needs."""
        count = 1 if self.arguments.quick else None
        for size, (hidden, inner, layers, heads, key_value_heads) in list(SIZES.items())[:count]:
            sizes = {
                "hidden_size": hidden,
                "intermediate_size": inner,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": key_value_heads,
            }
            model = self.folder / f"model-{size}"
            if not (model / "tokenizer_config.json").exists():
                self.measured.done.pop((f"model {size}", "random-model", 0), None)
            self.measure(f"model {size}", "random-model", self.job(folder=str(model), sizes=sizes))
            for length in LENGTHS[:count]:
                for batch in BATCHES[:count]:
                    folder = self.folder / f"rows-{length}-{batch}"
                    steps = max(1, self.settings.min_words // (length * batch))
                    rows = self.job(folder=str(folder), length=length, number=batch * steps)
                    if not (folder / "held_out.jsonl").exists():
                        self.measured.done.pop((f"rows {length} {batch}", "grid-rows", 0), None)
                    self.measure(f"rows {length} {batch}", "grid-rows", rows)
                    job = self.job(base=str(model), rows=str(folder / "pairs.jsonl"), batch=batch, steps=steps)
                    turn = LENGTHS.index(length) + BATCHES.index(batch)
                    for side in ("dpo-trl", "dpo-ours") if turn % 2 else ("dpo-ours", "dpo-trl"):
                        self.measure(cell(size, length, batch), side, job)


def loop_time(folder: Path) -> Values | None:
    """Seconds of a finished run by stage and part; None if it is not finished, or if a step was reused."""
    summary = read_json(folder / "summary.json") or {}
    if summary.get("state") != "done":
        return None
    parts: dict[str, dict[str, float]] = {}
    for step in summary["steps"]:
        outcome = read_json(folder / step["folder"] / "outcome.json") or {}
        if step["state"] != "ran" or "seconds" not in outcome:
            return None
        of_stage = parts.setdefault(step["stage"], {})
        inside = outcome["seconds"]
        outside = {"start and end": step["seconds"] - sum(inside.values())}
        for name, seconds in {**inside, **outside}.items():
            of_stage[name] = round(of_stage.get(name, 0.0) + seconds, 3)
    return {"parts": parts, "wall": sum(step["seconds"] for step in summary["steps"])}


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["table", "grid", "report", "gpu"])
    parser.add_argument("--base_model", default="", help="a model folder; the targets are for SmolLM2-135M-Instruct")
    parser.add_argument("--pairs", default="", help="a file of preferences; the targets are for HH's harmless pairs")
    parser.add_argument("--instructions", nargs="*", default=[], help="files of further dialogs for SFT")
    parser.add_argument(
        "--vllm_python", default="", help="the Python of vLLM's environment; without it vLLM is left out"
    )
    parser.add_argument("--demo", default="runs/demo", help="a finished run of the demo; if there is none, it is run")
    parser.add_argument("--only", nargs="*", default=[], help="some of dpo, dpo_grouped, reward, sft, sampling, demo")
    parser.add_argument("--minutes", type=float, default=9.0, help="of the part gpu: no part is started after them")
    parser.add_argument("--num_pairs", type=int, help="pairs of neighbouring runs in A B A B …; default 3")
    parser.add_argument("--quick", action="store_true", help="one pair of runs, one step and few prompts: a trial run")
    parser.add_argument("--folder", default="runs/bench")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    settings = QUICK if arguments.quick else Settings()
    if arguments.num_pairs is not None:
        settings = Settings(**settings.__dict__ | {"num_pairs": arguments.num_pairs})
    try:
        if settings.num_pairs < 1:
            raise ConfigError(f"--num_pairs {settings.num_pairs}: expected 1 or more")
        if arguments.part == "gpu":
            from benchmarks.speed import gpu

            gpu.main(arguments)
            return
        if arguments.part == "table":
            if not arguments.pairs:
                raise ConfigError("--pairs is missing; give a file of preferences")
            Bench(arguments, settings).table(arguments.only)
        if arguments.part == "grid":
            Bench(arguments, settings).grid()
        from benchmarks.speed import report

        report.write(Path(arguments.folder).absolute(), arguments.docs)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nstopped; finished measurements are kept; run the same command again to resume", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
