"""`alignloop prune` lists what the last run does not need, and deletes it, and nothing else, only with --yes."""

import fcntl
import json
import shutil

import pytest

from tests.pipeline.toy_house import World, copied


@pytest.fixture(scope="module")
def edited(tmp_path_factory) -> World:
    """A run of two rounds, then one of one round with another beta. Copied, not used, by tests that delete."""
    world = World(tmp_path_factory.mktemp("edited"))
    assert world.call("run", "toy.yaml")[0] == 0
    assert world.run("--set", "dpo.beta=0.2")[0] == 0
    return world


@pytest.fixture
def world(edited, tmp_path) -> World:
    return copied(edited, tmp_path / "work")


def old_folders(world: World) -> list[str]:
    """The folders that the edit left: round 2, and what depended on the first beta."""
    needed = {step["folder"] for step in world.summary()["steps"]}
    old = [path.name for path in world.run_folder.glob("*-????????") if path.name not in needed]
    names = {name[:-9] for name in old}
    assert {"round-1.dpo", "round-1.evaluate_policy", "round-2.sft", "round-2.dpo"} <= names
    assert all(name.startswith("round-2.") or name in ("round-1.dpo", "round-1.evaluate_policy") for name in names)
    return sorted(old)


def everything(world: World) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in world.run_folder.rglob("*") if path.is_file()}


def test_what_the_last_run_does_not_need_is_listed_and_kept(world):
    before, old = everything(world), old_folders(world)
    code, out, err = world.call("prune", "runs/toy")
    assert (code, err) == (0, "")
    assert [line.split("|")[1].strip() for line in out.splitlines() if "| finished" in line] == old
    assert f"{len(old)} folders" in out and "prune runs/toy --yes" in out
    assert everything(world) == before


def test_with_yes_it_is_deleted_and_the_run_is_complete(world):
    old = old_folders(world)
    assert world.call("prune", "runs/toy", "--yes")[0] == 0
    assert not [name for name in old if (world.run_folder / name).exists()]
    assert not list(world.run_folder.glob(".pruned-*"))
    assert all(link.exists() for link in world.run_folder.glob("steps/*"))
    assert not list(world.run_folder.glob("steps/round-2.*"))
    assert world.call("verify", "runs/toy")[0] == 0
    world.launched()
    assert world.run("--set", "dpo.beta=0.2")[0] == 0
    assert world.launched() == []
    assert world.call("prune", "runs/toy")[1] == "runs/toy: the last run needs every folder; nothing to delete\n"
    assert world.run()[0] == 0  # back to the first beta: only its steps run again
    assert world.launched() == ["round-1.dpo", "round-1.evaluate_policy"]


def test_folders_of_the_user_are_not_deleted(world):
    by_hand = world.run_folder / "round-1.dpo-by-hand"
    shutil.copytree(world.folder("round-1.sft"), by_hand)  # a record and an identity, under the user's own name
    (by_hand / "fingerprint.json").unlink()
    renamed = world.run_folder / "round-1.dpo-00000000"
    shutil.copytree(world.folder("round-1.sft"), renamed)
    (world.run_folder / "notes").mkdir()
    (world.run_folder / "notes" / "a.txt").write_text("mine")
    away = world.work / "away"
    old = world.run_folder / old_folders(world)[-1]
    shutil.move(old, away)
    old.symlink_to(away)
    assert world.call("prune", "runs/toy", "--yes")[0] == 0
    assert by_hand.is_dir() and renamed.is_dir() and (world.run_folder / "notes" / "a.txt").exists()
    assert old.is_symlink() and (away / "artifact.json").exists()


def test_after_a_run_that_did_not_finish_nothing_is_listed(world):
    assert world.run("--set", "dpo.beta=0.3", TOY='{"round-1.dpo": "fail"}')[0] == 1
    before = everything(world)
    for words in (("prune", "runs/toy"), ("prune", "runs/toy", "--yes")):
        code, out, err = world.call(*words)
        assert (code, out) == (2, "")
        assert err.startswith("error: the last run in runs/toy is failed; ") and err.count("\n") == 1
    assert everything(world) == before
    assert world.run("--set", "dpo.beta=0.2")[0] == 0  # the recipe that is kept
    out = world.call("prune", "runs/toy")[1]
    assert out.count("| not finished") == 1  # of beta 0.3


@pytest.mark.parametrize("held", ["run", "step"])
def test_a_live_lock_prevents_pruning(world, held):
    before, folder = everything(world), world.run_folder
    lock = (folder if held == "run" else folder / old_folders(world)[-1]) / ".lock"
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert world.call("prune", "runs/toy")[0] == 0  # listing is allowed
        code, _, err = world.call("prune", "runs/toy", "--yes")
    assert code == 2 and "is in use by " in err and err.count("\n") == 1
    assert {name: text for name, text in everything(world).items() if not name.endswith(".lock")} == {
        name: text for name, text in before.items() if not name.endswith(".lock")
    }


def test_what_a_crash_left_half_deleted_is_deleted_next_time(world):
    old = world.run_folder / old_folders(world)[0]
    going = world.run_folder / f".pruned-{old.name}"
    shutil.copytree(old, going)  # of a step that ran again since
    (going / "artifact.json").unlink()
    again = world.folder("round-1.sft")  # and of one that the last run needs
    shutil.copytree(again, world.run_folder / f".pruned-{again.name}")
    assert world.call("prune", "runs/toy")[1].count("| partly deleted") == 2
    assert world.call("prune", "runs/toy", "--yes")[0] == 0
    assert not going.exists() and not old.exists()
    assert (world.run_folder / "steps" / "round-1.sft" / "artifact.json").exists()


def test_reference_log_probs_are_deleted_with_the_last_step_that_read_them(world):
    old = next(name for name in old_folders(world) if name.startswith("round-1.dpo"))
    now = next(step["folder"] for step in world.summary()["steps"] if step["name"] == "round-1.dpo")
    for name, notes in {"both": (old, now), "old": (old,), "unfinished": ()}.items():
        folder = world.run_folder / "reference_log_probs" / name
        folder.mkdir(parents=True)
        (folder / "1.jsonl").write_text("{}\n")
        for note in notes:
            (folder / f"{note}.json").write_text(json.dumps({}))
    assert world.call("prune", "runs/toy", "--yes")[0] == 0
    assert sorted(path.name for path in world.run_folder.glob("reference_log_probs/*")) == ["both", "unfinished"]


def test_a_folder_that_is_not_a_run_is_one_line(world):
    assert world.call("prune", "runs") == (
        2,
        "",
        "error: runs has no summary.json; expected the folder of a run, as in runs/demo\n",
    )
    assert world.call("prune", "gone") == (
        2,
        "",
        "error: gone has no summary.json; expected the folder of a run, as in runs/demo\n",
    )
    assert not (world.work / "gone").exists()
