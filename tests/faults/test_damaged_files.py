"""Files that were truncated, changed or replaced by hand: a damaged file is never taken for valid."""

import os
import shutil
from pathlib import Path

import pytest

from data_schemas import artifact, files
from data_schemas.artifact import Artifact, files_below
from data_schemas.errors import DataError
from data_schemas.files import read_json
from data_schemas.rows import Conversation, Message
from engine.models.loading import identity_of
from engine.runtime.complete_folder import move_into_place, write_marker
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.tokens.tables import table
from engine.tokens.token_rows import TokenDialog
from engine.training import checkpoints
from pipeline.state.fingerprint import FileHashes
from pipeline.state.run import finished_part
from pipeline.state.verifying import check_run
from tests.faults.runs import NO_ROUND, assert_one_line, states
from tests.pipeline.toy_house import copied
from tests.stage_runs import call_stage, metrics_of


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_files_that_only_describe_how_a_step_was_run_may_be_damaged(finished, tmp_path):
    world = copied(finished, tmp_path / "work")
    for name in ("config.yaml", "fingerprint.json", "console.txt"):
        cut(world.folder("round-0.sft") / name)
    cut(world.run_folder / ".hashes.json")
    cut(world.run_folder / "summary.json")
    assert_one_line(
        world.call("status", "runs/toy"), 2, "summary.json is not the summary of a run; run the recipe again"
    )
    assert_one_line(world.call("verify", "runs/toy"), 1, "round-0.sft-")
    # What it was made from is no longer known.
    assert "run    round-0.sft: not run yet" in world.call("plan", *NO_ROUND[1:], "--set", "sft.seed=3")[1]
    assert world.call(*NO_ROUND)[0] == 0
    assert (world.launched(), states(world)) == ([], {"reused"})


def test_a_step_with_truncated_rows_runs_again_and_verify_finds_a_change_of_the_same_size(finished, tmp_path):
    world = copied(finished, tmp_path / "work")
    rows, model = (
        world.folder("prepare_data") / "instructions.train.jsonl",
        world.folder("round-0.sft") / "model" / "config.json",
    )
    cut(rows)
    model.write_bytes(model.read_bytes()[::-1])
    problems = {one.folder.name.rpartition("-")[0]: one.problems for one in check_run(world.run_folder)}
    assert problems == {
        "prepare_data": ["instructions.train.jsonl has 1 bytes, not 2"],
        "prepare_base": [],
        "round-0.sft": ["model/config.json was changed after it was written"],
        "round-0.evaluate_policy": [],
    }
    assert world.call(*NO_ROUND)[0] == 0
    assert world.launched() == ["prepare_data"]
    shutil.move(world.folder("round-0.sft"), tmp_path / "away")  # as verify says
    assert world.call(*NO_ROUND)[0] == 0
    assert world.launched() == ["round-0.sft"]
    assert not any(one.problems for one in check_run(world.run_folder))


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"%s": 3}', '{"%s": [5, 6]}', "\x00\x00"])
def test_damaged_hashes_are_computed_again(content, tmp_path):
    data, cache = tmp_path / "data", tmp_path / ".hashes.json"
    data.write_text("12345")
    cache.write_text(content.replace("%s", str(data)))
    hashes = FileHashes(cache)
    assert hashes.of(data) == "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
    hashes.save()
    assert list(read_json(cache) or {}) == [str(data)]


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_seen_by_its_inode(tmp_path):
    data, cache = tmp_path / "data", tmp_path / ".hashes.json"
    data.write_text("12345")
    hashes = FileHashes(cache)
    first, times = hashes.of(data), (data.stat().st_atime_ns, data.stat().st_mtime_ns)
    hashes.save()
    (tmp_path / "other").write_text("54321")
    (tmp_path / "other").replace(data)
    os.utime(data, ns=times)
    assert FileHashes(cache).of(data) != first


