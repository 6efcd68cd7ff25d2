"""Runs the `wrapper` command of a recipe, as srun, and ends it when the runner has died.

A process on another machine can't see whether the runner lives. The wrapper command ends that process, and this program
ends the wrapper command.

    python -m pipeline.launch.wrapper srun --nodes=2 ... python -m pipeline.launch.node ...
"""

import contextlib
import os
import signal
import subprocess
import sys
import time


def main(words: list[str]) -> int:
    runner = os.getppid()
    process = subprocess.Popen(words, process_group=0)  # so that a signal reaches the children of a shell script

    def end(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    while process.poll() is None:
        if os.getppid() != runner:
            end()
        time.sleep(0.3)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
