"""The speed benchmark: its arithmetic worked out by hand, its measurements and its messages."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import flops, instruments, measure, run, samples, tables
from benchmarks.speed.workloads import Settings
from tests.processes import has_ended


def test_a_ratio_is_of_neighbouring_runs_and_has_its_spread():
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
def test_every_two_consecutive_runs_are_a_pair(ours, theirs, each):
    assert measure.num_pairs(ours, theirs) == len(each)
    assert measure.Ratio.in_turn(ours, theirs) == measure.Ratio(np.median(each), min(each), max(each))
    assert measure.num_pairs(ours, []) == measure.num_pairs([], theirs) == 0


def test_only_a_truncated_line_is_measured_again(tmp_path):
    measured = measure.Measurements(tmp_path)
    for number in (1, 0):
        assert measured.get("dpo", "ours", number, lambda number=number: {"seconds": number}) == {"seconds": number}
    with measured.path.open("a") as file:
        file.write('{"work": "dpo", "side": "trl", "run": 0, "val')  # killed while it was writing
    again = measure.Measurements(tmp_path)
    assert again.get("dpo", "ours", 1, lambda: pytest.fail("is recorded already")) == {"seconds": 1}
    assert again.get("dpo", "trl", 0, lambda: {"seconds": 9}) == {"seconds": 9}
    assert measure.Measurements(tmp_path).of("dpo", "trl") == [{"seconds": 9}]
    assert measure.Measurements(tmp_path).of("dpo", "ours") == [
        {"seconds": 0},
        {"seconds": 1},
    ]  # in the order of the runs


def test_memory_is_of_a_process_and_all_its_children(tmp_path, monkeypatch):
    seen, resident = tmp_path / "seen", measure._resident
    child = f"""
import time, pathlib
b, deadline = bytearray({80 * 2**20}), time.monotonic() + 60
while not pathlib.Path({str(seen)!r}).exists() and time.monotonic() < deadline:
    time.sleep(0.05)
"""

    def resident_and_seen(pid: int) -> int:
        if (size := resident(pid)) > 160 * 2**20:
            seen.touch()  # the children end when they have been measured together, however busy the machine is
        return size

    monkeypatch.setattr(measure, "_resident", resident_and_seen)
    code = f"""
