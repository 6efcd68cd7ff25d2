"""The speed benchmark: its arithmetic by hand, and one run of each of its sides on a tiny model."""

import contextlib
import json
import logging
import random
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import conversation, pair, write_jsonl

from benchmarks.speed import flops, instruments, measure, report, run, samples, tables
from benchmarks.speed.flops import faster
from benchmarks.speed.sides import SIDES, one_call
from benchmarks.speed.works import QUICK, Settings, cell

TRAINING = [name for name in SIDES if name.startswith(("dpo", "reward", "sft"))]

# -- the harness -----------------------------------------------------------------------------------------------


def test_a_ratio_is_of_neighbours_and_says_its_spread():
    ratio = measure.Ratio.of([6.0, 2.0, 10.0], [2.0, 1.0, 2.0])
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 2.0, 5.0)  # of 3, 2 and 5; medians would give 6 / 2
    assert str(ratio) == "3.00× [2.00, 5.00]"
    with pytest.raises(ValueError, match="shorter"):
        measure.Ratio.of([1.0], [])


@pytest.mark.parametrize(
    ("ours", "theirs", "each"),
    [
        ([6.0], [2.0], [3.0]),
        ([6.0, 8.0], [2.0], [3.0, 4.0]),  # A B A
        ([6.0, 8.0], [2.0, 1.0], [3.0, 4.0, 8.0]),  # A B A B
        ([6.0, 8.0, 5.0], [2.0], [3.0, 4.0]),  # the peer was left out in the second turn
    ],
)
def test_in_turn_every_two_that_follow_each_other_are_a_pair(ours, theirs, each):
    assert measure.num_pairs(ours, theirs) == len(each)
    assert measure.Ratio.in_turn(ours, theirs) == measure.Ratio(np.median(each), min(each), max(each))
    assert measure.num_pairs(ours, []) == measure.num_pairs([], theirs) == 0


def test_what_is_measured_is_not_measured_again_and_a_line_that_was_cut_off_is(tmp_path):
    measured = measure.Measurements(tmp_path)
    for number in (1, 0):
        assert measured.get("dpo", "ours", number, lambda number=number: {"seconds": number}) == {"seconds": number}
    with measured.path.open("a") as file:
        file.write('{"work": "dpo", "side": "trl", "run": 0, "val')  # killed while it wrote
    again = measure.Measurements(tmp_path)
    assert again.get("dpo", "ours", 1, lambda: pytest.fail("is there")) == {"seconds": 1}
    assert again.get("dpo", "trl", 0, lambda: {"seconds": 9}) == {"seconds": 9}
    assert measure.Measurements(tmp_path).of("dpo", "trl") == [{"seconds": 9}]
    assert measure.Measurements(tmp_path).of("dpo", "ours") == [{"seconds": 0}, {"seconds": 1}]  # by run


def test_memory_is_of_a_process_and_all_that_it_starts(tmp_path):
    child = f"import time; b = bytearray({80 * 2**20}); time.sleep(0.6)"
    code = f"""
import subprocess, sys, json
children = [subprocess.Popen([sys.executable, "-c", {child!r}]) for _ in range(2)]
[each.wait() for each in children]
print("not this"); print(json.dumps({{"seconds": 2}})); print("nor what a library says at its end")
"""
    found = measure.run([sys.executable, "-c", code], tmp_path / "side.log")
    assert found["seconds"] == 2 and 160 < found["peak_mib"] < 320
    with pytest.raises(SystemExit, match=r"(?s)ZeroDivisionError.*exit code 1; all it said is in .*side\.log"):
        measure.run([sys.executable, "-c", "1 / 0"], tmp_path / "side.log")


def test_a_program_that_is_kept_measures_once_a_line_and_is_ended_with_all_it_started(tmp_path):
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
for number, line in enumerate(sys.stdin):
    if number == 2:
        sys.exit("no more")
    print("not this"); print('{"number": %d, "child": %d}' % (number, child.pid), flush=True)
