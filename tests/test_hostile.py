"""A hostile disk and machine: full or read-only disks, files that were cut or changed by hand, clocks that jump, two
runs on one folder, folders that were moved. Nothing whole is damaged, nothing damaged is taken for whole."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import call_stage, metrics_of, run_here, weights_of
from test_runner import World, alive, copied
from test_stages import MAKERS, ROOT, by_hand, refusal

from data_schemas import artifact, files
from data_schemas.artifact import Artifact, files_below
from data_schemas.errors import ConfigError
from data_schemas.files import read_json, write_atomically
from data_schemas.rows import Conversation, Message, Prompt
from engine.judging import scoring
from engine.models.loading import identity_of
from engine.runtime import complete_folder, journal, preemption
from engine.runtime import stage as stage_module
from engine.runtime.complete_folder import move_into_place
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.tokens.tables import table
from engine.training import checkpoints
from pipeline.state.fingerprint import FileHashes
from pipeline.state.run import finished_part
from pipeline.state.verifying import check_run
from stages import annotate, average_models

NO_ROUND = ("run", "toy.yaml", "--set", "rounds=0")
STEPS = ["prepare_data", "prepare_base", "round-0.sft", "round-0.evaluate_policy"]
DISK_FULL = "the disk is full: free some space and run the same command again; what is finished is kept"
READ_ONLY = "the disk takes no writes any more: see why it is mounted read-only, and run the same command again"


class Disk:
    """A file system of its own in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler = folder, folder / "filler"

    def fill(self, *, leave_kilobytes: int = 0) -> None:
        free = shutil.disk_usage(self.folder).free - leave_kilobytes * 1024
        with self.filler.open("ab") as file:
            file.write(bytes(max(0, free)))

    def empty(self) -> None:
        self.filler.unlink()

    def read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Disk]]:
    """small_disk(megabytes)"""
    disks: list[Disk] = []

    def mount(megabytes: int) -> Disk:
        folder = tmp_path / f"disk-{len(disks)}"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            pytest.skip(f"no tmpfs can be mounted here: {error}")
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        disks.append(Disk(folder))
        return disks[-1]

    yield mount
    for disk in disks:
        subprocess.run(["umount", "-l", disk.folder], check=True)


def leftovers(folder: Path) -> list[str]:
    """What was being written and is of no use any more."""
    names = [path for path in folder.rglob("*") if ".partial" in path.name]
    return [str(path.relative_to(folder)) for path in [*names, *folder.glob("checkpoints/.saving/*")]]


# -- a full disk: stages ----------------------------------------------------------------------------------------------

TRAINING = {"max_steps": 4, "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "learning_rate": 3e-3}


def training(tiny_model: Path, rows: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": tiny_model,
        "train_data": [rows / "conversations.jsonl"],
        "eval_data": [rows / "conversations_eval.jsonl"],
        **TRAINING,
    }


@pytest.fixture(scope="module")
def trained(tiny_model, rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "sft"
    run_here("sft", folder, **training(tiny_model, rows))
    return folder


def assert_says_how_it_failed(folder: Path, printed: str, hint: str = DISK_FULL) -> None:
    lines = [line for line in printed.splitlines() if line]
    assert lines[-1].startswith("error: ") and lines[-1].endswith(f"; {hint}")
    assert "Traceback" not in printed and "Logging error" not in printed
    assert sum(line.startswith("error: ") for line in lines) == 1
    outcome = read_json(folder / "outcome.json")  # none where the disk takes no byte more
    assert outcome is None or (outcome["state"], outcome["hint"]) == ("failed", hint)
    assert Artifact.read(folder) is None


def test_a_disk_that_is_full_within_a_checkpoint(trained, tiny_model, rows, small_disk, tmp_path, monkeypatch, capfd):
    disk = small_disk(8)
    folder, keys = disk.folder / "sft", training(tiny_model, rows)
    save = complete_folder.write_marker

    # The second checkpoint's weights do not fit; in the next attempt its optimizer's state, which torch.save says in
    # its own way.
    for kilobytes in (20, 260):

        def mark(marked: Path, *content: Any, kilobytes: int = kilobytes) -> None:
            save(marked, *content)
            if marked.name == ".best-4.partial":
                disk.fill(leave_kilobytes=kilobytes)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "mark", mark)
            assert call_stage("sft", folder, **keys) == 1
        assert_says_how_it_failed(folder, capfd.readouterr().err)
        assert complete_folder.find_damage(folder / "checkpoints" / "checkpoint-2") == ""
        assert not (folder / "checkpoints" / "checkpoint-4").exists()
        disk.empty()
    (folder / "metrics.jsonl").unlink()  # a checkpoint goes on from its own
    run_here("sft", folder, **keys)
    log = (folder / "log.txt").read_text()
    assert log.count("resuming from step 2\n") == 2
    assert_same_model(folder, trained)
    assert not leftovers(folder)


def assert_same_model(one: Path, other: Path) -> None:
    first, second = weights_of(one / "model"), weights_of(other / "model")
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)
    wanted = {key: value for key, value in metrics_of(other).items() if key[1] in ("loss", "eval_loss")}
    assert {key: metrics_of(one)[key] for key in wanted} == wanted


