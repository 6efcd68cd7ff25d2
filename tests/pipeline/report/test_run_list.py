"""`alignloop list`: every run with its state, the newest first, and a damaged summary as a line."""

import fcntl
import json
import os
import sys
from pathlib import Path

import pytest

from pipeline import cli

STEP = {"stage": "sft", "round": 0, "folder": None, "fingerprint": None, "seconds": 1.0, "metrics": {}}


@pytest.fixture
def listed(tmp_path, monkeypatch, capsys):
    """What `alignloop list` prints in a separate folder: the cells of its rows, and its stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[list[list[str]], str, str]:
        monkeypatch.setattr(sys, "argv", ["alignloop", "list", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        out, err = capsys.readouterr()
        rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in out.splitlines() if "|" in line]
        return rows[2:], out, err

    return call


def write_run(folder: Path, state: str, *, hour: int, best: str = "", name: str = "toy") -> None:
    """A run with a finished step of two, a model of 300 kB, and files that were written at this hour of a day."""
    steps = [STEP | {"name": "a", "state": "ran"}, STEP | {"name": "b", "state": "pending"}]
    chosen = {"step": best, "folder": "a-0/model", "score": 0.61549} if best else None
    summary = {"name": name, "state": state, "steps": steps, "rounds": [], "best_policy": chosen}
    (folder / "a-0" / "model").mkdir(parents=True)
    (folder / "a-0" / "model" / "weights").write_bytes(bytes(300_000))
    (folder / "summary.json").write_text(json.dumps(summary))
    for path in (folder / "a-0" / "model" / "weights", folder / "summary.json"):
        os.utime(path, (1_700_000_000 + 3600 * hour,) * 2)


def test_runs_are_listed_with_the_words_of_status_and_the_newest_first(listed):
    write_run(Path("runs/old"), "done", hour=1, best="round-1.dpo")
    write_run(Path("runs/new"), "partial", hour=5)
    write_run(Path("runs/dead"), "running", hour=3, name="a\x1b[2J|b")
    write_run(Path("runs/live"), "running", hour=2)
    Path("runs/notes").mkdir()
    with Path("runs/live/.lock").open("w") as lock:
        os.utime(lock.name, (1_700_000_000 + 3600 * 2,) * 2)
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows, out, err = listed()
    assert [row[:2] for row in rows] == [
        ["runs/new", "partial"],
        ["runs/dead", "stopped"],
        ["runs/live", "running"],
        ["runs/old", "done"],
    ]
    old = rows[-1]
    assert old[2:6] == ["toy", "1 of 2", "round-1.dpo", "0.615"] and old[7] == "0.3"
    assert rows[0][4:6] == ["-", "-"]
    assert "\x1b" not in out and err == ""
    assert [row[0] for row in listed("runs/old")[0]] == ["runs/old"]  # a run itself


def test_a_damaged_summary_is_a_row_and_a_line(listed):
    write_run(Path("elsewhere/good"), "failed", hour=1)
    Path("elsewhere/bad").mkdir()
    Path("elsewhere/bad/summary.json").write_text("{")
    rows, _, err = listed("elsewhere")
    assert [row[:4] for row in rows] == [
        ["elsewhere/bad", "damaged", "-", "-"],
        ["elsewhere/good", "failed", "toy", "1 of 2"],
    ]
    assert err.startswith("warning: elsewhere/bad/summary.json is not the summary of a run; ") and err.count("\n") == 1


def test_without_runs_a_line_says_where_it_looked(listed, tmp_path):
    start = "`alignloop run RECIPE` starts one\n"
    assert listed()[1].startswith(f"no run in {tmp_path}/runs, which does not exist; `")
    Path("runs").mkdir()
    assert listed()[1].startswith(f"no run in {tmp_path}/runs; `") and listed()[1].endswith(start)