"""
    program = measure.Program([sys.executable, "-c", code], tmp_path / "log")
    first, second = program.measure(), program.measure()
    assert (first["number"], second["number"]) == (0, 1) and first["peak_mib"] > 0
    with pytest.raises(SystemExit, match=r"(?s)no more\n.*ended with exit code 1"):
        program.measure()
    assert Path(f"/proc/{first['child']}").exists()
    program.end()
    assert _ends(first["child"])


def _ends(pid):
    """Whether it is gone, or is so soon: a signal takes effect later."""
    for _ in range(100):
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)
                continue
        return True
    return False


def test_an_interrupted_bench_waits_for_no_side_and_says_that_it_goes_on(tmp_path, monkeypatch, capsys):
    program = measure.Program([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log")

    def interrupted(pid):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "_resident", interrupted)
    monkeypatch.setattr(run, "Bench", lambda *given: program.measure())
    monkeypatch.setattr(sys, "argv", ["speed", "grid"])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 130 and "the same command goes on" in capsys.readouterr().err
    assert program.process.returncode == -signal.SIGKILL


def test_padding_is_what_the_widest_row_of_a_batch_costs_the_others():
    items = [samples.Item(10, 2, 12), samples.Item(4, 2, 5), samples.Item(6, 2, 9)]
    assert samples.padded(items, batch=2) == 10 * 4 + 6 * 2
    assert samples.shared_length([1, 2, 3, 4], [1, 2, 5]) == 2
    assert samples.shared_length([1, 2, 3], [1, 2, 3]) == 2  # each has a token of its own


def test_length_grouped_batches_pad_as_those_of_transformers_do():
    from transformers.trainer_pt_utils import get_length_grouped_indices

    drawn = random.Random(0)
    items = [samples.Item(drawn.randint(5, 500), 2, 0) for _ in range(400)]
    lengths = [item.longest for item in items]
    theirs = [samples.padded([items[place] for place in get_length_grouped_indices(lengths, 8)], 8) for _ in range(20)]
    ours = [
        samples.padded([items[place] for each in samples.grouped(items, 8, drawn) for place in each], 8)
        for _ in range(20)
    ]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.02)
    assert np.mean(ours) < 0.7 * samples.padded(items, 8)


def test_a_sample_costs_what_the_whole_file_costs():
    drawn = random.Random(1)
    items = [samples.Item(size := drawn.randint(5, 500), 2, size) for _ in range(400)]
    for by_length in (False, True):
        places, facts = samples.draw(items, steps=2, batch=8, seed=1, by_length=by_length)
        assert len(set(places)) == 16 == facts["rows"]
        assert facts["padded"] == pytest.approx(facts["padded_of_all"], rel=0.1)
        assert facts["own"] == pytest.approx(facts["own_of_all"], rel=0.1)
        assert facts["own_of_all"] == pytest.approx(np.mean([item.own for item in items]), abs=0.1)


def test_the_operations_of_a_step_by_hand(tiny_model, tokenizer):
    counts = flops.counts_of([1, 2, 3, 4], [1, 2, 5], logits=3)
    # Two shared tokens see 1 + 2; branches of 2 and 1 see the shared ones and themselves: 2 x 2 + 3 and 2 + 1.
    assert counts == (5, 3, 3 + 7 + 3)
    sizes = flops.Sizes(weights=10, head=100, layers=2, attention=4)
    forward = 2 * 10 * 5 + 2 * 100 * 3 + 4 * 2 * 4 * 13
    assert flops.of_step(sizes, counts) == 3 * forward
    per_layer = 4 * 32 * 32 + 3 * 32 * 64
    assert flops.sizes_of(str(tiny_model)) == (2 * per_layer, 32 * len(tokenizer), 2, 32)


def test_reference_passes_neither_train_nor_evaluate_the_trained_model():
    watch = instruments.Watch()
    policy, reference = 0, 1
    watch.passes = [
        instruments.Pass(policy, False, False, 18),  # a trial whether it takes the mask
        instruments.Pass(policy, False, True, 500),
        instruments.Pass(reference, False, True, 500),  # 1: for the evaluation
        instruments.Pass(policy, True, False, 500),
        instruments.Pass(policy, False, False, 500),  # 2: before training, by the policy as it was
        instruments.Pass(reference, False, False, 500),  # 3
    ]
    assert watch.reference_passes() == 3


def test_the_loops_time_is_what_stages_say_and_the_rest_of_their_steps(tmp_path):
    steps = [
        {"stage": "sft", "folder": "a", "seconds": 10.0, "state": "ran"},
        {"stage": "sft", "folder": "b", "seconds": 5.0, "state": "ran"},
    ]
    for name, inside in (("a", {"train": 6.0, "load": 1.0}), ("b", {"train": 4.0, "other": 0.5})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "outcome.json").write_text(json.dumps({"seconds": inside}))
    assert run.loop_time(tmp_path) is None
    (tmp_path / "summary.json").write_text(json.dumps({"state": "done", "steps": steps}))
    values = run.loop_time(tmp_path)
    assert values == {"parts": {"sft": {"train": 10.0, "load": 1.0, "other": 0.5, "start and end": 3.5}}, "wall": 15.0}
    assert tables.overhead(values) == pytest.approx(5 / 15)
    assert tables.overhead(values | {"wall": 21.0}) == pytest.approx(11 / 21)  # the runner's own time is in it
    assert tables.loop_table(values)[2] == "| `sft` | 3.5 | 1.0 | 0.0 | 10.0 | 0.0 | 0.0 | 0.0 | 0.5 | 15.0 |"
    steps[1]["state"] = "reused"
    (tmp_path / "summary.json").write_text(json.dumps({"state": "done", "steps": steps}))
    assert run.loop_time(tmp_path) is None


def test_the_table_says_what_was_reached_and_what_was_missed(tmp_path):
    measured = measure.Measurements(tmp_path)
    how = {"dtype": "float32", "activation_checkpointing": False, "rows": 16}
    for number, (mine, other) in enumerate([(4.0, 12.0), (3.0, 15.0)]):
        measured.get("dpo", "dpo-ours", number, lambda s=mine: how | {"seconds": s, "peak_mib": 2048})
        measured.get("dpo", "dpo-trl", number, lambda s=other: how | {"seconds": s, "peak_mib": 3072})
        if number == 0:
            measured.get("reward", "reward-ours", number, lambda: how | {"seconds": 2.0})
            measured.get("reward", "reward-trl", number, lambda: how | {"seconds": 4.0})
    arithmetic = {"operations": 8e9, "steps": [4.0, 8.0, 2.0], "passes": [4, 1]}
    # Steps at 2, 1 and 4 GFLOP/s; the better of the best products before and after each: 2, 2 and 4.
    arithmetic["peaks"] = [{"float32": {"a": one * 1e9, "b": 1e9}} for one in (2, 1, 2, 4)]
    measured.get("arithmetic", "arithmetic", 0, lambda: arithmetic)
    settings = Settings().__dict__
    lines = tables.speed_lines(measured, settings)
    assert lines[0] == (
        "| DPO, 8 pairs a batch, reference included | TRL, otherwise default | ≥ 3.0× | 4.00× [3.00, 5.00], reached "
        "| 4.67 pairs/s | 1.2 pairs/s | float32, activations kept |"
    )  # 3, 4 and 5: the peer's first run is a neighbour of both of ours
    assert "≥ 2.5× | 2.00× [2.00, 2.00] of 1, **missed** | 8 pairs/s | 4 pairs/s" in lines[2]
    assert "not measured: no `--vllm_python`" in lines[-1] and "not measured: left out" in lines[1]
    memory, passes, arithmetic = tables.other_lines(measured)
    assert "≤ 0.5× | 0.67× [0.67, 0.67], **missed** | 2.0 GiB | 3.0 GiB" in memory
    assert "| 0 | 1, **missed** | 1 | 4 |" in passes
    assert "≥ 60% | 100% [50%, 100%], reached | 2 GFLOP/s | 2 GFLOP/s" in arithmetic


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table", "--base_model", "nowhere", "--pairs", "x"], "nowhere is not a model folder"),
        (["table", "--base_model", "nowhere"], "--pairs is missing"),
        (["table", "--pairs", "x", "--num_pairs", "0"], "--num_pairs 0: expected 1 or more"),
        (["report", "--folder", "nowhere"], "nothing is measured in "),
    ],
)
def test_a_bench_without_what_it_needs_says_so(words, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed", *words])
    with pytest.raises(SystemExit, match=f"^error: .*{said}"):
        run.main()


@pytest.mark.parametrize(
    ("target", "given", "said"),
    [
        ("bench", ["BASE_MODEL=x"], "make bench needs PAIRS=PATH"),
        ("bench-full", [], "make bench-full needs BASE_MODEL=PATH"),
    ],
)
def test_make_bench_says_what_it_needs(target, given, said):
    done = subprocess.run(["make", "-n", target, *given], cwd=measure.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode and said in done.stderr


# -- the sides -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(tiny_model, tmp_path_factory):
    """A job of one step of 4 rows, its rows drawn."""
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
def alone(monkeypatch):
    """Sides set threads and logging of the process that they have for themselves."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("engine.runtime.process.use_all_cores", lambda: None)
    root, threads = logging.getLogger(), torch.get_num_threads()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, _ = handlers, root.setLevel(level)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("side", TRAINING)
