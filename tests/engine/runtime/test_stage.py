"""The life of a stage: its lock, its record, its refusals, its end and its files.

prepare_data is the example, because it loads no torch.
"""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from data_schemas.artifact import Artifact
from data_schemas.files import read_json
from engine.runtime import folder as stage_folder
from tests.patience import PATIENCE
from tests.stage_runs import ROOT
from tests.stages_by_hand import by_hand, refusal


def test_the_record_comes_last_and_names_everything(words, tmp_path):
    done = by_hand("prepare_data", *words, "--step", "prepare_data", "--seed", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = Artifact.read(tmp_path / "out")
    assert record is not None and not record.missing(tmp_path / "out")
    assert (record.stage, record.step, record.keys["seed"]) == ("prepare_data", "prepare_data", 3)
    assert record.keys["validation_share"] == 0.05, "defaults are written out too"
    assert record.inputs == {"instructions": str(tmp_path / "conversations.jsonl")}
    assert not {"output_dir", "report_to", "use_cpu"} & set(record.keys), "how it was run is no part of what it is"
    assert record.outputs["instructions.train"] == "instructions.train.jsonl"
    assert {"torch", "trl"} <= set(record.versions)
    outcome = read_json(tmp_path / "out" / "outcome.json")
    assert outcome is not None and abs(sum(outcome.pop("seconds").values()) - record.seconds) < 0.5
    used = outcome.pop("used")
    assert (used["processes"], used["peak_memory"] > 10**6, bool(used["device"])) == (1, True, True)
    assert outcome == {"state": "done", "cause": "", "hint": "", "kind": ""}
    newest = max((path for path in (tmp_path / "out").iterdir()), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name in ("artifact.json", "log.txt")  # it is logged afterwards
    assert "complete: " in (tmp_path / "out" / "log.txt").read_text()


def test_a_finished_folder_is_refused_and_stays_as_it_is(words, tmp_path):
    assert by_hand("prepare_data", *words, cwd=tmp_path).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json*")}
    said = refusal(by_hand("prepare_data", *words, cwd=tmp_path))
    assert said == (
        f"error: {tmp_path / 'out'} holds a finished stage (artifact.json); choose another output_dir, or move it away"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json*")} == before


def test_an_unfinished_folder_is_resumed_only_with_the_same_keys(words, tmp_path):
    assert by_hand("prepare_data", *words, "--make_data", "makers:broken", cwd=tmp_path).returncode == 1
    said = refusal(by_hand("prepare_data", *words, "--make_data", "makers:broken", "--seed", "4", cwd=tmp_path))
    assert said == (
        f"error: {tmp_path / 'out'} holds an unfinished prepare_data with other keys (seed); "
        "choose another output_dir, or move it away"
    )
    said = refusal(by_hand("prepare_data", *words, cwd=tmp_path))
    assert "(make_data)" in said
    # Runtime keys may change, and the function was corrected.
    (tmp_path / "makers.py").write_text("def broken(folder, *, seed):\n    pass\n")
    # The seconds of the starts that were interrupted count too.
    timing = tmp_path / "out" / "timing.json"
    assert set(json.loads(timing.read_text())) == {"other"}
    timing.write_text('{"load": 500, "other": 300}')
    again = by_hand("prepare_data", *words, "--make_data", "makers:broken", "--log_level", "warning", cwd=tmp_path)
    record = Artifact.read(tmp_path / "out")
    assert again.returncode == 0 and record is not None and 800 < record.seconds < 1000
    assert not timing.exists()


def test_a_key_that_the_stage_refused_may_be_corrected_in_the_same_folder(words, tmp_path):
    assert by_hand("prepare_data", *words, "--judge_share", "2", cwd=tmp_path).returncode == 2
    assert by_hand("prepare_data", *words, cwd=tmp_path).returncode == 0


def test_a_folder_that_another_process_writes_is_refused(words, tmp_path):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711\n")
        file.flush()
        said = refusal(by_hand("prepare_data", *words, cwd=tmp_path))
    assert said == f"error: {tmp_path / 'out'} is in use by another process (pid 4711); wait for it or stop it"
    assert by_hand("prepare_data", *words, cwd=tmp_path).returncode == 0


def test_a_stage_ends_when_its_runner_has_died(words, tmp_path):
    runner = subprocess.Popen(["sleep", "600"])
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "stages" / "prepare_data.py"), *map(str, words), "--make_data", "makers:slow"],
        cwd=tmp_path,
        env=os.environ | {"ALIGNLOOP_RUNNER_PID": str(runner.pid)},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "made" / "begun").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        runner.kill()
        runner.wait()
        assert process.wait(timeout=PATIENCE) == 70
    finally:
        runner.kill()
        process.kill()
    assert Artifact.read(tmp_path / "out") is None


