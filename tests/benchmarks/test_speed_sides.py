"""Each side of the speed benchmark runs once on a tiny model; the grid and the page."""

import json
import logging
import sys
import time
from argparse import Namespace
from pathlib import Path

import psutil
import pytest

from benchmarks.speed import flops, measure, report, run, tables
from benchmarks.speed.flops import faster
from benchmarks.speed.sampling_sides import prompts_of_call
from benchmarks.speed.sides import SIDES
from benchmarks.speed.workloads import QUICK, Settings, cell
from tests.loop_recipes import wait_until
from tests.patience import PATIENCE
from tests.processes import has_ended
from tests.toy_rows import conversation, pair, write_jsonl

TRAINING = [name for name in SIDES if name.startswith(("dpo", "reward", "sft"))]


@pytest.fixture(scope="module")
def sample(tiny_model, tmp_path_factory):
    """A job with one step of 4 rows, which are written."""
    folder = tmp_path_factory.mktemp("bench")
    tasks = [
        {"instruction": f"Say {n}.", "instances": [{"input": "now" if n % 2 else "", "output": f"{n} it is."}]}
        for n in range(6)
    ]
    dialogs = [
        write_jsonl(folder / "tasks.jsonl", tasks),
        write_jsonl(folder / "more.jsonl", [conversation(n) for n in range(300, 306)]),
    ]
    job = QUICK.__dict__ | {
        "batch": 4,
        "steps": 1,
        "base": str(tiny_model),
        "square": 64,
    }
    job |= {
        "folder": str(folder),
        "instructions": [str(path) for path in dialogs],
        "pairs": str(write_jsonl(folder / "all.jsonl", [pair(n) for n in range(40)])),
    }
    facts = SIDES["prepare"](job)
    assert (facts["pairs"]["rows"], facts["grouped"]["rows"], facts["dialogs"]["rows"]) == (4, 4, 4)
    assert facts["pairs"]["padded_of_all"] > facts["grouped"]["padded_of_all"] > facts["pairs"]["own_of_all"]
    return job


@pytest.fixture
def own_process(monkeypatch):
    """Restores the threads and the logging of this process. Sides set them, since each usually has its own process."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("engine.runtime.process.use_all_cores", lambda: None)
    root, threads = logging.getLogger(), torch.get_num_threads()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, _ = handlers, root.setLevel(level)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("side", TRAINING)
def test_a_side_trains_its_rows_in_float32_without_recomputing(side, sample, own_process, tmp_path):
    rows = "dialogs" if side.startswith("sft") else "grouped" if "grouped" in side else "pairs"
    started = time.perf_counter()
    values = SIDES[side](sample | {"folder": str(tmp_path), "rows": f"{sample['folder']}/{rows}.jsonl"})
    assert 0 < values["seconds"] < time.perf_counter() - started and values["rows"] == 4
    assert (values["dtype"], values["activation_checkpointing"]) == ("float32", False)
    assert not list(tmp_path.rglob("artifact.json")), "a side ends after its last step"


@pytest.mark.parametrize("side", ["sampling-ours", "sampling-generate"])
def test_a_side_answers_every_prompt(side, sample, own_process, tmp_path):
    job = sample | {"folder": str(tmp_path), "rows": f"{sample['folder']}/prompts.jsonl", "dtype": "float32"}
    started = time.perf_counter()
    values = SIDES[side](job | {"run": 0})
    assert (
        values["rows"] == 4 * 2
        and values["dtype"] == "float32"
        and 8 <= values["tokens"] <= 8 * 16
        and 0 < values["seconds"] < time.perf_counter() - started
    )


def test_each_run_has_one_of_generates_calls_first_that_of_mean_width():
    widths = [*[1] * 7, 9, *[2] * 8, *[3] * 7, 6, 7, 7]  # calls of widths 9, 2, 6 and 7, with the mean 6
    prompts = [[number] * width for number, width in enumerate(widths)]
    calls = [prompts_of_call(prompts, run) for run in range(5)]
    assert calls == [prompts[16:24], prompts[24:26], prompts[0:8], prompts[8:16], prompts[16:24]]


def test_vllms_side_asks_for_all_answers_of_a_prompt_at_once_and_is_stopped_in_between(tmp_path):
    """With a fake vllm module: the script imports only the standard library and vllm."""
    (tmp_path / "vllm.py").write_text(
        f"FOLDER = {str(tmp_path)!r}"
        + """
