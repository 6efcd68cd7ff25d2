"""Two runs or stages in one folder: the second is refused, the first is not disturbed."""

import shutil
import signal
import socket
import subprocess
import sys

from data_schemas.artifact import Artifact
from tests.faults.runs import NO_ROUND, STEPS, assert_one_line
from tests.patience import PATIENCE
from tests.pipeline.toy_house import copied
from tests.processes import alive, within
from tests.stage_runs import ROOT
from tests.stages_by_hand import MAKERS, by_hand, refusal


def test_a_second_run_is_refused_even_between_two_steps(finished, tmp_path):
    world = copied(finished, tmp_path / "work")
    shutil.rmtree(world.run_folder)
    first = world.start(*NO_ROUND, TOY='{"prepare_base": "meet nothing"}')
    try:
        # The stage waits while the runner is stopped, and then ends: the runner has not seen it.
        assert within(60, lambda: list(world.run_folder.glob("prepare_base-*/here")))
        first.send_signal(signal.SIGSTOP)
        (world.run_folder / "nothing-00000000").mkdir()
        (world.run_folder / "nothing-00000000" / "here").touch()
        assert within(60, lambda: list(world.run_folder.glob("prepare_base-*/artifact.json")))
        assert_one_line(world.call(*NO_ROUND), 2, f"is in use by another process (pid {first.pid} on ")
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=PATIENCE)
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
time.sleep(600)
"""


def test_a_stage_by_hand_in_a_steps_folder_is_neither_ended_nor_disturbed(finished, tmp_path):
    world = copied(finished, tmp_path / "work")
    folder = world.folder("round-0.sft")
    (folder / "artifact.json").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    words = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as stage:
        assert stage.stdout is not None and stage.stdout.readline() == "held\n"
        result = world.call(*NO_ROUND)
        assert alive(stage.pid)
        stage.kill()
    assert_one_line(result, 2, f"{folder} is in use by another process (pid {stage.pid} on {socket.gethostname()})")
    assert {path: path.read_bytes() for path in before} == before
    assert world.launched() == []
    assert world.call(*NO_ROUND)[0] == 0
    assert world.launched() == ["round-0.sft"]


def test_of_two_stages_by_hand_in_one_folder_the_second_is_refused(rows, tmp_path):
    wait = "while not pathlib.Path('refused').exists(): time.sleep(0.01)"
    (tmp_path / "makers.py").write_text(MAKERS.replace("time.sleep(600)", wait))
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
        try:
            begun = tmp_path / "out" / "made" / "begun"
            assert within(120, lambda: begun.exists() or first.poll() is not None)
            error = refusal(by_hand("prepare_data", *words, cwd=tmp_path))
        finally:
            (tmp_path / "refused").touch()
    assert error.startswith(f"error: {tmp_path / 'out'} is in use by another process (pid {first.pid} on ")
    assert first.returncode == 0
    record = Artifact.read(tmp_path / "out")
    assert record is not None and record.damage(tmp_path / "out") == []