def test_an_error_is_recorded_in_outcome_json_with_a_hint(words, tmp_path):
    done = by_hand("prepare_data", *words, "--make_data", "makers:broken", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith(f"; see {tmp_path / 'out' / 'log.txt'}")
    assert "Traceback (most recent call last)" in (tmp_path / "out" / "log.txt").read_text()
    outcome = read_json(tmp_path / "out" / "outcome.json")
    assert outcome["cause"] == "RuntimeError: CUDA out of memory: tried to allocate 2 GiB"
    assert (outcome["state"], outcome["kind"]) == ("failed", "error")
    assert "lower per_device_train_batch_size" in outcome["hint"]
    assert Artifact.read(tmp_path / "out") is None


def test_an_interrupted_stage_reports_it(words, tmp_path):
    done = by_hand("prepare_data", *words, "--make_data", "makers:interrupted", cwd=tmp_path)
    assert done.returncode == 130
    assert read_json(tmp_path / "out" / "outcome.json")["state"] == "interrupted"


@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        ("prepare_data", ["--seed", "3"], "error: output_dir is missing: the folder this stage writes"),
        (
            "prepare_data",
            ["--output_dir", "out", "--seeed", "3"],
            "error: prepare_data: unknown key 'seeed' of stage prepare_data; did you mean 'seed'?",
        ),
        (
            "prepare_data",
            ["--output_dir", "out"],
            "error: prepare_data has nothing to read: give make_data, documents, instructions or preferences",
        ),
        (
            "rejection_sampling",
            ["--prompts", "p.jsonl", "--policies", "m", "--output_dir", "out"],
            "error: rejection_sampling: reward_model is missing (the reward model that ranks)",
        ),
    ],
)
def test_what_is_missing_is_one_line(stage, words, message, tmp_path):
    assert refusal(by_hand(stage, *words, cwd=tmp_path)) == message


def test_help_shows_our_own_keys_first_and_exits_with_0(tmp_path):
    done = by_hand("sft", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.index("--train_data") < done.stdout.index("keys of TRL") < done.stdout.index("  --learning_rate")
    assert len(done.stdout.splitlines()) < 60 and not any(tmp_path.iterdir())


def test_a_users_own_folders_do_not_mask_ours(words, tmp_path):
    for name in ("engine", "stages", "pipeline", "data_schemas"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    assert by_hand("prepare_data", *words, cwd=tmp_path).returncode == 0


def test_the_first_process_waits_for_the_others_before_it_clears_up(tmp_path, monkeypatch):
    """Other processes may still read the first one's answers in `checkpoints`."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    (tmp_path / "checkpoints").mkdir()
    waiting = threading.Thread(target=stage_folder.wait_for_other_ranks, args=(tmp_path,), daemon=True)
    waiting.start()
    for rank in (2, 1):
        waiting.join(0.2)
        assert waiting.is_alive(), f"ended before rank {rank}"
        stage_folder.rank_done_file(tmp_path, rank).touch()
    waiting.join(10)
    assert not waiting.is_alive()