def test_a_disk_that_is_full_or_fails_within_answers_rows_or_record(
    tiny_model, rows, small_disk, tmp_path, monkeypatch, capfd
):
    (tmp_path / "judge.py").write_text("def score(prompt, answer, ended):\n    return float(len(answer))\n")
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    disk = small_disk(2)
    folder = disk.folder / "annotate"
    keys = {
        "prompts": [rows / "prompts.jsonl"],
        "policies": [tiny_model],
        "annotator_function": "judge:score",
        "max_new_tokens": 8,
        "keep_unfinished": True,
        "generation_batch_size": 1,
    }
    run_here("annotate", tmp_path / "undisturbed", **keys)
    capfd.readouterr()

    def fail() -> None:  # what the kernel makes of a disk with errors; a mount here would be busy
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def spoilt(own: Callable[..., Any], spoil: Callable[[], None], *, after: int) -> Callable[..., Any]:
        calls = []

        def call(*args: Any) -> Any:
            calls.append(args)
            if len(calls) == after + 1:
                spoil()
            return own(*args)

        return call

    for module, name, after, spoil, mend, hint, done in (
        (journal, "write_atomically", 1, fail, list, READ_ONLY, 1),
        (journal, "write_atomically", 2, disk.fill, disk.empty, DISK_FULL, 3),  # of five groups of answers
        (annotate, "write_rows", 0, disk.fill, disk.empty, DISK_FULL, 5),
        (stage_module, "files_below", 0, disk.fill, disk.empty, DISK_FULL, 5),  # for the record
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, spoilt(getattr(module, name), spoil, after=after))
            assert call_stage("annotate", folder, **keys) == 1
        mend()
        assert_says_how_it_failed(folder, capfd.readouterr().err, hint)
        assert len(list(folder.glob("checkpoints/answers-*/[0-9]*.json"))) == done
        assert not leftovers(folder)
        assert (folder / "pairs.train.jsonl").exists() == (module is stage_module)
    monkeypatch.setattr("engine.sampling.transformers_engine.write_answers", None)  # to call it would be an error
    record = run_here("annotate", folder, **keys)
    assert (folder / "pairs.train.jsonl").read_bytes() == (tmp_path / "undisturbed" / "pairs.train.jsonl").read_bytes()
    assert record.damage(folder) == []


def test_what_a_full_disk_took_of_a_file_is_removed(small_disk):
    disk = small_disk(1)
    (disk.folder / "file").write_text("old")
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            write_atomically(disk.folder / "file", "new" * 2**20)
    assert [path.name for path in disk.folder.iterdir()] == ["file"]
    assert (disk.folder / "file").read_text() == "old"


def test_a_killed_attempt_leaves_nothing_for_ever(rows, tmp_path):
    left = [
        ".pairs.jsonl.partial-7",
        "checkpoints/.train-1f.partial-7",
        "checkpoints/.best-3.partial",
        "checkpoints/answers-1f/.3.json.partial-7",
    ]
    for name in left:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("half")
    keys = {"instructions": [rows / "conversations.jsonl"], "evaluation_share": 0.3}
    shutil.move(tmp_path / "out" / "checkpoints", tmp_path / "kept")
    (tmp_path / "out" / "checkpoints").symlink_to(tmp_path / "kept")  # it goes with the record
    run_here("prepare_data", tmp_path / "out", **keys)
    assert not leftovers(tmp_path)


