"""Checkpoints: complete or absent, verified before use, pruned afterwards."""

import logging
import re
from pathlib import Path

import pytest

from engine.runtime.complete_folder import find_damage
from engine.training.checkpoints import SAVING, Progress, newest_complete, prune, publish


def save(folder: Path, step: int, *, best: int = 0, processes: int = 1) -> Path:
    """A checkpoint as the Trainer writes one, with a file in a folder as DeepSpeed has them."""
    written = folder / SAVING / f"checkpoint-{step}"
    (written / "global_step").mkdir(parents=True)
    (written / "model.safetensors").write_bytes(f"weights {step}".encode())
    (written / "global_step" / "rank_0.pt").write_bytes(f"optimizer {step}".encode())
    (folder / f"best-{best}").mkdir(exist_ok=True)
    return publish(folder, Progress(step, best_step=best, num_tokens=7 * step, processes=processes))


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path):
    for step in (2, 10, 9):
        save(tmp_path, step)
    found = newest_complete(tmp_path, processes=1)
    assert found == (tmp_path / "checkpoint-10", Progress(10, best_step=0, num_tokens=70, processes=1))
    assert newest_complete(tmp_path / "nowhere", processes=1) is None
    with pytest.raises(ValueError, match=r"was written by 1 processes and this run has 2: run with 1"):
        newest_complete(tmp_path, processes=2)


def test_a_checkpoint_that_was_being_saved_when_the_process_died_is_removed(tmp_path):
    save(tmp_path, 2)
    (tmp_path / SAVING / "checkpoint-4").mkdir(parents=True)
    found = newest_complete(tmp_path, processes=1)
    assert found is not None and found[1].step == 2
    assert not (tmp_path / SAVING).exists()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda at: (at / "model.safetensors").write_bytes(b"weights 5"),
            "model.safetensors was changed after it was written",
        ),
        (lambda at: (at / "model.safetensors").write_bytes(b"wei"), "model.safetensors has 3 bytes, not 9"),
        (lambda at: (at / "global_step" / "rank_0.pt").unlink(), "global_step/rank_0.pt is missing"),
        (lambda at: (at / "whole.json").unlink(), "it has no valid marker"),
        (lambda at: (at / "whole.json").write_text("{"), "it has no valid marker"),
        (lambda at: (at / "whole.json").write_text("[]"), "it has no valid marker"),
        (lambda at: (at / "whole.json").write_bytes(b"\xff"), "it has no valid marker"),
        (lambda at: (at / "whole.json").write_text('{"files": {}}'), "model.safetensors is not part of it"),
        (lambda at: (at / "whole.json").write_text('{"files": [], "step": 4}'), "it has no valid marker"),
        (lambda at: (at.parent / "best-3").rmdir(), "its best model, of step 3, is missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_reason_and_the_one_before_is_used(spoil, reason, tmp_path, caplog):
    save(tmp_path, 2)
    newest = save(tmp_path, 4, best=3)
    spoil(newest)
    with caplog.at_level(logging.WARNING):
        found = newest_complete(tmp_path, processes=1)
    assert found is not None and found[1].step == 2
    assert caplog.messages == [f"checkpoint-4 is not resumed from: {reason}"]
    assert newest.is_dir(), "nothing that was made is thrown away"
    prune(tmp_path, keep=3, best_step=2)  # the next checkpoint is saved beside it
    # Training reaches step 4 again, and replaces the damaged checkpoint.
    assert find_damage(save(tmp_path, 4, best=2)) == ""


def test_old_checkpoints_are_deleted_with_best_models_that_no_other_names(tmp_path):
    for step, best in ((2, 1), (4, 3), (6, 3), (8, 7)):
        save(tmp_path, step, best=best)
    prune(tmp_path, keep=2, best_step=7)
    names = {path.name for path in tmp_path.iterdir()} - {SAVING}
    assert names == {"checkpoint-6", "checkpoint-8", "best-3", "best-7"}
    prune(tmp_path, keep=None, best_step=9)
    assert {path.name for path in tmp_path.iterdir() if re.match("checkpoint", path.name)} == {
        "checkpoint-6",
        "checkpoint-8",
    }