def test_a_side_trains_its_rows_in_float32_without_recomputing(side, sample, alone, tmp_path):
    rows = "dialogs" if side.startswith("sft") else "grouped" if "grouped" in side else "pairs"
    found = SIDES[side](sample | {"folder": str(tmp_path), "rows": f"{sample['folder']}/{rows}.jsonl"})
    assert 0 < found["seconds"] < 60 and found["rows"] == 4
    assert (found["dtype"], found["activation_checkpointing"]) == ("float32", False)
    assert not list(tmp_path.rglob("artifact.json")), "it ends after its last step"


@pytest.mark.parametrize("side", ["sampling-ours", "sampling-generate"])
def test_a_side_answers_every_prompt(side, sample, alone, tmp_path):
    job = sample | {"folder": str(tmp_path), "rows": f"{sample['folder']}/prompts.jsonl", "dtype": "float32"}
    found = SIDES[side](job | {"run": 0})
    assert (
        found["rows"] == 4 * 2
        and found["dtype"] == "float32"
        and 8 <= found["tokens"] <= 8 * 16
        and 0 < found["seconds"] < 60
    )


def test_each_run_has_one_of_generates_calls_first_that_of_mean_width():
    widths = [*[1] * 7, 9, *[2] * 8, *[3] * 7, 6, 7, 7]  # calls as wide as 9, 2, 6 and 7, in the mean 6
    prompts = [[number] * width for number, width in enumerate(widths)]
    calls = [one_call(prompts, run) for run in range(5)]
    assert calls == [prompts[16:24], prompts[24:26], prompts[0:8], prompts[8:16], prompts[16:24]]


