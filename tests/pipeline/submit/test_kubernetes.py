"""The jobs that `alignloop submit --to k8s` writes, on a stand-in for Kubernetes: order, SIGTERM, replaced pods."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_schemas.errors import ConfigError
from data_schemas.files import write_atomically
from pipeline.recipe.sections import Launch
from pipeline.submit import submission as names
from pipeline.submit.kubernetes import manifest, write_jobs
from pipeline.submit.submission import Submission
from pipeline.submit.yaml_jobs import merged
from tests.patience import PATIENCE
from tests.pipeline.submit.stand_in_kubernetes import Kubernetes, terminate
from tests.pipeline.submit.submitted import PROGRAM, SAVES, SETTINGS, job_named, records
from tests.pipeline.toy_house import copied
from tests.processes import within

SITE = {
    "metadata": {"namespace": "team"},
    "spec": {
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "step",
                        "image": "alignloop:1",
                        "volumeMounts": [{"name": "work", "mountPath": "/work"}],
                        "env": [{"name": "HOME", "value": "/cache"}],
                    }
                ],
                "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": "work"}}],
            }
        }
    },
}
SUBMIT = ("submit", "toy.yaml", "--to", "k8s", "--site", "site.yaml", "--no-estimate", *SETTINGS)


def next_active(cluster: Kubernetes, submit: subprocess.Popen[str]) -> str | None:
    """The job that waits for a pod; None when submit.sh has ended."""
    assert within(PATIENCE, lambda: cluster.active() or submit.poll() is not None)
    return cluster.active()


def test_a_pod_that_is_evicted_saves_is_replaced_and_resumes_to_the_result_of_run(world, tmp_path):
    plain = copied(world, tmp_path / "plain")
    assert plain.call("run", "toy.yaml", *SETTINGS)[0] == 0
    (world.work / "site.yaml").write_text(yaml.safe_dump(SITE))
    code, out, err = world.call(*SUBMIT)
    assert code == 0, err
    assert "toy-k8s/submit.sh --namespace=NAMESPACE" in out
    cluster = Kubernetes(tmp_path / "cluster", sys.executable, str(world.command))
    submit = cluster.submit(world.work / "toy-k8s", "--context=gpu")
    for _ in range(2):
        job = next_active(cluster, submit)
        assert job is not None and cluster.end(job, cluster.start(job)) == "Complete"
        assert within(PATIENCE, lambda job=job: cluster.active() not in (None, job))
    training = cluster.active()
    assert training is not None and training.startswith("toy-round-0-sft-")
    pod = cluster.start(training, TOY=SAVES)
    world.hanging()
    terminate(pod)
    assert cluster.end(training, pod, is_disrupted=True) == "Active"
    assert (cluster.jobs()[training]["codes"], cluster.jobs()[training]["failed"]) == ([143], 0)
    submit.terminate()  # submit.sh may end while a job runs, and be called again
    submit.communicate(timeout=PATIENCE)
    submit = cluster.submit(world.work / "toy-k8s", "--context=gpu")
    while (job := next_active(cluster, submit)) is not None:
        assert cluster.end(job, cluster.start(job, TOY=SAVES)) == "Complete"
        assert within(PATIENCE, lambda job=job: cluster.active() != job)
        within(2, lambda: cluster.active() or submit.poll() is not None)
    out, err = submit.communicate(timeout=PATIENCE)
    assert (submit.returncode, err) == (0, ""), out
    assert [job["conditions"][-1] for job in cluster.jobs().values()] == ["Complete"] * 4
    assert world.launched() == ["prepare_data", "prepare_base", "round-0.sft", "round-0.sft", "round-0.evaluate_policy"]
    assert world.summary()["state"] == "done"
    assert len(records(world)) == 4
    assert records(world) == records(plain)


@pytest.fixture
def hanging(tmp_path, monkeypatch) -> Kubernetes:
    """A cluster, and job files of two steps of a program that hangs, in the folder `out`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    submission = Submission(tmp_path / "out", "toy", "toy.yaml", [], ["alignloop"])
    write_jobs(submission, [job_named("first"), job_named("second")], SITE)
    return Kubernetes(tmp_path / "cluster", sys.executable, str(tmp_path / "program.py"))


