"""A full disk: one line with a hint, no invalid record, and what was finished is kept."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_schemas.artifact import Artifact
from data_schemas.files import read_json, write_atomically
from engine.runtime import complete_folder, journal
from engine.runtime import stage as stage_module
from engine.runtime.complete_folder import find_damage
from engine.sampling import prompts as round_prompts
from engine.training import loop
from pipeline.state.verifying import check_run
from tests.faults.disks import DISK_FULL, READ_ONLY, leftovers
from tests.faults.runs import NO_ROUND, STEPS, assert_one_line, assert_same_model, training
from tests.pipeline.toy_house import copied
from tests.stage_runs import call_stage, run_here

# -- a full disk: stages ----------------------------------------------------------------------------------------------


def assert_says_how_it_failed(folder: Path, printed: str, hint: str = DISK_FULL) -> None:
    lines = [line for line in printed.splitlines() if line]
    assert lines[-1].startswith("error: ") and lines[-1].endswith(f"; {hint}")
    assert "Traceback" not in printed and "Logging error" not in printed
    assert sum(line.startswith("error: ") for line in lines) == 1
    outcome = read_json(folder / "outcome.json")  # none if the disk has no byte left
    assert outcome is None or (outcome["state"], outcome["hint"]) == ("failed", hint)
    assert Artifact.read(folder) is None


def test_the_disk_is_full_while_a_checkpoint_is_saved(
    trained, tiny_model, rows, small_disk, tmp_path, monkeypatch, capfd
):
    disk = small_disk(8)
    folder, keys = disk.folder / "sft", training(tiny_model, rows)
    save = complete_folder.write_marker

    # The second checkpoint's weights do not fit. In the next attempt its optimizer's state does not fit, for which
    # torch.save raises its own type of error.
    for kilobytes in (20, 260):

        def mark(marked: Path, *content: Any, kilobytes: int = kilobytes) -> None:
            save(marked, *content)
            if marked.name == ".best-4.partial":
                disk.fill(leave_kilobytes=kilobytes)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "write_marker", mark)
            assert call_stage("sft", folder, **keys) == 1
        assert_says_how_it_failed(folder, capfd.readouterr().err)
        assert find_damage(folder / "checkpoints" / "checkpoint-2") == ""
        assert not (folder / "checkpoints" / "checkpoint-4").exists()
        disk.empty()
    (folder / "metrics.jsonl").unlink()  # a checkpoint is resumed from its own numbers
    run_here("sft", folder, **keys)
    log = (folder / "log.txt").read_text()
    assert log.count("resuming from step 2\n") == 2
    assert_same_model(folder, trained)
    assert not leftovers(folder)


def test_the_disk_is_full_or_fails_while_answers_rows_or_record_are_written(
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

    def fail() -> None:  # how the kernel treats a disk with errors; a mount would be busy here
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
        (round_prompts, "write_rows", 0, disk.fill, disk.empty, DISK_FULL, 5),
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
    monkeypatch.setattr("engine.sampling.transformers_engine.generate_answers", None)  # calling it would be an error
    record = run_here("annotate", folder, **keys)
    assert (folder / "pairs.train.jsonl").read_bytes() == (tmp_path / "undisturbed" / "pairs.train.jsonl").read_bytes()
    assert record.damage(folder) == []


def test_a_partial_file_on_a_full_disk_is_removed(small_disk):
    disk = small_disk(1)
    (disk.folder / "file").write_text("old")
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            write_atomically(disk.folder / "file", "new" * 2**20)
    assert [path.name for path in disk.folder.iterdir()] == ["file"]
    assert (disk.folder / "file").read_text() == "old"


def test_what_a_killed_attempt_leaves_is_removed_later(rows, tmp_path):
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
    (tmp_path / "out" / "checkpoints").symlink_to(tmp_path / "kept")  # deleted when the record is written
    run_here("prepare_data", tmp_path / "out", **keys)
    assert not leftovers(tmp_path)


# -- a full disk: the pipeline ----------------------------------------------------------------------------------------


FULL_AT = """
from pathlib import Path
from pipeline.launch import jobs
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

for module in (fingerprint, jobs, summary):
    full(module)
cli.main()
"""


@pytest.mark.parametrize(
    ("name", "call", "finished_steps"),
    [
        ("summary.json", 4, STEPS[:2]),
        ("fingerprint.json", 2, STEPS[:1]),
        (".hashes.json", 1, []),
    ],
)
def test_the_disk_is_full_while_the_runner_writes_its_own_files(
    name, call, finished_steps, finished, small_disk, tmp_path
):
    disk = small_disk(2)
    world = copied(finished, disk.folder)
    shutil.rmtree(world.work / "runs")
    world.command = tmp_path / "full.py"
    world.command.write_text(finished.command.read_text().replace("cli.main()", FULL_AT))
    said = world.call(*NO_ROUND, DISK=str(disk.folder), FULL_AT=name, CALL=str(call))
    disk.empty()
    assert_one_line(said, 1, "No space left on device", DISK_FULL)
    assert world.launched() == finished_steps
    assert [one.state for one in check_run(world.run_folder)].count("complete") == len(finished_steps)
    assert not any(one.problems for one in check_run(world.run_folder))
    assert not leftovers(world.run_folder)
    world.command = finished.command
    assert world.call(*NO_ROUND)[0] == 0
    assert world.launched() == STEPS[len(finished_steps) :]
    assert not leftovers(world.run_folder)


def test_a_stage_whose_output_does_not_fit_on_the_disk_has_the_hint(finished, small_disk):
    disk = small_disk(2)
    world = copied(finished, disk.folder)
    for path in world.run_folder.glob("round-0.*"):
        shutil.rmtree(path)
    stage = finished.command.parent / "stages" / "sft.py"
    own = stage.read_text()
    stage.write_text(  # nothing that it could log would be kept
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


def test_an_average_that_does_not_fit_on_the_disk_is_an_error(tiny_model, small_disk, tmp_path):
    from engine.models.averaging import write_average

    disk = small_disk(1)
    disk.fill(leave_kilobytes=100)
    with pytest.raises(OSError, match="No space left"):
        write_average([tiny_model, tiny_model], disk.folder / "average", weights=[0.5, 0.5])
    assert not (disk.folder / "average").exists()
