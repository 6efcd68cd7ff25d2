"""A stand-in for Kubernetes on one machine: kubectl with the file jobs.json as its server, and a controller that runs
the pods of the Jobs and applies their podFailurePolicy.

kubectl refuses what the server refuses: a name or label that is not of RFC 1123, an unknown field, a restart policy
that podFailurePolicy does not allow, 0 or no value among exit codes, a Job that exists. $(NAME) in a command is
replaced as there.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from data_schemas.files import write_atomically
from tests.patience import PATIENCE

PROGRAM = """#!{python}
import json, re, sys
from pathlib import Path
import yaml
from data_schemas.files import write_atomically

file = Path({server!r})
jobs = json.loads(file.read_text())
words = [word for word in sys.argv[1:] if not word.startswith("--")]
options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:] if word.startswith("--"))
LABEL = "[a-z0-9]([-a-z0-9]{{0,61}}[a-z0-9])?"
FIELDS = {{
    "": "apiVersion kind metadata spec", "metadata": "name namespace labels",
    "spec": "backoffLimit podFailurePolicy template",
    "template": "metadata spec",
    "pod": "restartPolicy terminationGracePeriodSeconds activeDeadlineSeconds containers volumes nodeSelector",
    "container": "name image command resources volumeMounts env workingDir",
}}

def check(kind, found):
    if unknown := set(found) - set(FIELDS[kind].split()):
        sys.exit(f"error: strict decoding error: unknown field {{sorted(unknown)}} in {{kind}}")

if words[0] == "create":
    job = yaml.safe_load(Path(options["filename"]).read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    check("", job), check("metadata", job["metadata"]), check("spec", spec), check("template", spec["template"])
    check("pod", pod)
    for container in pod["containers"]:
        check("container", container)
        assert all(isinstance(word, str) for word in container["command"]) and container["image"]
    for value in (name, *job["metadata"]["labels"].values(), *spec["template"]["metadata"]["labels"].values()):
        if not re.fullmatch(LABEL, value):
            sys.exit(f"error: {{value!r}} is no label of RFC 1123")
    assert job["apiVersion"] == "batch/v1" and job["kind"] == "Job"
    assert pod["restartPolicy"] == "Never", "podFailurePolicy needs restartPolicy: Never"
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        assert rule["action"] in ("Ignore", "Count", "FailJob") and (codes is None or codes["values"])
        assert codes is None or codes["operator"] == "NotIn" or 0 not in codes["values"]
    if name in jobs:
        sys.exit(f"Error from server (AlreadyExists): jobs.batch {{name!r}} already exists")
    jobs[name] = {{"manifest": job, "conditions": [], "failed": 0, "codes": [], "options": options}}
    print(f"job.batch/{{name}} created")
elif words[:2] == ["get", "job"]:
    assert options["output"] == 'jsonpath=exists {{.status.conditions[?(@.status=="True")].type}}'
    assert "ignore-not-found" in options
    if words[2] in jobs:
        print("exists", *jobs[words[2]]["conditions"], end="")
elif words[:2] == ["delete", "job"]:
    del jobs[words[2]]
else:
    sys.exit(f"error: unknown command {{words}}")
if words[0] != "get":
    write_atomically(file, json.dumps(jobs))
"""


class Kubernetes:
    """A cluster in a folder. Its image has `alignloop`, a program with these words before its own."""

    def __init__(self, folder: Path, *alignloop: str) -> None:
        self.server, self.bin = folder / "jobs.json", folder / "bin"
        self.bin.mkdir(parents=True)
        self.server.write_text("{}")
        (self.bin / "kubectl").write_text(PROGRAM.format(python=sys.executable, server=str(self.server)))
        (self.bin / "alignloop").write_text(f'#!/bin/bash\nexec {" ".join(alignloop)} "$@"\n')
        for program in self.bin.iterdir():
            program.chmod(0o755)

    def environment(self, **others: str) -> dict[str, str]:
        here = {"PATH": f"{self.bin}:{os.environ['PATH']}", "POLL_SECONDS": "0.1", "GRACE": "0.5", "SCORES": "{}"}
        return os.environ | here | others

    def submit(self, folder: Path, *options: str) -> subprocess.Popen[str]:
        """Starts submit.sh, which creates the jobs and waits for each."""
        return subprocess.Popen(
            ["bash", str(folder / "submit.sh"), *options],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def jobs(self) -> dict[str, dict]:
        return json.loads(self.server.read_text())

    def change(self, name: str, **values: object) -> None:
        jobs = self.jobs()
        jobs[name] |= values
        write_atomically(self.server, json.dumps(jobs))

    def active(self) -> str | None:
        """The job that has neither succeeded nor failed."""
        return next((name for name, job in self.jobs().items() if not job["conditions"]), None)

    def start(self, name: str, **environment: str) -> subprocess.Popen[bytes]:
        """Starts a pod of the job."""
        container = self.jobs()[name]["manifest"]["spec"]["template"]["spec"]["containers"][0]
        env = self.environment(**environment)
        declared = {entry["name"]: entry["value"] for entry in container.get("env", [])}
        command = [_expanded(word, declared) for word in container["command"]]
        return subprocess.Popen(command, env=env | declared, cwd="/", process_group=0)

    def end(self, name: str, pod: subprocess.Popen[bytes], *, is_disrupted: bool = False) -> str:
        """Waits for the end of a pod. Returns the state of its job: Complete, Failed, or Active with a pod to start."""
        code = pod.wait(timeout=PATIENCE)
        job = self.jobs()[name]
        spec = job["manifest"]["spec"]
        codes = [*job["codes"], code]
        if not code:
            self.change(name, codes=codes, conditions=["SuccessCriteriaMet", "Complete"])
            return "Complete"
        action = next(_actions(spec["podFailurePolicy"]["rules"], code, is_disrupted=is_disrupted), "Count")
        failed = job["failed"] + (action == "Count")
        ends = action == "FailJob" or failed > spec["backoffLimit"]
        self.change(name, codes=codes, failed=failed, conditions=["FailureTarget", "Failed"] if ends else [])
        return "Failed" if ends else "Active"


def _actions(rules: list[dict], code: int, *, is_disrupted: bool):
    for rule in rules:
        codes = rule.get("onExitCodes")
        if codes is None:
            holds = is_disrupted and rule["onPodConditions"] == [{"type": "DisruptionTarget"}]
        else:
            holds = (code in codes["values"]) == (codes["operator"] == "In")
        if holds:
            yield rule["action"]


def _expanded(word: str, values: dict[str, str]) -> str:
    """$(NAME) is the value of a declared variable, and stays where there is none; $$(NAME) is $(NAME)."""
    pattern = re.compile(r"\$\$\(|\$\(([A-Za-z_][\w.-]*)\)")
    return pattern.sub(lambda m: "$(" if m[1] is None else values.get(m[1], m[0]), word)


def terminate(pod: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the first process of the container, as the kubelet sends it."""
    pod.send_signal(signal.SIGTERM)