# -- a full disk: the pipeline ----------------------------------------------------------------------------------------

FULL_AT = """
from pathlib import Path
from pipeline.launch import runner
from pipeline.state import fingerprint, run, summary

disk, name, calls = Path(os.environ["DISK"]), os.environ["FULL_AT"], []

def full(module):
    own = module.write_atomically
    def write(path, text):
        calls.append(path.name)
        if path.name == name and calls.count(name) == int(os.environ["CALL"]):
            with (disk / "filler").open("ab") as file:
                file.write(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        own(path, text)
    module.write_atomically = write

for module in (fingerprint, runner, summary):
    full(module)
cli.main()
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> World:
    """A run of four toy steps; tests take a copy."""
    world = World(tmp_path_factory.mktemp("finished"))
    assert world.call(*NO_ROUND)[0] == 0
    assert world.launched() == STEPS
    return world


def states(world: World) -> set[str]:
    return set(world.states().values())


def assert_one_line(said: tuple[int, str, str], code: int, *parts: str) -> None:
    assert said[0] == code, said
    assert said[2].count("\n") == 1, said
    assert said[2].startswith("error: ")
    for part in parts:
        assert part in said[2]


@pytest.mark.parametrize(
    ("name", "call", "finished_steps"),
    [
        ("summary.json", 4, STEPS[:2]),
        ("fingerprint.json", 2, STEPS[:1]),
        (".hashes.json", 1, []),
    ],
)
def test_a_disk_that_is_full_within_the_runners_own_files(name, call, finished_steps, finished, small_disk, tmp_path):
    disk = small_disk(2)
    world = copied(finished, disk.folder)
    shutil.rmtree(world.work / "runs")
    world.command = tmp_path / "full.py"
    world.command.write_text(finished.command.read_text().replace("cli.main()", FULL_AT))
    said = world.call(*NO_ROUND, DISK=str(disk.folder), FULL_AT=name, CALL=str(call))
    disk.empty()
    assert_one_line(said, 1, "No space left on device", DISK_FULL)
    assert world.launched() == finished_steps
    assert [one.state for one in check_run(world.run_folder)].count("whole") == len(finished_steps)
    assert not any(one.problems for one in check_run(world.run_folder))
    assert not leftovers(world.run_folder)
    world.command = finished.command
    assert world.call(*NO_ROUND)[0] == 0
    assert world.launched() == STEPS[len(finished_steps) :]
    assert not leftovers(world.run_folder)


def test_a_stage_whose_output_a_full_disk_does_not_take_has_the_hint(finished, small_disk):
    disk = small_disk(2)
    world = copied(finished, disk.folder)
    for path in world.run_folder.glob("round-0.*"):
        shutil.rmtree(path)
    stage = finished.command.parent / "stages" / "sft.py"
    own = stage.read_text()
    stage.write_text(  # nothing that it could say would be kept
        f"import os\nfrom pathlib import Path\ntry:\n    Path({str(disk.filler)!r}).write_bytes(bytes(2**22))\n"
        "finally:\n    os._exit(1)\n"
    )
    try:
        code, _, err = world.call(*NO_ROUND)
    finally:
        stage.write_text(own)
    disk.empty()
    assert code == 1
    assert err.splitlines()[-1] == f"hint: {DISK_FULL}"
    assert world.call(*NO_ROUND)[0] == 0
    assert world.launched() == STEPS[2:]


def test_what_a_killed_run_was_writing_is_removed_by_the_next(finished, tmp_path):
    world = copied(finished, tmp_path / "work")
    (world.run_folder / ".summary.json.partial-7").write_text("half")
    assert world.call(*NO_ROUND)[0] == 0
    assert not leftovers(world.run_folder)


# -- a read-only disk -------------------------------------------------------------------------------------------------


def test_a_run_on_a_read_only_disk_is_read_and_not_gone_on_with(finished, small_disk):
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


# -- damaged by hand --------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_what_only_says_how_a_step_was_made_may_be_damaged(finished, tmp_path):
    world = copied(finished, tmp_path / "work")
    for name in ("config.yaml", "fingerprint.json", "console.txt"):
        cut(world.folder("round-0.sft") / name)
    cut(world.run_folder / ".hashes.json")
    cut(world.run_folder / "summary.json")
    assert_one_line(world.call("status", "runs/toy"), 2, "summary.json is not a run's summary; run the recipe again")
    assert_one_line(world.call("verify", "runs/toy"), 1, "round-0.sft-")
    # What it was made of cannot be told any more.
    assert "run    round-0.sft: never ran" in world.call("plan", *NO_ROUND[1:], "--set", "sft.seed=3")[1]
    assert world.call(*NO_ROUND)[0] == 0
    assert (world.launched(), states(world)) == ([], {"reused"})


def test_a_step_is_made_again_where_its_rows_are_cut_and_verify_sees_a_change_of_the_same_size(finished, tmp_path):
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
        "round-0.sft": ["model/config.json is not what was written"],
        "round-0.evaluate_policy": [],
    }
    assert world.call(*NO_ROUND)[0] == 0
    assert world.launched() == ["prepare_data"]
    shutil.move(world.folder("round-0.sft"), tmp_path / "away")  # as verify says
    assert world.call(*NO_ROUND)[0] == 0
    assert world.launched() == ["round-0.sft"]
    assert not any(one.problems for one in check_run(world.run_folder))


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"%s": 3}', '{"%s": [5, 6]}', "\x00\x00"])
def test_damaged_hashes_are_made_anew(content, tmp_path):
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
    """Their answers must not be taken for one another's."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
        os.utime(tmp_path / name / "model.safetensors", (0, 0))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    os.utime(tmp_path / "copy" / "model.safetensors", (5, 5))
    one, two, copy = (identity_of(str(tmp_path / name)) for name in ("one", "two", "copy"))
    assert one == copy != two