import subprocess, sys, json
children = [subprocess.Popen([sys.executable, "-c", {child!r}]) for _ in range(2)]
[each.wait() for each in children]
print("not this"); print(json.dumps({{"seconds": 2}})); print("nor what a library prints at its end")
"""
    values = measure.run([sys.executable, "-c", code], tmp_path / "side.log")
    assert values["seconds"] == 2 and 160 < values["peak_mib"] < 320
    with pytest.raises(SystemExit, match=r"(?s)ZeroDivisionError.*exit code 1; its complete output is in .*side\.log"):
        measure.run([sys.executable, "-c", "1 / 0"], tmp_path / "side.log")


def test_a_reused_program_measures_once_per_line_and_is_ended_with_its_children(tmp_path):
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
    assert (first["number"], second["number"]) == (0, 1)
    assert first["peak_mib"] > 0 and second["peak_mib"] > 0
    with pytest.raises(SystemExit, match=r"(?s)no more\n.*ended with exit code 1"):
        program.measure()
    assert Path(f"/proc/{first['child']}").exists()
    program.end()
    assert has_ended(first["child"])


def test_a_program_that_answers_before_it_is_polled_has_been_measured(tmp_path, monkeypatch):
    """On a busy machine the answer may exist before the waiting begins."""
    program = measure.Program([sys.executable, "-c", "input(); print('{}', flush=True); input()"], tmp_path / "log")
    results = iter([[], ["{}"], ["{}"]])
    monkeypatch.setattr(program, "results", lambda: next(results))
    assert program.measure()["peak_mib"] > 0
    program.end()


def test_an_interrupted_bench_stops_at_once_and_prints_that_it_can_be_resumed(tmp_path, monkeypatch, capsys):
    program = measure.Program([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log")

    def interrupted(pid):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "_resident", interrupted)
    monkeypatch.setattr(run, "Bench", lambda *given: program.measure())
    monkeypatch.setattr(sys, "argv", ["speed", "grid"])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 130 and "the same command again to resume" in capsys.readouterr().err
    assert program.process.returncode == -signal.SIGKILL


def test_padding_is_up_to_the_longest_row_of_a_batch():
    items = [samples.Item(10, 2, 12), samples.Item(4, 2, 5), samples.Item(6, 2, 9)]
    assert samples.padded(items, batch=2) == 10 * 4 + 6 * 2
    assert samples.shared_length([1, 2, 3, 4], [1, 2, 5]) == 2
    assert samples.shared_length([1, 2, 3], [1, 2, 3]) == 2  # each has at least one separate token


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


def test_a_sample_costs_as_much_as_the_complete_file():
    drawn = random.Random(1)
    items = [samples.Item(size := drawn.randint(5, 500), 2, size) for _ in range(400)]
    for by_length in (False, True):
        places, facts = samples.draw(items, steps=2, batch=8, seed=1, by_length=by_length)
        assert len(set(places)) == 16 == facts["rows"]
        assert facts["padded"] == pytest.approx(facts["padded_of_all"], rel=0.1)
        assert facts["own"] == pytest.approx(facts["own_of_all"], rel=0.1)
        assert facts["own_of_all"] == pytest.approx(np.mean([item.own for item in items]), abs=0.1)


def test_the_operations_of_a_step_are_counted(tiny_model, tokenizer):
    counts = flops.counts_of([1, 2, 3, 4], [1, 2, 5], logits=3)
    # Two shared tokens attend to 1 + 2; branches of 2 and 1 to the shared tokens and themselves: 2 x 2 + 3 and 2 + 1.
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
        instruments.Pass(policy, False, False, 18),  # a probe whether the model accepts the mask
        instruments.Pass(policy, False, True, 500),
        instruments.Pass(reference, False, True, 500),  # 1: for the evaluation
        instruments.Pass(policy, True, False, 500),
        instruments.Pass(policy, False, False, 500),  # 2: before training, by the untrained policy
        instruments.Pass(reference, False, False, 500),  # 3
    ]
    assert watch.reference_passes() == 3


def test_the_loops_time_is_that_of_its_stages_and_the_rest_of_their_steps(tmp_path):
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
    assert tables.overhead(values | {"wall": 21.0}) == pytest.approx(11 / 21)  # includes the runner's own time
    assert tables.loop_table(values)[2] == "| `sft` | 3.5 | 1.0 | 0.0 | 10.0 | 0.0 | 0.0 | 0.0 | 0.5 | 15.0 |"
    steps[1]["state"] = "reused"
    (tmp_path / "summary.json").write_text(json.dumps({"state": "done", "steps": steps}))
    assert run.loop_time(tmp_path) is None


def test_the_table_shows_which_targets_were_reached_and_missed(tmp_path):
    measured = measure.Measurements(tmp_path)
    model_settings = {"dtype": "float32", "activation_checkpointing": False, "rows": 16}
    for number, (mine, other) in enumerate([(4.0, 12.0), (3.0, 15.0)]):
        measured.get("dpo", "dpo-ours", number, lambda s=mine: model_settings | {"seconds": s, "peak_mib": 2048})
        measured.get("dpo", "dpo-trl", number, lambda s=other: model_settings | {"seconds": s, "peak_mib": 3072})
        if number == 0:
            measured.get("reward", "reward-ours", number, lambda: model_settings | {"seconds": 2.0})
            measured.get("reward", "reward-trl", number, lambda: model_settings | {"seconds": 4.0})
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
    ("words", "message"),
    [
        (["table", "--base_model", "nowhere", "--pairs", "x"], "nowhere is not a model folder"),
        (["table", "--base_model", "nowhere"], "--pairs is missing"),
        (["table", "--pairs", "x", "--num_pairs", "0"], "--num_pairs 0: expected 1 or more"),
        (["report", "--folder", "nowhere"], "no measurements in "),
    ],
)
def test_a_bench_without_its_inputs_is_an_error(words, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed", *words])
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        run.main()


@pytest.mark.parametrize(
    ("target", "given", "message"),
    [
        ("bench", ["BASE_MODEL=x"], "make bench needs PAIRS=PATH"),
        ("bench-full", [], "make bench-full needs BASE_MODEL=PATH"),
    ],
)
def test_make_bench_names_missing_inputs(target, given, message):
    done = subprocess.run(["make", "-n", target, *given], cwd=measure.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode and message in done.stderr
