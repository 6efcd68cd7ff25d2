"""The journal of finished batches: what a restarted stage does not compute again."""

import os
import shutil
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.runtime import preemption
from engine.runtime.journal import in_batches
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from tests.processes import within


class Work:
    """Squares numbers, and remembers which."""

    def __init__(self, *, kill_at: int | None = None, signal_at: int | None = None) -> None:
        self.seen: list[int] = []
        self.kill_at, self.signal_at = kill_at, signal_at

    def __call__(self, batch: Sequence[int]) -> list[int]:
        if self.kill_at in batch:
            raise KeyboardInterrupt
        if self.signal_at in batch:
            os.kill(os.getpid(), signal.SIGTERM)
        self.seen += batch
        return [number * number for number in batch]


def squares(folder: Path, work: Work, *, numbers: range = range(9), content: str = "squares") -> list[int]:
    folder.mkdir(exist_ok=True)
    stage = Stage("test", folder, {}, Tracker(folder, active=False), is_main=True)
    return in_batches(stage, "squares", numbers, work, size=2, content=[content])


SQUARES = [number * number for number in range(9)]


def test_a_killed_stage_does_not_repeat_finished_batches(tmp_path):
    killed, again, once_more = Work(kill_at=5), Work(), Work(kill_at=0)
    with pytest.raises(KeyboardInterrupt):
        squares(tmp_path / "a", killed)
    assert killed.seen == [0, 1, 2, 3]
    assert squares(tmp_path / "a", again) == SQUARES
    assert again.seen == [4, 5, 6, 7, 8]
    assert squares(tmp_path / "a", once_more) == SQUARES


def test_batches_are_the_same_for_another_number_of_processes(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        squares(tmp_path / "a", Work(kill_at=5))
    works, found = [Work(), Work()], {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        thread = threading.Thread(target=lambda rank=rank: found.update({rank: squares(tmp_path / "a", works[rank])}))
        thread.start()
        assert rank == 1 or within(60, lambda: works[0].seen == [4, 5, 8])
    assert within(60, lambda: len(found) == 2)
    assert found == {0: SQUARES, 1: SQUARES}
    assert works[1].seen == [6, 7]


@pytest.mark.parametrize("damage", [b"", b"cut", b"1 [1, 2]", b"\xff\xfe"])
def test_a_damaged_batch_is_recomputed_and_logged(damage, tmp_path, caplog):
    squares(tmp_path / "a", Work())
    (second,) = (tmp_path / "a" / "checkpoints").glob("squares-*/1.json")
    second.write_bytes(damage)
    again = Work()
    assert squares(tmp_path / "a", again) == SQUARES
    assert again.seen == [2, 3]
    assert f"{second} is damaged: its batch is computed again" in caplog.text


def test_sigterm_takes_effect_when_the_batch_is_finished(tmp_path):
    work, again = Work(signal_at=3), Work()
    with preemption.listen_for_signals(), pytest.raises(preemption.Preempted):
        squares(tmp_path / "a", work)
    assert work.seen == [0, 1, 2, 3]
    assert squares(tmp_path / "a", again) == SQUARES
    assert again.seen == [4, 5, 6, 7, 8]


def test_batches_of_another_attempt_are_reused_only_if_their_content_is_the_same(tmp_path):
    squares(tmp_path / "a", Work())
    same, other = Work(kill_at=0), Work()
    assert squares(tmp_path / "b", same) == SQUARES
    squares(tmp_path / "c", other, content="other")
    assert other.seen == list(range(9))
    shutil.rmtree(tmp_path / "a")
    assert squares(tmp_path / "b", Work(kill_at=0)) == SQUARES