def test_two_models_of_one_size_and_time_are_two(tmp_path):
    """The answers of one must not be used for the other."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
        os.utime(tmp_path / name / "model.safetensors", (0, 0))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    os.utime(tmp_path / "copy" / "model.safetensors", (5, 5))
    one, two, copy = (identity_of(str(tmp_path / name)) for name in ("one", "two", "copy"))
    assert one == copy != two


def save_checkpoint(folder: Path, step: int) -> Path:
    """Saves a checkpoint with a separate best model, marked as the trainer marks it."""
    for name in (f"{checkpoints.SAVING}/checkpoint-{step}", f".best-{step}.partial"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_text(f"weights {step}")
    best = folder / f".best-{step}.partial"
    write_marker(best)
    move_into_place(best, checkpoints.best_folder(folder, step))
    return checkpoints.publish(folder, checkpoints.Progress(step, best_step=step, num_tokens=0, processes=1))


@pytest.mark.parametrize(
    ("path", "change", "reason"),
    [
        (
            "best-4/model.safetensors",
            ("weights 4", "weigh"),
            "its best model, of step 4, is damaged: model.safetensors has 5 bytes, not 9",
        ),
        (
            "best-4/model.safetensors",
            ("weights 4", "weights 5"),
            "its best model, of step 4, is damaged: model.safetensors was changed after it was written",
        ),
        ("checkpoint-4/whole.json", ('"best_step": 4', '"best_step": 2'), "it has no valid marker"),
    ],
)
def test_a_damaged_best_model_or_an_edited_marker_is_not_resumed_from(path, change, reason, tmp_path, caplog):
    for step in (2, 4):
        save_checkpoint(tmp_path, step)
    assert checkpoints.newest_complete(tmp_path, processes=1)[1].step == 4  # pyright: ignore[reportOptionalSubscript]
    text = (tmp_path / path).read_text()
    assert change[0] in text
    (tmp_path / path).write_text(text.replace(*change))
    found = checkpoints.newest_complete(tmp_path, processes=1)
    assert found is not None and found[1].step == 2
    assert caplog.messages == [f"checkpoint-4 is not resumed from: {reason}"]


def test_a_copy_of_a_checkpoint_by_hand_stops_no_plan(tmp_path):
    for name in ("checkpoint-4", "checkpoint-12", "checkpoint-12 (copy)", "checkpoint-12-old"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "whole.json").write_text("{}")
    assert finished_part(tmp_path) == "checkpoint-12"


@pytest.mark.parametrize("damage", ["cut", "zeros", "no marker"])
def test_a_damaged_table_of_tokens_is_computed_again(damage, tokenizer, tmp_path, caplog):
    stage = Stage("test", tmp_path, {}, Tracker(tmp_path, active=False), is_main=True)
    rows = [Conversation(messages=[Message(role="user", content="a"), Message(role="assistant", content="b")])]
    built = []

    def build() -> list[TokenDialog]:
        built.append(True)
        return [TokenDialog(input_ids=[1, 2, 3], labels=[1, 2, 3])]

    def read() -> list[int]:
        return table(stage, "train", rows, tokenizer, build, version="1")[0]["input_ids"]

    assert read() == read() == [1, 2, 3]
    assert len(built) == 1
    (data,) = tmp_path.glob("checkpoints/train-*/*.arrow")
    if damage == "cut":
        cut(data)
    elif damage == "zeros":  # as a power cut leaves them: of the right size, and readable as tokens
        content = data.read_bytes()
        at = content.rindex((3).to_bytes(8, "little"))
        data.write_bytes(content[:at] + bytes(8) + content[at + 8 :])
    else:
        (data.parent / "whole.json").unlink()
    assert read() == [1, 2, 3]
    assert len(built) == 2
    assert "is written again" in caplog.text


@pytest.mark.parametrize("tail", [b'{"step": 2, "lo', b"\x00\x00\x00", b"\xff\xfe", b"[1]\n", b'{"loss": 1}\n', b"7"])
def test_a_damaged_last_line_of_the_metrics_is_left_out(tail, tmp_path):
    Tracker(tmp_path, active=True).log({"loss": 2.0}, step=1)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    again = Tracker(tmp_path, active=True)
    assert again.history("loss") == {1: 2.0}
    again.forget_after(1)
    again.log({"loss": 1.0}, step=2)
    assert metrics_of(tmp_path) == {(1, "loss"): 2.0, (2, "loss"): 1.0}


def test_checkpoints_with_keys_that_no_longer_exist_are_not_resumed_from(rows, tmp_path):
    (tmp_path / "out" / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "out" / "identity.json").write_text('{"stage": "prepare_da')
    with pytest.raises(DataError, match=r"identity\.json was not written by a stage; choose another output_dir"):
        call_stage("prepare_data", tmp_path / "out", instructions=[rows / "conversations.jsonl"])
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-2").is_dir()


def test_a_record_is_written_after_its_files_are_synced_and_names_only_existing_files(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("1")
    (tmp_path / "rows.jsonl").write_text("2")
    outputs = {"model": "model", "rows": "rows.jsonl"}
    record = Artifact(
        stage="sft",
        step="",
        recipe_version=1,
        keys={},
        inputs={},
        outputs=outputs,
        files=files_below(tmp_path, outputs),
        metrics={},
    )
    synced: list[str] = []
    own = files.sync

    def sync(path: Path) -> None:
        assert (tmp_path / "artifact.json").exists() == (path == tmp_path and bool(synced) and len(synced) == 4)
        synced.append(path.name)
        own(path)

    monkeypatch.setattr(artifact, "sync", sync)
    record.write(tmp_path)
    assert sorted(synced[:4]) == sorted(["model", "weights", "rows.jsonl", tmp_path.name])
    assert synced[4:] == [tmp_path.name]
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"model was written and is gone"):
        files_below(tmp_path, outputs)