def test_a_pod_that_ends_itself_is_replaced_only_so_often_and_the_failure_ends_the_run(hanging):
    submit = hanging.submit(Path("out"))
    first = next_active(hanging, submit)
    assert first is not None
    for failed, state in ((0, "Active"), (20, "Failed")):
        hanging.change(first, failed=failed)
        pod = hanging.start(first)
        assert within(PATIENCE, Path("hangs").exists)
        terminate(pod)
        assert hanging.end(first, pod) == state
        Path("hangs").unlink()
    _, err = submit.communicate(timeout=PATIENCE)
    assert (submit.returncode, len(hanging.jobs())) == (1, 1)
    assert err == f"error: {first} has failed; kubectl logs job/{first} shows why; then write the jobs again\n"


def test_a_step_that_fails_is_not_tried_again(hanging):
    Path("program.py").write_text("import sys; sys.exit(2)")
    submit = hanging.submit(Path("out"))
    first = next_active(hanging, submit)
    assert first is not None and hanging.end(first, hanging.start(first)) == "Failed"
    assert hanging.jobs()[first]["failed"] == 0
    assert submit.wait(timeout=PATIENCE) == 1


def test_the_runner_gets_sigterm_in_time_before_the_limit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    submission = Submission(tmp_path / "out", "toy", "toy.yaml", [], [sys.executable, str(tmp_path / "program.py")])
    job = job_named("first", minutes=60, launch=Launch(device="cpu", grace_seconds=3539))
    script = manifest(submission, job, SITE)["spec"]["template"]["spec"]["containers"][0]["command"][2]
    assert " --signal=TERM 1 " in script  # 60 minutes less grace_seconds and a minute
    assert subprocess.run(["/bin/bash", "-c", script], timeout=PATIENCE, check=False).returncode == 143
    with pytest.raises(
        ConfigError, match=r"time limit of 30 minutes, which is not longer than launch\.grace_seconds=18"
    ):
        manifest(submission, job_named("first", minutes=30, launch=Launch(grace_seconds=1800)), SITE)


def test_jobs_of_an_earlier_submission_are_waited_for_and_ended_ones_are_replaced(hanging, tmp_path):
    submit = hanging.submit(Path("out"))
    first = next_active(hanging, submit)
    assert first is not None
    submit.kill()
    submission = Submission(tmp_path / "out", "toy", "toy.yaml", [], ["alignloop"])
    write_jobs(submission, [job_named("first"), job_named("second")], SITE)
    again = hanging.submit(Path("out"))
    _, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 2
    assert err == f"error: the job {first} of an earlier submission has not ended; wait for it or delete it\n"
    hanging.change(first, conditions=["Complete"], codes=["old"])
    again = hanging.submit(Path("out"))
    assert within(PATIENCE, lambda: hanging.active() == first and hanging.jobs()[first]["codes"] == [])
    write_atomically(hanging.server, "{}")  # deleted by hand
    _, err = again.communicate(timeout=PATIENCE)
    assert (again.returncode, "was deleted" in err) == (1, True)


