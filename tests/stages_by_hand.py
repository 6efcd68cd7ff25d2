"""Starts a stage by hand, as a user does, and reads the error with which it refuses its input."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE
from tests.stage_runs import ROOT

MAKERS = """
import os, pathlib, signal, time

def slow(folder, *, seed):
    (folder / "begun").write_text(str(os.getpid()))
    time.sleep(600)

def broken(folder, *, seed):
    raise RuntimeError("CUDA out of memory:\\ntried to allocate 2 GiB")

def interrupted(folder, *, seed):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

not_a_function = [3]
"""


def by_hand(stage: str, *words: Any, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "stages" / f"{stage}.py"), *map(str, words)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        # Tests that were started in the background ignore Ctrl-C, and their children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The error of a stage that refused its input, which is one line, with exit code 2."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]