import subprocess, sys
from types import SimpleNamespace
__version__, WORKER = "0", "import time; time.sleep(600)"
def state(pid): return open(f"/proc/{pid}/stat").read().split()[2]
def SamplingParams(**keys): return keys
class LLM:
    def __init__(self, model, dtype, enable_prefix_caching, seed):
        assert enable_prefix_caching and dtype == "bfloat16"
        self.worker, self.cached = subprocess.Popen([sys.executable, "-c", WORKER]), 0
    def reset_prefix_cache(self): self.cached = 0
    def generate(self, prompts, sampling, use_tqdm):
        assert sampling["temperature"] == 0.8 and sampling["max_tokens"] == 5 and not self.cached
        self.cached = len(prompts)
        assert state(self.worker.pid) in "RS"
        open(FOLDER + "/worker", "w").write(str(self.worker.pid))
        answer = SimpleNamespace(token_ids=[1, 2, 3])
        return [SimpleNamespace(outputs=[answer] * sampling["n"]) for prompt in prompts if prompt["prompt_token_ids"]]
"""
    )
    (tmp_path / "ids.json").write_text("[[5, 6], [7]]")
    job = {"base": "x", "dtype": "bfloat16", "answers": 4, "temperature": 0.8, "max_new_tokens": 5}
    words = [
        sys.executable,
        "benchmarks/speed/vllm_side.py",
        json.dumps(job | {"prompt_ids": str(tmp_path / "ids.json")}),
    ]
    program = measure.Program(words, tmp_path / "log", measure.environment() | {"PYTHONPATH": str(tmp_path)})
    try:
        for _ in range(2):
            values = program.measure()
            assert (values["rows"], values["tokens"], values["vllm"], values["dtype"]) == (8, 24, "0", "bfloat16")
            assert values["seconds"] > 0
            worker = int((tmp_path / "worker").read_text())
            wait_until(
                lambda pid=worker: psutil.Process(pid).status() == psutil.STATUS_STOPPED,
                seconds=PATIENCE,
                what="the worker to be stopped: otherwise it takes time from the other sides",
            )
        program.end(patience=60)
        assert program.process.returncode == 0, "it ends by itself, even if the benchmark was killed"
    finally:
        program.end()
    assert has_ended(worker)


def test_peaks_reference_passes_and_the_grids_rows_and_models_are_computed(sample, own_process, tmp_path):
    job = sample | {"rows": f"{sample['folder']}/pairs.jsonl", "folder": str(tmp_path), "untimed_steps": 1}
    values = SIDES["arithmetic"](job | {"timed_steps": 2})
    assert len(values["steps"]) == 2 and len(values["peaks"]) == 3  # before, between and after them
    first, second = values["passes"]
    assert first >= 2 and second == 0, "passes over the training rows and the held-out rows, and none in the second run"
    for peaks in values["peaks"]:
        # A precision for which a machine has no instructions would take minutes instead of a second.
        assert set(peaks) == {"float32", faster(values["generation"])}
        assert all(rate > 0 for rates in peaks.values() for rate in rates.values())
    steps, best = tables.step_rates(values)
    assert all(0 < step < peak for step, peak in zip(steps, best, strict=True)), "a step is more than its products"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = SIDES["random-model"](sample | {"folder": str(tmp_path / "model"), "sizes": sizes})
    assert model["parameters"] > 20480 and (tmp_path / "model" / "tokenizer.json").exists()
    rows = SIDES["grid-rows"](sample | {"folder": str(tmp_path / "rows"), "length": 20, "number": 3})
    assert rows["tokens"] > 3 * 2 * 10 and (tmp_path / "rows" / "held_out.jsonl").exists()


def test_every_cell_of_the_grid_has_both_sides_in_turn_and_enough_words(tmp_path):
    bench, asked = _bench(tmp_path, [], quick=False), {}
    bench.measure = lambda work, side, job: asked.setdefault((work, side), job)
    bench.grid()
    cells = [key for key in asked if key[1].startswith("dpo")]
    assert len(cells) == 2 * 27 and [work for work, _ in cells[::2]] == [work for work, _ in cells[1::2]]
    assert {side for _, side in cells[::2]} == {side for _, side in cells[1::2]} == {"dpo-ours", "dpo-trl"}
    for work, side in cells:
        length, batch, job = *map(int, work.split()[1:]), asked[work, side]
        assert job["steps"] * batch == asked[f"rows {length} {batch}", "grid-rows"]["number"], "rows are seen once"
        assert job["steps"] * batch * length >= Settings().min_words
        assert job["steps"] == 1 or (job["steps"] - 1) * batch * length < Settings().min_words


def _bench(folder, jobs, **arguments):
    """A benchmark that starts no process, and records the jobs of its sides in `jobs`."""
    bench = object.__new__(run.Bench)
    bench.arguments = Namespace(**{"num_pairs": None, "vllm_python": "", "demo": ""} | arguments)
    bench.settings, bench.folder, bench.files = Settings(), folder, [folder / "rows"]
    bench.base, bench.measured, bench.vllm = folder, measure.Measurements(folder), None
    rates = {"float32": 2.0, "bfloat16": 1.0}

    def side(work, side, job, *, run=0):
        jobs.append((work, side, run, job.get("dtype")))
        return bench.measured.get(work, side, run, lambda: {"generation": rates})

    bench.measure, bench.demo = side, dict
    return bench


def test_the_sides_of_a_line_run_in_turn_and_ours_first(tmp_path):
    jobs = []
    _bench(tmp_path, jobs).table([])
    ours, trl, packed = "sft-ours", "sft-trl", "sft-trl-packed"
    assert [(side, run) for work, side, run, _ in jobs if work == "sft"] == [
        (ours, 0),
        (trl, 0),
        (packed, 0),
        (ours, 1),
        (trl, 1),
        (packed, 1),
    ]
    lines = list(dict.fromkeys(work for work, *_ in jobs))
    assert lines == ["sample", "arithmetic", "dpo", "dpo_grouped", "reward", "sft", "sampling"]
    assert [side for work, side, _, _ in jobs if work == "sampling"] == ["sampling-ours", "sampling-generate"] * 2


@pytest.mark.parametrize(("num_pairs", "runs"), [(1, (1, 1)), (2, (2, 1)), (3, (2, 2)), (5, (3, 3))])
def test_a_pair_is_two_consecutive_runs(num_pairs, runs, tmp_path):
    bench = _bench(tmp_path, [])
    bench.settings = Settings(num_pairs=num_pairs)
    bench.table(["dpo"])
    sides = [bench.measured.of("dpo", side) for side in ("dpo-ours", "dpo-trl")]
    assert tuple(map(len, sides)) == runs and measure.num_pairs(*sides) == num_pairs


def test_sampling_is_done_in_the_precision_that_is_faster_here(tmp_path):
    jobs = []
    _bench(tmp_path, jobs).table(["sampling"])
    assert {dtype for work, _, _, dtype in jobs if work == "sampling"} == {"float32"}


def test_the_page_is_written_with_its_plots(sample, tmp_path):
    folder = tmp_path / "table-0"
    folder.mkdir()
    (tmp_path / "table.json").write_text(json.dumps({"folder": "table-0"}))
    about = {"settings": Settings().__dict__, "versions": {"torch": "1"}, "is_quick": True, "machine": "2 cores"}
    (folder / "about.json").write_text(json.dumps(about))
    measured, settings = (
        measure.Measurements(folder),
        {"dtype": "float32", "activation_checkpointing": False, "rows": 16},
    )
    for side, seconds in (("dpo-ours", 1.0), ("dpo-trl", 4.0)):
        measured.get("dpo", side, 0, lambda s=seconds: settings | {"seconds": s, "peak_mib": 100})
    arithmetic = {
        "operations": 3e9,
        "steps": [1.0],
        "peaks": [{"float32": {"a": 4e9}}, {"float32": {"a": 5e9}}],
        "shapes": {"a": [1, 2, 3]},
        "counts": {"tokens": 1, "logits": 2, "visible": 3},
        "passes": [2, 0],
        "sizes": flops.Sizes(1, 2, 3, 4)._asdict(),
    }
    measured.get("arithmetic", "arithmetic", 0, lambda: arithmetic)
    (tmp_path / "grid-0").mkdir()
    (tmp_path / "grid-0" / "about.json").write_text(json.dumps(about))
    (tmp_path / "grid.json").write_text(json.dumps({"folder": "grid-0"}))  # a grid without a complete cell
    report.write(tmp_path, tmp_path / "docs")
    assert not (tmp_path / "docs" / "benchmarks-grid.svg").exists()
    grid, name = measure.Measurements(tmp_path / "grid-0"), cell("60M", 256, 4)
    grid.get("rows 256 4", "grid-rows", 0, lambda: {"tokens": 800})
    for side, seconds in (("dpo-ours", 1.0), ("dpo-trl", 4.0)):
        grid.get(name, side, 0, lambda s=seconds: {"seconds": s, "peak_mib": 1024})
    report.write(tmp_path, tmp_path / "docs")
    assert "| 60M | 256 | 4 | 800 | 200 | 4.00× | 1.0 | 1.0 |" in (tmp_path / "docs" / "benchmarks.md").read_text()
    assert (tmp_path / "docs" / "benchmarks-grid.svg").exists()
    text = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert (
        "| a: 1 × 2 × 3 | 5 |" in text and "| 3 GFLOP/s | 5 GFLOP/s | float32 |" in text and "reaches 4 GFLOP/s" in text
    )
    assert "4.00× [4.00, 4.00], reached" in text and report.QUICK in text
    assert str(Path.home()) not in text and str(tmp_path) not in text
    assert (tmp_path / "docs" / "benchmarks.svg").read_text().startswith("<?xml")
