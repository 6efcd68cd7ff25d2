"""A read-only disk: runs and models on it are read, and nothing is written."""

import shutil
from pathlib import Path

from tests.faults.runs import NO_ROUND, STEPS, assert_one_line, training
from tests.pipeline.toy_house import copied
from tests.stage_runs import run_here
from tests.stages_by_hand import by_hand


def test_a_run_on_a_read_only_disk_is_read_and_not_continued(finished, small_disk):
    disk = small_disk(2)
    # A copy's files have other inodes: its hashes are stale.
    stale, missing = copied(finished, disk.folder / "stale"), copied(finished, disk.folder / "missing")
    (missing.run_folder / ".hashes.json").unlink()
    disk.read_only()
    for world in (stale, missing):
        code, out, err = world.call("plan", *NO_ROUND[1:])
        assert (code, err) == (0, "")
        assert f"{len(STEPS)} reuse, 0 resume, 0 run" in out
    assert [stale.call(word, "runs/toy")[0::2] for word in ("status", "verify")] == [(0, ""), (0, "")]
    assert_one_line(stale.call(*NO_ROUND), 1, "Read-only file system", "runs/toy/.lock")


def test_a_stage_by_hand_into_a_read_only_disk_is_one_line(rows, small_disk, tmp_path):
    disk = small_disk(1)
    (disk.folder / "begun").mkdir()
    disk.read_only()
    for name in ("begun", "new"):
        words = ["--instructions", rows / "conversations.jsonl", "--output_dir", disk.folder / name]
        done = by_hand("prepare_data", *words, cwd=tmp_path)
        assert_one_line((done.returncode, done.stdout, done.stderr), 1, "Read-only file system", f"/{name}")


def test_a_model_and_rows_on_a_read_only_disk_are_trained_on(tiny_model, rows, small_disk, tmp_path):
    disk = small_disk(4)
    model, data = shutil.copytree(tiny_model, disk.folder / "model"), shutil.copytree(rows, disk.folder / "rows")
    disk.read_only()
    keys = training(Path(model), Path(data)) | {"max_steps": 1, "save_strategy": "no"}
    assert not run_here("sft", tmp_path / "sft", **keys).missing(tmp_path / "sft")
