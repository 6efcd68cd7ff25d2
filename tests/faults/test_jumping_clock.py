"""File times and clocks that jump change nothing."""

import json
import os
import shutil
import time

import pytest

from tests.faults.runs import NO_ROUND, STEPS, states
from tests.pipeline.toy_house import copied


@pytest.mark.parametrize("year", [2000, 2100])
def test_file_times_do_not_matter(year, finished, tmp_path):
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
