"""Steps forked from a Python process that has imported the libraries: separate processes that share nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.launch import command_line, processes, warm
from pipeline.plan import Step
from pipeline.recipe.sections import Launch
from tests.patience import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="steps are forked on Linux alone")
SCRIPT = """
import json, os, signal, sys
import textwrap
assert not hasattr(textwrap, "mark"), "the step before left this"
textwrap.mark = True
ending = sys.argv[1]
print(json.dumps({
    "words": sys.argv, "name": __name__, "path": sys.path[0], "own": os.environ["OWN"], "shared": os.environ["SHARED"],
    "session": os.getsid(0) == os.getpid(), "cores": sorted(os.sched_getaffinity(0)),
    "stdin": sys.stdin.read(), "modules": "textwrap" in sys.modules,
}), flush=True)
if ending == "raise":
    raise RuntimeError("it went wrong")
if ending == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if ending == "hang":
    import time
    time.sleep(600)
sys.exit(int(ending))
"""


@pytest.fixture
def python(monkeypatch):
    monkeypatch.setattr(warm, "preloaded_modules", lambda: ["textwrap"])
    python = warm.WarmPython(os.environ | {"SHARED": "of all", "PYTHONPATH": str(command_line.ROOT)})
    yield python
    python.close()


@pytest.fixture
def script(tmp_path) -> str:
    (tmp_path / "step.py").write_text(SCRIPT)
    return str(tmp_path / "step.py")


@pytest.mark.parametrize(("ending", "code"), [("0", 0), ("3", 3), ("raise", 1), ("kill", -9)])
def test_a_fork_is_a_separate_process_and_reports_its_end(python, script, tmp_path, ending, code):
    core = command_line.available_cores()[0]
    for number in range(2):  # the second sees nothing of the first
        output = tmp_path / f"{number}.txt"
        step = python.start([script, ending], output, {"OWN": str(number)}, [core])
        assert step.wait(timeout=PATIENCE) == step.poll() == step.returncode == code
        reported = json.loads(output.read_text().splitlines()[0])
        assert reported == {
            "words": [script, ending],
            "name": "__main__",
            "path": str(tmp_path),
            "own": str(number),
            "shared": "of all",
            "session": True,
            "cores": [core],
            "stdin": "",
            "modules": True,
        }
    assert ("RuntimeError: it went wrong" in output.read_text()) == (ending == "raise")
    assert "OWN" not in os.environ


def test_forks_run_side_by_side(python, script, tmp_path):
    hanging = python.start([script, "hang"], tmp_path / "a.txt", {"OWN": ""}, None)
    quick = python.start([script, "5"], tmp_path / "b.txt", {"OWN": ""}, None)
    assert quick.wait(timeout=PATIENCE) == 5
    assert hanging.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        hanging.wait(timeout=0.05)
    os.kill(hanging.pid, 15)
    assert hanging.wait(timeout=PATIENCE) == -15


def test_when_the_warm_python_dies_its_steps_are_lost_and_the_next_starts_cold(python, script, tmp_path, monkeypatch):
    hanging = python.start([script, "hang"], tmp_path / "a.txt", {"OWN": ""}, None)
    python.process.kill()
    python.process.wait()
    assert hanging.poll() is None  # a stage watches its parent and ends itself
    os.kill(hanging.pid, 9)
    deadline = time.monotonic() + 120
    while hanging.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert hanging.returncode == warm.LOST
    with pytest.raises(OSError, match=r".+"):
        python.start([script, "0"], tmp_path / "b.txt", {"OWN": ""}, None)

    pool = warm.WarmPool()
    monkeypatch.setattr(pool, "python", lambda environment: python)
    assert _run(script, tmp_path, pool) == 4


def test_a_library_that_cannot_be_imported_is_reported_by_the_step(script, tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "preloaded_modules", lambda: ["no_such_library"])
    with warm.WarmPool() as pool:
        assert _run(script, tmp_path, pool) == 4


def _run(script: str, folder: Path, pool: warm.WarmPool) -> int | None:
    environment = os.environ | {"OWN": "", "SHARED": "", command_line.STEP_FOLDER: str(folder)}
    stage = processes.StageProcess(
        [sys.executable, script, "4"], folder, environment, cores=None, grace_seconds=60, warm=pool
    )
    stage.wait(20)
    assert isinstance(stage.process, subprocess.Popen)
    return stage.finish()[0]


def test_all_children_of_a_warm_step_are_found_and_ended(tmp_path, monkeypatch):
    """Its forks too, although their environment in /proc is the warm Python's, which does not name the step."""
    monkeypatch.setattr(warm, "preloaded_modules", list)
    (tmp_path / "step.py").write_text(
        "import os, subprocess, time\n"
        "if os.fork() == 0:\n    os.setsid(); os.write(1, b'fork %d\\n' % os.getpid()); time.sleep(600)\n"
        "other = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "os.write(1, b'child %d\\n' % other.pid); time.sleep(600)\n"  # in one piece: print() may write several
    )
    environment = os.environ | {command_line.STEP_FOLDER: str(tmp_path)}
    console = tmp_path / "console.txt"
    with warm.WarmPool() as pool:
        stage = processes.StageProcess(
            [sys.executable, str(tmp_path / "step.py")], tmp_path, environment, cores=None, grace_seconds=60, warm=pool
        )
        deadline = time.monotonic() + 120
        while len(words := console.read_text().splitlines()[1:]) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        pids = [stage.process.pid, *(int(line.split()[1]) for line in words)]
        assert len(pids) == 3
        assert {process.pid for process in processes._processes_of(tmp_path)} == set(pids)
        assert stage.finish()[0] == -15
        assert not processes._processes_of(tmp_path)


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        ({}, True),
        ({"warm": False}, False),
        ({"device": "gpu"}, False),
        ({"profile": "ddp", "num_processes": 2}, False),
        ({"profile": "zero2"}, False),
    ],
)
def test_which_steps_are_warm(launch, expected):
    assert command_line.can_be_warm(Launch(**{"device": "cpu"} | launch)) is expected


def test_a_runs_steps_share_one_python_and_its_environment_is_theirs(tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "preloaded_modules", list)
    launch = Launch(device="cpu")
    step = Step(name="sft", stage="sft", round=None, section="", keys={}, inputs={}, launch=launch)
    with warm.WarmPool() as pool:
        pythons = {
            processes.get_warm_python(pool, command_line.environment(step, tmp_path / name, tmp_path)) for name in "ab"
        }
        assert len(pythons) == 1
        (python,) = pythons
        assert python is not None
        names = Path(f"/proc/{python.process.pid}/environ").read_bytes()
        assert b"OMP_NUM_THREADS=" in names
        assert command_line.STEP_FOLDER.encode() not in names
        pid = python.process.pid
    assert not Path(f"/proc/{pid}").exists()
