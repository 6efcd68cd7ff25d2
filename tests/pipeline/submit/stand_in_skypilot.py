"""A stand-in for SkyPilot on one machine: `sky jobs launch`, which keeps the pipeline, and a controller that runs its
tasks in order and starts one again by the rules of `job_recovery`.

It refuses what SkyPilot refuses: an unknown field, a name that is none of a cluster, and a value of the wrong type.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from tests.patience import PATIENCE

PROGRAM = """#!{python}
import json, re, sys
from pathlib import Path
import yaml

words = sys.argv[1:]
assert words[:2] == ["jobs", "launch"] and "--yes" in words and "--detach-run" in words, words
head, *tasks = yaml.safe_load_all(Path(words[-1]).read_text())
assert set(head) == {{"name"}} and tasks
for task in tasks:
    known = "name num_nodes resources run setup workdir envs file_mounts volumes"
    if unknown := set(task) - set(known.split()):
        sys.exit(f"ValueError: Invalid task YAML: unknown field {{unknown}}")
    resources = task["resources"]
    known = "cpus memory accelerators job_recovery use_spot infra image_id"
    if unknown := set(resources) - set(known.split()):
        sys.exit(f"ValueError: Invalid resources YAML: unknown field {{unknown}}")
    assert re.fullmatch("[a-zA-Z]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?", task["name"])
    assert all(re.fullmatch("[0-9]+[+]?", resources.get(name, "1")) for name in ("cpus", "memory"))
    assert set(resources["job_recovery"]) <= {{"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}}
Path({queue!r}).write_text(json.dumps({{"options": words[2:-1], "tasks": tasks}}))
"""


class SkyPilot:
    """Machines in a folder, whose setup has `alignloop`, a program with these words before its own."""

    def __init__(self, folder: Path, *alignloop: str) -> None:
        self.queue, self.bin = folder / "job.json", folder / "bin"
        self.bin.mkdir(parents=True)
        (self.bin / "sky").write_text(PROGRAM.format(python=sys.executable, queue=str(self.queue)))
        (self.bin / "alignloop").write_text(f'#!/bin/bash\nexec {" ".join(alignloop)} "$@"\n')
        for program in self.bin.iterdir():
            program.chmod(0o755)

    def environment(self, **others: str) -> dict[str, str]:
        return os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}", "GRACE": "0.5", "SCORES": "{}"} | others

    def submit(self, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(folder / "submit.sh"), *options]
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=PATIENCE)

    def job(self) -> dict:
        return json.loads(self.queue.read_text())

    def start(self, task: dict, **environment: str) -> subprocess.Popen[bytes]:
        """Starts a task on a machine."""
        return subprocess.Popen(["bash", "-c", task["run"]], env=self.environment(**environment), cwd="/")

    def end(self, task: dict, process: subprocess.Popen[bytes]) -> str:
        """Waits for the end of a task. Returns its state: RECOVERING if it is started again."""
        code = process.wait(timeout=PATIENCE)
        is_recovered = code in task["resources"]["job_recovery"]["recover_on_exit_codes"]
        return "SUCCEEDED" if code == 0 else "RECOVERING" if is_recovered else "FAILED"


def terminate(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)


def documents(folder: Path) -> list[dict]:
    """The YAML documents of a pipeline: its name, and its tasks."""
    return list(yaml.safe_load_all((folder / "jobs" / "pipeline.yaml").read_text()))