def test_vllms_side_asks_for_all_answers_of_a_prompt_at_once_and_is_stopped_in_between(tmp_path):
    """With a module in its place: its script needs the standard library and vllm alone."""
    (tmp_path / "vllm.py").write_text(
        f"FOLDER = {str(tmp_path)!r}"
        + """
import subprocess, sys
from types import SimpleNamespace as Made
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
        answer = Made(token_ids=[1, 2, 3])
        return [Made(outputs=[answer] * sampling["n"]) for prompt in prompts if prompt["prompt_token_ids"]]
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
            found = program.measure()
            assert (found["rows"], found["tokens"], found["vllm"], found["dtype"]) == (8, 24, "0", "bfloat16")
            assert found["seconds"] > 0
            worker = int((tmp_path / "worker").read_text())
            assert psutil.Process(worker).status() == psutil.STATUS_STOPPED, "else it takes time from the others"
        program.end(patience=60)
        assert program.process.returncode == 0, "it ends itself, also where the bench was killed"
    finally:
        program.end()
    assert _ends(worker)


def test_the_peak_passes_of_a_reference_and_the_grids_rows_and_models_are_made(sample, alone, tmp_path):
    job = sample | {"rows": f"{sample['folder']}/pairs.jsonl", "folder": str(tmp_path), "first_steps": 1}
    found = SIDES["arithmetic"](job | {"timed_steps": 2})
    assert len(found["steps"]) == 2 and len(found["peaks"]) == 3  # before, between and after them
    first, second = found["passes"]
    assert first >= 2 and second == 0, "passes of the training rows and of the held-out ones, and none again"
    for peaks in found["peaks"]:
        # A precision for which a machine has no instructions would take minutes for what another does in a second.
        assert set(peaks) == {"float32", faster(found["generation"])}
        assert all(rate > 0 for rates in peaks.values() for rate in rates.values())
    steps, best = tables.step_rates(found)
    assert all(0 < step < peak for step, peak in zip(steps, best, strict=True)), "a step is more than its products"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = SIDES["make-model"](sample | {"folder": str(tmp_path / "model"), "sizes": sizes})
    assert made["parameters"] > 20480 and (tmp_path / "model" / "tokenizer.json").exists()
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
        assert job["steps"] * batch * length >= Settings().least_words
        assert job["steps"] == 1 or (job["steps"] - 1) * batch * length < Settings().least_words


def _bench(folder, jobs, **arguments):
    """Of whose sides `jobs` keeps what they were asked; no process is started."""
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
def test_a_pair_is_of_two_runs_that_follow_each_other(num_pairs, runs, tmp_path):
    bench = _bench(tmp_path, [])
    bench.settings = Settings(num_pairs=num_pairs)
    bench.table(["dpo"])
    found = [bench.measured.of("dpo", side) for side in ("dpo-ours", "dpo-trl")]
    assert tuple(map(len, found)) == runs and measure.num_pairs(*found) == num_pairs


def test_sampling_is_done_in_the_precision_that_is_faster_here(tmp_path):
    jobs = []
    _bench(tmp_path, jobs).table(["sampling"])
    assert {dtype for work, _, _, dtype in jobs if work == "sampling"} == {"float32"}


def test_the_page_is_written_with_its_plots(sample, tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "table-0"
    folder.mkdir()
    (tmp_path / "table.json").write_text(json.dumps({"folder": "table-0"}))
    about = {"settings": Settings().__dict__, "versions": {"torch": "1"}, "is_quick": True, "machine": "2 cores"}
    (folder / "about.json").write_text(json.dumps(about))
    measured, how = measure.Measurements(folder), {"dtype": "float32", "activation_checkpointing": False, "rows": 16}
    for side, seconds in (("dpo-ours", 1.0), ("dpo-trl", 4.0)):
        measured.get("dpo", side, 0, lambda s=seconds: how | {"seconds": s, "peak_mib": 100})
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
    (tmp_path / "grid.json").write_text(json.dumps({"folder": "grid-0"}))  # a grid that was only begun
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
    assert "| a: 1 × 2 × 3 | 5 |" in text and "steps at 3 GFLOP/s" in text and "comes to 4 GFLOP/s" in text
    assert "4.00× [4.00, 4.00], reached" in text and report.QUICK in text
    assert str(Path.home()) not in text and str(tmp_path) not in text
    assert (tmp_path / "docs" / "benchmarks.svg").read_text().startswith("<?xml")
