"""The job that `alignloop submit --to skypilot` writes, on a stand-in for SkyPilot: order, SIGTERM, recovery."""

import sys
from pathlib import Path

import pytest
import yaml

from data_schemas.errors import ConfigError
from pipeline.planner.devices import TABLE
from pipeline.recipe.sections import Launch
from pipeline.submit.skypilot import task, write_jobs
from pipeline.submit.submission import Submission
from tests.patience import PATIENCE
from tests.pipeline.submit.stand_in_skypilot import SkyPilot, documents, terminate
from tests.pipeline.submit.submitted import PROGRAM, SAVES, SETTINGS, job_named, records
from tests.pipeline.toy_house import copied
from tests.processes import within

SITE = {"setup": "pip install alignloop\n", "volumes": {"/work": "team"}, "resources": {"infra": "kubernetes"}}
SUBMIT = ("submit", "toy.yaml", "--to", "skypilot", "--site", "site.yaml", "--no-estimate", *SETTINGS)


def test_a_task_that_is_stopped_saves_is_started_again_and_resumes_to_the_result_of_run(world, tmp_path):
    plain = copied(world, tmp_path / "plain")
    assert plain.call("run", "toy.yaml", *SETTINGS)[0] == 0
    (world.work / "site.yaml").write_text(yaml.safe_dump(SITE))
    code, out, err = world.call(*SUBMIT)
    assert code == 0, err
    assert "toy-skypilot/submit.sh --infra=INFRA" in out
    sky = SkyPilot(tmp_path / "sky", sys.executable, str(world.command))
    submitted = sky.submit(world.work / "toy-skypilot", "--infra=kubernetes")
    assert submitted.returncode == 0, submitted.stderr
    job = sky.job()
    assert job["options"][-1] == "--infra=kubernetes"
    data, base, training, evaluation = job["tasks"]
    for each in (data, base):
        assert sky.end(each, sky.start(each)) == "SUCCEEDED"
    process = sky.start(training, TOY=SAVES)
    world.hanging()
    terminate(process)
    assert sky.end(training, process) == "RECOVERING"
    for each in (training, evaluation):
        assert sky.end(each, sky.start(each, TOY=SAVES)) == "SUCCEEDED"
    assert world.launched() == ["prepare_data", "prepare_base", "round-0.sft", "round-0.sft", "round-0.evaluate_policy"]
    assert len(records(world)) == 4
    assert records(world) == records(plain)


def test_a_task_is_started_again_only_so_often_and_not_at_all_after_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    submission = Submission(tmp_path / "my out", "toy", "toy.yaml", [], ["alignloop"])
    write_jobs(submission, [job_named("first")], SITE)
    sky = SkyPilot(tmp_path / "sky", sys.executable, str(tmp_path / "program.py"))
    assert sky.submit(submission.folder).returncode == 0
    (first,) = sky.job()["tasks"]
    counted = submission.folder / "jobs" / "first.restarts"
    for count, state in ((0, "RECOVERING"), (20, "FAILED")):
        if count:
            counted.write_text(str(count))
        process = sky.start(first)
        assert within(PATIENCE, Path("hangs").exists)
        terminate(process)
        assert sky.end(first, process) == state
        assert counted.read_text().strip() == str(count + 1)
        Path("hangs").unlink()
    (tmp_path / "program.py").write_text("import sys; sys.exit(2)")
    assert sky.end(first, sky.start(first)) == "FAILED"


def test_a_task_asks_for_what_its_step_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    submission = Submission(tmp_path / "out", "2 Runs: #1", "toy.yaml", ["a={b: 'c'}"], ["alignloop"])
    jobs = [
        job_named("prepare_data", memory=16),
        job_named("round-1.dpo", gpus=8, cores=64, launch=Launch(gpu="4090", grace_seconds=240)),
    ]
    write_jobs(submission, jobs, SITE)
    head, data, training = documents(submission.folder)
    assert head["name"].startswith("run-2-runs-1-")
    assert data["resources"] == {
        "cpus": "1+",
        "memory": "16+",
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [143]},
        "infra": "kubernetes",
    }
    assert training["resources"]["accelerators"] == {"RTX4090": 8}
    assert (training["num_nodes"], training["volumes"], training["setup"]) == (1, SITE["volumes"], SITE["setup"])
    command = """alignloop run toy.yaml --set 'a={b: '"'"'c'"'"'}' --only round-1.dpo &"""
    assert f"--signal=TERM {60 * 60 - 300} {command}" in training["run"]


@pytest.mark.parametrize("gpu", sorted(TABLE))
def test_every_gpu_of_the_planner_has_a_name_in_skypilot(gpu, tmp_path):
    job = job_named("sft", gpus=1, launch=Launch(gpu=gpu))
    (name,) = task(Submission(tmp_path, "toy", "toy.yaml", [], []), job, {})["resources"]["accelerators"]
    known = "B200 H200 H100 A100-80GB A100 L40S L4 A10G RTXA6000 RTX4090 RTX3090 V100-32GB T4"
    assert name in known.split()


def test_a_gpu_without_a_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"sft: launch\.gpu is not set, and SkyPilot needs the name of a GPU"):
        task(Submission(tmp_path, "toy", "toy.yaml", [], []), job_named("sft", gpus=1), {})