def save_checkpoint(folder: Path, step: int) -> Path:
    """With a best model of its own, marked as the trainer does it."""
    for name in (f"{checkpoints.SAVING}/checkpoint-{step}", f".best-{step}.partial"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_text(f"weights {step}")
    best = folder / f".best-{step}.partial"
    complete_folder.write_marker(best)
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
            "its best model, of step 4, is damaged: model.safetensors is not what was written",
        ),
        ("checkpoint-4/whole.json", ('"best_step": 4', '"best_step": 2'), "it has no marker"),
    ],
)
def test_a_damaged_best_model_or_an_edited_marker_is_not_gone_on_from(path, change, reason, tmp_path, caplog):
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
def test_a_damaged_table_of_tokens_is_made_again(damage, tokenizer, tmp_path, caplog):
    stage = Stage("test", tmp_path, {}, Tracker(tmp_path, active=False), is_main=True)
    rows = [Conversation(messages=[Message(role="user", content="a"), Message(role="assistant", content="b")])]
    built = []

    def build() -> list[dict[str, Any]]:
        built.append(True)
        return [{"input_ids": [1, 2, 3]}]

    def read() -> list[int]:
        return table(stage, "train", rows, tokenizer, build, version="1")[0]["input_ids"]

    assert read() == read() == [1, 2, 3]
    assert len(built) == 1
    (data,) = tmp_path.glob("checkpoints/train-*/*.arrow")
    if damage == "cut":
        cut(data)
    elif damage == "zeros":  # as a power cut leaves them: of the right size, and tokens to read
        content = data.read_bytes()
        at = content.rindex((3).to_bytes(8, "little"))
        data.write_bytes(content[:at] + bytes(8) + content[at + 8 :])
    else:
        (data.parent / "whole.json").unlink()
    assert read() == [1, 2, 3]
    assert len(built) == 2
    assert "is made again" in caplog.text


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


def test_checkpoints_whose_keys_are_not_known_any_more_are_not_gone_on_from(rows, tmp_path):
    (tmp_path / "out" / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "out" / "identity.json").write_text('{"stage": "prepare_da')
    with pytest.raises(ConfigError, match=r"identity\.json is not a stage's; choose another output_dir"):
        call_stage("prepare_data", tmp_path / "out", instructions=[rows / "conversations.jsonl"])
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-2").is_dir()


def test_a_record_comes_after_its_files_are_on_the_disk_and_names_none_that_is_gone(tmp_path, monkeypatch):
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


