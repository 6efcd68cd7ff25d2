"""A stand-in for SLURM on one machine: sbatch, squeue and scontrol, and a scheduler that runs the jobs in the order of
their dependencies. Its queue is the file jobs.json.

It refuses what SLURM refuses: an unknown directive, a dependency on a job that does not exist, a job whose log has no
folder. The time limit is a call of `warn`.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from data_schemas.files import write_atomically
from tests.patience import PATIENCE

PROGRAM = """#!{python}
import json, re, shlex, sys
from pathlib import Path
from data_schemas.files import write_atomically

file = Path({queue!r})
jobs = json.loads(file.read_text())
name, words = Path(sys.argv[0]).name, sys.argv[1:]
options = dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))
if name == "sbatch":
    script = words[-1]
    known = ("job-name nodes ntasks-per-node cpus-per-task gpus-per-node mem time signal requeue open-mode output "
             "parsable dependency kill-on-invalid-dep partition").split()
    directives = {{}}
    for line in Path(script).read_text().splitlines():
        if line.startswith("#SBATCH "):
            (word,) = shlex.split(line.removeprefix("#SBATCH "))
            key, _, value = word.removeprefix("--").partition("=")
            directives[key] = value
        elif line and not line.startswith("#"):
            break
    options = directives | options
    if unknown := options.keys() - set(known):
        sys.exit(f"sbatch: unrecognized option {{unknown}}")
    after = options.get("dependency", "")
    if after and not (re.fullmatch(r"afterok:[0-9]+", after) and after[8:] in jobs):
        sys.exit("sbatch: error: Job dependency problem")
    number = str(100 + len(jobs))
    jobs[number] = {{"script": str(Path(script).absolute()), "options": options, "after": after[8:], "state": "PENDING",
                     "restarts": 0, "requeued": False}}
    print(f"{{number}};cluster")
elif name == "squeue":
    found = [number for number in options["jobs"].split(",") if jobs[number]["state"] in ("PENDING", "RUNNING")]
    print(*(number if options["format"] == "%i" else jobs[number]["state"] for number in found), sep=chr(10))
elif name == "scontrol":
    assert words[0] == "requeue" and "requeue" in jobs[words[1]]["options"]  # SLURM also requeues a cancelled job
    jobs[words[1]] |= {{"state": "PENDING", "requeued": True}}
if name != "squeue":
    write_atomically(file, json.dumps(jobs))
"""


class Slurm:
    """A cluster in a folder."""

    def __init__(self, folder: Path) -> None:
        self.queue, self.bin = folder / "jobs.json", folder / "bin"
        self.bin.mkdir(parents=True)
        self.queue.write_text("{}")
        for name in ("sbatch", "squeue", "scontrol"):
            (self.bin / name).write_text(PROGRAM.format(python=sys.executable, queue=str(self.queue)))
            (self.bin / name).chmod(0o755)

    def environment(self, **others: str) -> dict[str, str]:
        return os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}", "GRACE": "0.5", "SCORES": "{}"} | others

    def submit(self, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(folder / "submit.sh"), *options]
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=PATIENCE)

    def jobs(self) -> dict[str, dict]:
        return json.loads(self.queue.read_text())

    def change(self, number: str, **values: object) -> None:
        jobs = self.jobs()
        jobs[number] |= values
        write_atomically(self.queue, json.dumps(jobs))

    def ready(self) -> str | None:
        """The first pending job whose dependency has succeeded. A job whose dependency failed is cancelled."""
        for number, job in self.jobs().items():
            before = self.jobs().get(job["after"], {"state": "COMPLETED"})["state"]
            if job["state"] == "PENDING" and before == "COMPLETED":
                return number
            if (
                job["state"] == "PENDING"
                and before in ("FAILED", "CANCELLED")
                and "kill-on-invalid-dep" in job["options"]
            ):
                self.change(number, state="CANCELLED")
        return None

    def start(self, number: str, **environment: str) -> subprocess.Popen[bytes]:
        """Starts the job as the batch step of an allocation."""
        job = self.jobs()[number]
        self.change(number, state="RUNNING", requeued=False)
        log = Path(job["options"]["output"].replace("%x", job["options"]["job-name"]).replace("%j", number))
        env = self.environment(SLURM_JOB_ID=number, **environment)
        env |= {"SLURM_RESTART_COUNT": str(job["restarts"])} if job["restarts"] else {}
        with log.open("ab") as file:
            return subprocess.Popen(["bash", job["script"]], env=env, stdout=file, stderr=file, cwd="/")

    def end(self, number: str, process: subprocess.Popen[bytes]) -> str:
        """Waits for the end of the job's script. Returns the state of the job: PENDING if it was queued again."""
        code = process.wait(timeout=PATIENCE)
        job = self.jobs()[number]
        if job["requeued"]:
            self.change(number, restarts=job["restarts"] + 1)
        elif job["state"] == "RUNNING":
            self.change(number, state="FAILED" if code else "COMPLETED")
        return self.jobs()[number]["state"]

    def run_all(self, **environment: str) -> None:
        """Runs jobs until none is ready."""
        while (number := self.ready()) is not None:
            self.end(number, self.start(number, **environment))

    def states(self) -> list[str]:
        return [job["state"] for job in self.jobs().values()]


def warn(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the script only, as `--signal=B:TERM@SECONDS` sends it."""
    process.send_signal(signal.SIGTERM)