def test_a_job_asks_for_what_its_step_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = job_named("round-1.dpo", gpus=8, cores=64, memory=300, minutes=90, launch=Launch(grace_seconds=240))
    found = manifest(Submission(tmp_path / "out", "toy", "toy.yaml", [], ["alignloop"]), job, SITE)
    pod = found["spec"]["template"]["spec"]
    assert found["metadata"]["namespace"] == "team"
    assert (found["spec"]["backoffLimit"], pod["restartPolicy"]) == (20, "Never")
    assert (pod["terminationGracePeriodSeconds"], pod["activeDeadlineSeconds"]) == (300, 90 * 60 + 1800)
    (step,) = pod["containers"]
    assert step["image"] == "alignloop:1"
    assert step["resources"] == {
        "requests": {"cpu": 64, "memory": "300Gi", "nvidia.com/gpu": 8},
        "limits": {"memory": "300Gi", "nvidia.com/gpu": 8},
    }
    assert [volume["name"] for volume in pod["volumes"]] == ["shm", "work"]
    assert [mount["mountPath"] for mount in step["volumeMounts"]] == ["/dev/shm", "/work"]
    assert f" --signal=TERM {90 * 60 - 300} alignloop run toy.yaml --only round-1.dpo &" in step["command"][2]
    on_cpu = manifest(Submission(tmp_path / "out", "toy", "toy.yaml", [], ["alignloop"]), job_named("x"), SITE)
    resources = on_cpu["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources == {"requests": {"cpu": 1}, "limits": {}}
    with pytest.raises(ConfigError, match="--site gives no image for the jobs; give a YAML file"):
        manifest(Submission(tmp_path / "out", "toy", "toy.yaml", [], ["alignloop"]), job, {})
    with pytest.raises(ConfigError, match=r"round-1\.sft runs on 2 machines, which only --to slurm supports"):
        write_jobs(Submission(tmp_path / "o", "t", "t.yaml", [], []), [job_named("round-1.sft", machines=2)], {})
    assert not (tmp_path / "o").exists()


HOSTILE = 'data.instructions=it\'s $(HOME) `id` "x": {a}\n---\nb #.jsonl'


def test_hostile_names_and_values_reach_the_command_as_they_are(tmp_path, monkeypatch):
    work = tmp_path / "my $(HOME) 'folder'"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "program.py").write_text("import json, sys; json.dump(sys.argv[1:], open('words.json', 'w'))")
    cluster = Kubernetes(tmp_path / "cluster", sys.executable, shlex.quote(str(work / "program.py")))
    submission = Submission(work / "out: - x", "Ünï_run.2", "my recipe.yaml", [HOSTILE], ["alignloop"])
    write_jobs(submission, [job_named("first")], SITE)
    submit = cluster.submit(submission.folder)
    job = next_active(cluster, submit)
    assert job is not None and cluster.end(job, cluster.start(job)) == "Complete"
    assert submit.wait(timeout=PATIENCE) == 0
    words = yaml.safe_load((work / "words.json").read_text())
    assert words == ["run", "my recipe.yaml", "--set", HOSTILE, "--only", "first"]


def test_names_are_labels_of_rfc_1123_and_differ_for_each_run_and_step():
    texts = ["toy-round-0.sft", "TOY-round-0.sft", "toy-round-0-sft", "7b", "ü", "", "-", "a" * 300, "Run_1" * 40]
    found = [names.label(text, text) for text in texts]
    for name in found:
        assert len(name) <= 63 and name == name.lower() and name.isascii() and name.replace("-", "").isalnum()
        assert name[0].isalpha() and name[-1].isalnum() and "--" not in name
    assert len(set(found)) == len(texts)
    assert found[0].startswith("toy-round-0-sft-") and found[3].startswith("run-7b-")


def test_a_site_is_merged_by_key_and_by_name():
    ours = {"a": {"b": 1, "c": [{"name": "x", "y": 1}]}, "codes": [1, 2]}
    site = {"a": {"b": 2, "c": [{"name": "z"}, {"name": "x", "w": 3}]}, "codes": [3]}
    assert merged(ours, site) == {"a": {"b": 2, "c": [{"name": "x", "y": 1, "w": 3}, {"name": "z"}]}, "codes": [3]}
    assert ours == {"a": {"b": 1, "c": [{"name": "x", "y": 1}]}, "codes": [1, 2]}