# -- a clock that jumps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [2000, 2100])
def test_times_of_files_count_for_nothing(year, finished, tmp_path):
    world = copied(finished, tmp_path / "work")
    then = time.mktime((year, 1, 1, 0, 0, 0, 0, 0, 0))
    for path in world.work.rglob("*"):
        os.utime(path, (then, then), follow_symlinks=False)
    assert world.call(*NO_ROUND)[0] == 0
    assert (world.launched(), states(world)) == ([], {"reused"})


def test_a_clock_that_runs_backwards_changes_nothing(finished, tmp_path):
    world = copied(finished, tmp_path / "work")
    shutil.rmtree(world.run_folder)
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(
        "import itertools, time\nhours = itertools.count()\ntime.time = lambda: 1e9 - 3600 * next(hours)\n"
    )
    path = os.pathsep.join([str(tmp_path / "clock"), os.environ.get("PYTHONPATH", "")])
    code, out, err = world.call(*NO_ROUND, PYTHONPATH=path)
    assert (code, err) == (0, "")
    here = json.loads((world.folder("round-0.sft") / "here.json").read_text())
    assert here["began"] <= 1e9, "the stages' clock was not turned back"
    assert world.launched() == STEPS
    assert all(0 <= step["seconds"] < 60 for step in world.summary()["steps"])
    assert " -" not in out.partition("|")[0]
    assert world.call(*NO_ROUND)[0] == 0
    assert (world.launched(), states(world)) == ([], {"reused"})


# -- two on one folder ------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_also_between_two_steps(finished, tmp_path):
    world = copied(finished, tmp_path / "work")
    shutil.rmtree(world.run_folder)
    first = world.start(*NO_ROUND)
    try:
        deadline = time.monotonic() + 60
        while not list(world.run_folder.glob("prepare_base-*/artifact.json")):
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # the stage has ended, the runner has not seen it
        assert_one_line(world.call(*NO_ROUND), 2, f"is in use by another run (pid {first.pid})")
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=60)
        assert first.returncode == 0
    finally:
        first.kill()
    assert world.launched() == STEPS


HOLD = """
import fcntl, os, socket, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0); file.write(f"{os.getpid()} {socket.gethostname()}"); file.flush()
print("held", flush=True)
time.sleep(60)
"""


def test_a_stage_by_hand_in_a_steps_folder_is_neither_ended_nor_disturbed(finished, tmp_path):
    world = copied(finished, tmp_path / "work")
    folder = world.folder("round-0.sft")
    (folder / "artifact.json").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    words = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as stage:
        assert stage.stdout is not None and stage.stdout.readline() == "held\n"
        said = world.call(*NO_ROUND)
        assert alive(stage.pid)
        stage.kill()
    assert_one_line(said, 2, f"{folder} is in use by another run (pid {stage.pid} {socket.gethostname()})")
    assert {path: path.read_bytes() for path in before} == before
    assert world.launched() == []
    assert world.call(*NO_ROUND)[0] == 0
    assert world.launched() == ["round-0.sft"]


