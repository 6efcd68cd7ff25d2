"""One lock on a folder, for runners and stages."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from data_schemas.errors import BusyError
from data_schemas.locks import is_locked, lock_folder

HOLD = """
import pathlib, sys, time
from data_schemas.locks import lock_folder
with lock_folder(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of a folder."""
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_the_error_names_the_first(holder, tmp_path):
    assert is_locked(tmp_path)
    expected = (
        f"{tmp_path} is in use by another process (pid {holder.pid} on {socket.gethostname()}); wait for it or stop it"
    )
    with pytest.raises(BusyError) as error, lock_folder(tmp_path):
        pass
    assert str(error.value) == expected


def test_a_killed_process_frees_its_lock(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_locked(tmp_path)
    with lock_folder(tmp_path):
        assert is_locked(tmp_path)
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    assert not is_locked(tmp_path)


def test_a_folder_that_is_only_asked_about_can_be_locked(tmp_path):
    with lock_folder(tmp_path):
        pass
    asking = subprocess.Popen(  # asks without a pause
        [
            sys.executable,
            "-c",
            "import pathlib, sys\nfrom data_schemas.locks import is_locked\n"
            "print(flush=True)\nwhile True:\n    is_locked(pathlib.Path(sys.argv[1]))",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert asking.stdout is not None
        asking.stdout.readline()
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            with lock_folder(tmp_path):
                pass
    finally:
        asking.kill()
        asking.wait()
        asking.stdout.close()


def test_the_lock_of_a_run_does_not_lock_its_steps(tmp_path):
    with lock_folder(tmp_path), lock_folder(tmp_path / "step"):
        assert is_locked(tmp_path / "step")
