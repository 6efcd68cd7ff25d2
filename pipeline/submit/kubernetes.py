"""Job files for Kubernetes: a manifest of a Job for each step, and submit.sh, which creates them in order.

A Job can't depend on another. An init container that waits would hold the GPUs of its pod, and one pod for the complete
run those of its largest step, so submit.sh creates a Job when the one before has succeeded.

A pod that is evicted or preempted gets SIGTERM and is replaced, which is not counted. Shortly before the time limit
the pod ends itself: the runner gets SIGTERM, and exits with 143 when the stage has saved a checkpoint. Such a pod is
replaced too, at most MAX_RESTARTS times. Any other exit code fails the Job at once.
"""

import shlex
from collections.abc import Sequence
from typing import Any

from data_schemas.errors import ConfigError
from data_schemas.files import write_atomically
from pipeline.submit.jobs import HALF_HOUR, Job
from pipeline.submit.step_script import check_machines, step_script
from pipeline.submit.submission import INTERRUPTED, MAX_RESTARTS, SUBMIT, Submission, file_names, why_limit
from pipeline.submit.yaml_jobs import dump, merged

CREATED, RUN_LABEL, CONTAINER = "created.txt", "alignloop-run", "step"
GPU = "nvidia.com/gpu"

SUBMIT_SCRIPT = """\
#!/bin/bash
# Runs the jobs of the run {run}: creates each when the one before has succeeded. Written by `alignloop submit`.
#     bash submit.sh [OPTION OF KUBECTL]...      as in --namespace=team --context=gpu
# It may be ended and called again at any time. A job continues without it, and created.txt has what it has created.
# To end the run, end this script, then: kubectl delete jobs --selector={selector}
set -euo pipefail
cd {folder}
touch created.txt
options=("$@")
ask() {{
    kubectl ${{options[@]+"${{options[@]}}"}} "$@"
}}
state() {{  # as in: exists Complete; nothing where there is no such job
    ask get job "$1" --ignore-not-found --output='jsonpath=exists {{.status.conditions[?(@.status=="True")].type}}'
}}
run_job() {{
    local name=$1 file=$2 found
    found=$(state "$name")
    if ! grep --quiet --line-regexp --fixed-strings "$name" created.txt; then
        case "$found" in
            "") ;;
            *Complete* | *Failed*) ask delete job "$name"; found= ;;  # it is of an earlier submission
            *)
                echo "error: the job $name of an earlier submission has not ended; wait for it or delete it" >&2
                exit 2 ;;
        esac
        echo "$name" >> created.txt
    fi
    if [ -z "$found" ]; then
        ask create --filename="$file"
    fi
    while true; do
        if found=$(state "$name"); then  # else the cluster did not answer
            case "$found" in
                *Complete*) echo "$name has succeeded"; return ;;
                *Failed*)
                    echo "error: $name has failed; kubectl logs job/$name shows why; then write the jobs again" >&2
                    exit 1 ;;
                "") echo "error: the job $name was deleted; call this script again to create it again" >&2; exit 1 ;;
            esac
        fi
        sleep "${{POLL_SECONDS:-15}}"
    done
}}
{jobs}
"""


def write_jobs(submission: Submission, jobs: Sequence[Job], site: dict[str, Any]) -> None:
    """Writes the manifests and submit.sh. Those of an earlier call are replaced. `site` is merged into each manifest.

    Raises ConfigError for a folder that holds something else, a site without an image, and a step on several machines.
    """
    check_machines(jobs)
    manifests = [manifest(submission, job, site) for job in jobs]
    submission.clear_folder(CREATED)
    names = file_names(jobs, "yaml")
    for name, job, content in zip(names, jobs, manifests, strict=True):
        head = f"# {job.step.name} of the run {submission.run}: {why_limit(job)}.\n# Written by `alignloop submit`.\n"
        write_atomically(submission.folder / name, head + dump(content))
    calls = [
        f"run_job {content['metadata']['name']} {shlex.quote(name)}"
        for name, content in zip(names, manifests, strict=True)
    ]
    script = SUBMIT_SCRIPT.format(
        run=submission.run,
        folder=shlex.quote(str(submission.folder)),
        selector=f"{RUN_LABEL}={submission.label}",
        jobs="\n".join(calls),
    )
    write_atomically(submission.folder / SUBMIT, script)


def manifest(submission: Submission, job: Job, site: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a Job, with what the site adds."""
    limits: dict[str, Any] = {"memory": f"{job.memory}Gi"} if job.memory else {}
    limits |= {GPU: job.gpus} if job.gpus else {}
    script = step_script(job, submission.command(job)).replace("$(", "$$(")  # Kubernetes would replace $(NAME) itself
    container: dict[str, Any] = {
        "name": CONTAINER,
        "command": ["/bin/bash", "-c", script],
        "resources": {"requests": {"cpu": job.cores, **limits}, "limits": limits},
    }
    volumes = []
    if job.gpus > 1:  # NCCL's shared memory; a container has 64 MiB otherwise
        container["volumeMounts"] = [{"name": "shm", "mountPath": "/dev/shm"}]
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    pod = {
        "restartPolicy": "Never",  # a failed pod is replaced by the rules of podFailurePolicy
        "terminationGracePeriodSeconds": job.warning_seconds,
        # The runner ends before this. It counts from the start of the pod, so there is time to load the image.
        "activeDeadlineSeconds": job.minutes * 60 + HALF_HOUR,
        "containers": [container],
        **({"volumes": volumes} if volumes else {}),
    }
    labels = {RUN_LABEL: submission.label}
    ours = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": submission.name(job), "labels": labels},
        "spec": {
            "backoffLimit": MAX_RESTARTS,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                    {"action": "Count", "onExitCodes": _exit_codes("In")},
                    {"action": "FailJob", "onExitCodes": _exit_codes("NotIn")},
                ]
            },
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    complete = merged(ours, site)
    try:
        has_image = complete["spec"]["template"]["spec"]["containers"][0]["image"]
    except (KeyError, IndexError, TypeError):
        has_image = None
    if not has_image:
        raise ConfigError(
            "--site gives no image for the jobs; give a YAML file with spec: {template: {spec: {containers: "
            f"[{{name: {CONTAINER}, image: ...}}]}}}}}}, as in docs/clusters.md"
        )
    return complete


def _exit_codes(operator: str) -> dict[str, Any]:
    return {"containerName": CONTAINER, "operator": operator, "values": [INTERRUPTED]}