def test_of_two_stages_by_hand_in_one_folder_the_second_is_refused(rows, tmp_path):
    (tmp_path / "makers.py").write_text(MAKERS.replace("time.sleep(60)", "time.sleep(1.5)"))
    words = [
        "--instructions",
        rows / "conversations.jsonl",
        "--evaluation_share",
        "0.3",
        "--make_data",
        "makers:slow",
        "--output_dir",
        tmp_path / "out",
    ]
    command = [sys.executable, str(ROOT / "stages" / "prepare_data.py"), *map(str, words)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out" / "made" / "begun").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        said = refusal(by_hand("prepare_data", *words, cwd=tmp_path))
        assert said.startswith(f"error: {tmp_path / 'out'} is being written by another process (pid {first.pid} on ")
    assert first.returncode == 0
    record = Artifact.read(tmp_path / "out")
    assert record is not None and record.damage(tmp_path / "out") == []


# -- a folder elsewhere -----------------------------------------------------------------------------------------------


def test_a_run_that_was_moved_is_reused_and_goes_on_without_its_old_place(finished, tmp_path):
    world, old, new = copied(finished, tmp_path / "old"), tmp_path / "old", tmp_path / "another name"
    old.rename(new)
    world.work, world.run_folder = new, new / "runs" / "toy"
    links = {link.name: link.resolve() for link in (world.run_folder / "steps").iterdir()}
    assert links == {step: world.folder(step) for step in STEPS}
    # As on another machine, where these numbers are other processes.
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        for folder in (world.run_folder, world.folder("round-0.sft")):
            (folder / ".lock").write_text(f"{stranger.pid} {socket.gethostname()}\n")
        assert "stopped" not in world.call("status", "runs/toy")[1]
        assert world.call(*NO_ROUND)[0] == 0
        assert (world.launched(), states(world)) == ([], {"reused"})
        assert not any(one.problems for one in check_run(world.run_folder))

        shutil.rmtree(world.folder("round-0.evaluate_policy"))
        (world.folder("round-0.sft") / "artifact.json").unlink()
        assert world.call(*NO_ROUND)[0] == 0
        assert alive(stranger.pid)
        stranger.kill()
    assert world.launched() == ["round-0.sft", "round-0.evaluate_policy"]
    for step in ("round-0.sft", "round-0.evaluate_policy"):
        text = " ".join((world.folder(step) / "config.yaml").read_text().split())  # YAML folds a long path
        assert str(new) in text and str(old) not in text and str(finished.work) not in text


def test_an_unfinished_stage_that_was_moved_goes_on_from_its_checkpoint(
    trained, tiny_model, rows, tmp_path, monkeypatch
):
    keys = training(tiny_model, rows)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "_finish", lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGINT))
        assert call_stage("sft", tmp_path / "here" / "sft", **keys) == 130
    signal.signal(signal.SIGINT, before)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setattr("engine.training.loop.TrainingLoop.training_step", None)  # to call it would be an error
    run_here("sft", tmp_path / "there" / "sft", **keys)
    assert_same_model(tmp_path / "there" / "sft", trained)


# -- SIGTERM and a kill at bad moments --------------------------------------------------------------------------------


def test_a_function_that_scores_is_not_called_again_after_sigterm(tmp_path, monkeypatch):
    (tmp_path / "slow_judge.py").write_text(
        "import os, signal\ncalls = []\n\ndef score(prompt, answer, ended):\n    calls.append(answer)\n"
        "    if len(calls) == 4:\n        os.kill(os.getpid(), signal.SIGTERM)\n    return float(len(answer))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import slow_judge  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(scoring, "FUNCTION_BATCH", 3)
    stage = Stage("test", tmp_path, {}, Tracker(tmp_path, active=False), is_main=True)
    prompt = Prompt(prompt=[Message(role="user", content="?")])
    answers = [scoring.ScoringItem(prompt, text, True) for text in ("a", "bb", "ccc", "dddd", "eeeee", "f", "g")]

    def score() -> list[float]:
        return scoring.score_by_function(stage, "scores", "slow_judge:score", answers, timeout=9)

    with preemption.listen_for_signals(), pytest.raises(preemption.Preempted):
        score()
    assert slow_judge.calls == ["a", "bb", "ccc", "dddd"]
    assert score() == [1, 2, 3, 4, 5, 1, 1]
    assert slow_judge.calls[4:] == ["dddd", "eeeee", "f", "g"], "the finished batch is kept"


def test_an_average_that_was_killed_before_its_record_is_made_again(tiny_model, rows, tmp_path, monkeypatch):
    keys = {
        "models": [tiny_model, tiny_model],
        "averaged_stage": "sft",
        "eval_data": [rows / "conversations_eval.jsonl"],
    }

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(average_models, "check_weights", killed)
        assert call_stage("average_models", tmp_path / "average", **keys) == 130
    record = run_here("average_models", tmp_path / "average", **keys)
    assert record.damage(tmp_path / "average") == []


def test_an_average_that_a_full_disk_does_not_take_is_an_error(tiny_model, small_disk, tmp_path):
    from engine.models.averaging import write_average

    disk = small_disk(1)
    disk.fill(leave_kilobytes=100)
    with pytest.raises(OSError, match="No space left"):
        write_average([tiny_model, tiny_model], disk.folder / "average", weights=[0.5, 0.5])
    assert not (disk.folder / "average").exists()
