"""`alignloop verify`, and records that were changed by hand."""

import json
from pathlib import Path

import pytest


def change_a_byte(folder: Path) -> str:
    path = folder / "model" / "config.json"
    path.write_text("[]")
    return "model/config.json was changed after it was written"


def cut_a_file(folder: Path) -> str:
    path = folder / "model" / "config.json"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    return f"model/config.json has {size - 1} bytes, not {size}"


def remove_a_file(folder: Path) -> str:
    (folder / "model" / "config.json").unlink()
    return "model/config.json is missing"


def edit_the_record(folder: Path) -> str:
    path = folder / "artifact.json"
    path.write_text(path.read_text().replace('"seconds": 0.5', '"seconds": 0.6'))
    return "artifact.json was changed after it was written; put it back as it was, or move the folder away"


def cut_the_record(folder: Path) -> str:
    path = folder / "artifact.json"
    path.write_text(path.read_text()[:-9])
    return "artifact.json is not a record ("


def edit_the_identity(folder: Path) -> str:
    (folder / "fingerprint.json").write_text("{}")
    return "fingerprint.json is not the identity that the record's fingerprint was computed from"


def rename_the_folder(folder: Path) -> str:
    folder.rename(folder.with_name(f"{folder.name[:-8]}00000000"))
    return "the folder's name does not end in its fingerprint"


@pytest.mark.parametrize(
    "damage",
    [change_a_byte, cut_a_file, remove_a_file, edit_the_record, cut_the_record, edit_the_identity, rename_the_folder],
)
def test_verify_finds_what_was_changed(world, damage):
    assert world.run()[0] == 0
    code, out, err = world.call("verify", "runs/toy")
    assert (code, err) == (0, "")
    assert out.count("| complete") == len(world.states())
    problem = damage(world.folder("round-1.sft"))
    code, out, err = world.call("verify", "runs/toy")
    assert code == 1
    assert problem in out
    assert out.count("| complete") == len(world.states()) - 1
    assert err.startswith("error: round-1.sft-")
    assert err.count("\n") == 1


@pytest.mark.parametrize("damage", [edit_the_record, cut_the_record])
def test_a_changed_record_stops_a_run_and_nothing_is_modified(world, damage):
    assert world.run()[0] == 0
    problem, folder = damage(world.folder("round-1.sft")), world.folder("round-1.sft")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, _, err = world.run()
    assert code == 2
    assert problem in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_record_of_an_older_version_is_reused_and_verify_reports_what_it_cannot_check(world):
    assert world.run()[0] == 0
    path = world.folder("round-1.sft") / "artifact.json"
    older = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("digest", "sha256")}
    path.write_text(json.dumps(older))
    assert world.run()[0] == 0
    assert set(world.states().values()) == {"reused"}
    code, out, _ = world.call("verify", "runs/toy")
    assert (code, out.count("| sizes only")) == (0, 1)


def test_verify_reports_unfinished_steps_and_folders_that_are_not_runs(world):
    assert world.run(TOY='{"round-1.dpo": "fail"}')[0] == 1
    code, out, _ = world.call("verify", "runs/toy")
    assert code == 0
    assert "not finished" in out
    assert world.call("verify", "runs") == (
        2,
        "",
        "error: runs contains no step; expected the folder of a run, as in runs/demo\n",
    )
