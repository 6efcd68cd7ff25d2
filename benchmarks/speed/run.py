"""How fast is a step, beside its peers on the same machine? The same model and rows, in turn, as ratios of one run.

    python -m benchmarks.speed table --base_model DIR --pairs FILE [--instructions FILE …] [--vllm_python PYTHON]
    python -m benchmarks.speed grid --base_model DIR        # cost against the size of model, rows and batch
    python -m benchmarks.speed report                       # docs/benchmarks.md and its plots, from what is there

Every side is a process of its own (benchmarks/sides.py), A B A B …; a ratio is of two that follow each other, and the
median of --num_pairs of them counts. What is measured is kept in runs/bench, under a hash of the model, the rows, the
settings, the versions and our code: a bench that was killed goes on, and one of other code starts anew.
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
from typing import Any

from benchmarks.speed import measure
from benchmarks.speed.flops import faster
from benchmarks.speed.measure import ROOT, Measurements, Program, Values
from benchmarks.speed.works import BATCHES, LENGTHS, QUICK, SIZES, VLLM, WORKS, Settings, Work, cell
from data_schemas.artifact import RECORD
from data_schemas.errors import ConfigError, UserError
from data_schemas.files import hash_files, read_json, write_atomically

LIBRARIES = ("torch", "transformers", "trl", "accelerate", "datasets")
CODE = ("engine/**/*.py", "stages/*.py", "data_schemas/*.py")
SIDES_CODE = ("sides", "instruments", "samples", "flops", "vllm_side")
SECONDS_TO_END = 60  # of vLLM


class Bench:
    """One base model, one set of rows, one state of the code."""

    def __init__(self, arguments: argparse.Namespace, settings: Settings) -> None:
        self.arguments, self.settings = arguments, settings
        source = Path(arguments.base_model)
        if not (source / "config.json").is_file():
            raise ConfigError(f"{source} is not a model folder (no config.json); give one as --base_model")
        self.files = [Path(path) for path in [arguments.pairs, *arguments.instructions] if path]
        for path in self.files:
            if not path.is_file():
                raise ConfigError(f"{path} is not there; give a file of rows")
        if arguments.vllm_python and not Path(arguments.vllm_python).is_file():
            raise ConfigError(f"{arguments.vllm_python} is not there; give the Python of vLLM's environment")
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
        write_atomically(root / f"{arguments.part}.json", json.dumps({"folder": self.folder.name}))  # for the report

    def prepare_base(self, source: Path) -> None:
        """Our stages want a pad token of its own; all sides get the same weights, tokenizer and template."""
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

    def job(self, **keys: Any) -> dict[str, Any]:
        return {**self.settings.__dict__, "base": str(self.base), "folder": str(self.folder / "work"), **keys}

    def measure(self, work: str, side: str, job: dict[str, Any], *, run: int = 0) -> Values:
        """A side in a process of its own, in a folder that is empty before and gone after.

        vLLM alone keeps its process: its start takes minutes.
        """

        def measured() -> Values:
            shutil.rmtree(self.folder / "work", ignore_errors=True)
            (self.folder / "work").mkdir()
            # Else precomputed log-probs of an earlier pair would be taken from there.
            env = measure.environment() | {"HF_DATASETS_CACHE": str(self.folder / "work" / "datasets")}
            log, started = self.folder / f"{work}-{side}.log", time.monotonic()
            if side == VLLM:
                words = [self.arguments.vllm_python, "benchmarks/speed/vllm_side.py", json.dumps(job)]
                self.vllm = self.vllm or Program(words, log, env)
                found = self.vllm.measure()
            else:
                found = measure.run([sys.executable, "-m", "benchmarks.speed.sides", side, json.dumps(job)], log, env)
            shutil.rmtree(self.folder / "work", ignore_errors=True)
            took = time.monotonic() - started
            seconds = f"{found['seconds']:7.1f} s" if "seconds" in found else " " * 9
            print(f"{work:<12} {side:<20} {seconds}  {found['peak_mib']:6} MiB  ({took:.0f} s in all)", flush=True)
            return found

        return self.measured.get(work, side, run, measured)

    def table(self, only: Sequence[str]) -> None:
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
            for work in WORKS:
                if not only or work.name in only:
                    more = sampling if work.name == "sampling" else {}
                    self.compare(work, self.job(rows=rows[work.rows], **more))
        finally:
            if self.vllm is not None:
                self.vllm.end(patience=SECONDS_TO_END)
        if not only or "demo" in only:
            self.measured.get("demo", "demo", 0, self.demo)

    def compare(self, work: Work, job: dict[str, Any]) -> None:
        """Ours and all others in turn: each turn after the first is one more neighbour of the one before."""
        sides = [side for side in work.sides if side != VLLM or self.arguments.vllm_python]
        for turn in range(self.settings.num_pairs + 1):
            for side in sides[1:] if turn % 2 else sides[:1]:
                self.measure(work.name, side, job | {"run": turn // 2}, run=turn // 2)

    def demo(self) -> Values:
        """Seconds by stage and part of a finished run of configs/demo.yaml, or of a new one."""
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
        found = loop_time(folder)
        assert found is not None
        print(f"{'demo':<12} {'':<20} {wall:7.1f} s", flush=True)
        return found | {"wall": wall}

    def grid(self) -> None:
        """Both sides at every size of model, length and batch, as many steps as `least_words` ask for."""
        few = self.arguments.quick
        for size, (hidden, inner, layers, heads, pairs_of_heads) in list(SIZES.items())[: 1 if few else None]:
            sizes = {
                "hidden_size": hidden,
                "intermediate_size": inner,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": pairs_of_heads,
            }
            model = self.folder / f"model-{size}"
            if not (model / "tokenizer_config.json").exists():
                self.measured.done.pop((f"model {size}", "make-model", 0), None)
            self.measure(f"model {size}", "make-model", self.job(folder=str(model), sizes=sizes))
            for length in LENGTHS[: 1 if few else None]:
                for batch in BATCHES[: 1 if few else None]:
                    place = self.folder / f"rows-{length}-{batch}"
                    steps = max(1, self.settings.least_words // (length * batch))
                    rows = self.job(folder=str(place), length=length, number=batch * steps)
                    if not (place / "held_out.jsonl").exists():
                        self.measured.done.pop((f"rows {length} {batch}", "grid-rows", 0), None)
                    self.measure(f"rows {length} {batch}", "grid-rows", rows)
                    job = self.job(base=str(model), rows=str(place / "pairs.jsonl"), batch=batch, steps=steps)
                    turn = LENGTHS.index(length) + BATCHES.index(batch)
                    for side in ("dpo-trl", "dpo-ours") if turn % 2 else ("dpo-ours", "dpo-trl"):
                        self.measure(cell(size, length, batch), side, job)


def loop_time(folder: Path) -> Values | None:
    """Seconds of a finished run by stage and part; None where it is not finished, or a step was not run in it."""
    summary = read_json(folder / "summary.json") or {}
    if summary.get("state") != "done":
        return None
    parts: dict[str, dict[str, float]] = {}
    for step in summary["steps"]:
        outcome = read_json(folder / step["folder"] / "outcome.json") or {}
        if step["state"] != "ran" or "seconds" not in outcome:
            return None
        mine = parts.setdefault(step["stage"], {})
        inside = outcome["seconds"]
        outside = {"start and end": step["seconds"] - sum(inside.values())}
        for name, seconds in {**inside, **outside}.items():
            mine[name] = round(mine.get(name, 0.0) + seconds, 3)
    return {"parts": parts, "wall": sum(step["seconds"] for step in summary["steps"])}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["table", "grid", "report"])
    parser.add_argument("--base_model", default="", help="a folder: SmolLM2-135M-Instruct is what the targets name")
    parser.add_argument("--pairs", default="", help="a file of preferences: the targets name HH's harmless pairs")
    parser.add_argument("--instructions", nargs="*", default=[], help="files of dialogs that SFT has besides")
    parser.add_argument("--vllm_python", default="", help="the Python of an environment with vLLM; left out without")
    parser.add_argument("--demo", default="runs/demo", help="a finished run of the demo; else it is run")
    parser.add_argument("--only", nargs="*", default=[], help="dpo, dpo_grouped, reward, sft, sampling, demo")
    parser.add_argument("--num_pairs", type=int, help="of neighbours in A B A B …; else 3")
    parser.add_argument("--quick", action="store_true", help="one pair of runs, one step, few prompts: does it work?")
    parser.add_argument("--folder", default="runs/bench")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    settings = QUICK if arguments.quick else Settings()
    if arguments.num_pairs is not None:
        settings = Settings(**settings.__dict__ | {"num_pairs": arguments.num_pairs})
    try:
        if settings.num_pairs < 1:
            raise ConfigError(f"--num_pairs {settings.num_pairs}: expected 1 or more")
        if arguments.part == "table":
            if not arguments.pairs:
                raise ConfigError("--pairs is missing: a file of preferences")
            Bench(arguments, settings).table(arguments.only)
        if arguments.part == "grid":
            Bench(arguments, settings).grid()
        from benchmarks.speed import report

        report.write(Path(arguments.folder).absolute(), arguments.docs)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nstopped; what is measured is kept: the same command goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
