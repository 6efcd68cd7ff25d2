"""The line that tells how a stage was launched, and the warning where accelerate's config asks for more processes."""

import logging

import pytest

from engine.runtime import launch_report, notices
from tests.stage_runs import run_here

# What `accelerate config` writes for two processes on a CPU; accelerate launch starts one unless MPI is set up.
TWO_ON_CPU = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"


@pytest.fixture
def launched(monkeypatch, tmp_path, caplog):
    """Reports with the environment of a launcher, and returns the lines."""
    monkeypatch.delenv("ALIGNLOOP_RUNNER_PID", raising=False)
    notices.start(None)

    def report(values=None, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            launch_report.report({"use_cpu": True} | (values or {}))
        return [record.getMessage() for record in caplog.records]

    return report


@pytest.fixture
def own_config(monkeypatch, tmp_path):
    from accelerate.commands.config import config_args

    def write(text):
        (tmp_path / "default_config.yaml").write_text(text)
        monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "default_config.yaml"))

    return write


def test_a_stage_logs_its_processes_and_what_a_global_batch_is_divided_into(tiny_model, rows, tmp_path):
    data = {"train_data": [rows / "conversations.jsonl"], "eval_data": [rows / "conversations_eval.jsonl"]}
    batch = {"global_batch_size": 8, "per_device_train_batch_size": 2}
    run_here("sft", tmp_path / "out", model_name_or_path=tiny_model, max_steps=1, **batch, **data)
    line = "1 process on cpu; global_batch_size 8 = 1 process x 2 rows x 4 accumulation steps"
    assert line in (tmp_path / "out" / "log.txt").read_text()


def test_two_processes_and_the_zero_stage_are_in_the_line(launched):
    batch = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    assert launched(batch, WORLD_SIZE="2", **zero) == [
        "2 processes on cpu with ZeRO-2; global_batch_size 32 = 2 processes x 8 rows x 2 accumulation steps"
    ]


def test_a_config_of_accelerate_that_asks_for_two_processes_in_vain_is_a_warning_of_the_record(launched, own_config):
    own_config(TWO_ON_CPU)
    line, warning = launched(ACCELERATE_MIXED_PRECISION="no")
    assert line == "1 process on cpu"
    assert warning.startswith("one process runs, but accelerate's config has num_processes: 2; ")
    assert notices.kept() == [warning]


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        (TWO_ON_CPU, {}),  # python stages/sft.py
        (TWO_ON_CPU, {"ACCELERATE_MIXED_PRECISION": "no", "ALIGNLOOP_RUNNER_PID": "1"}),  # the runner has its own
        (TWO_ON_CPU, {"ACCELERATE_MIXED_PRECISION": "no", "WORLD_SIZE": "2"}),
        (TWO_ON_CPU.replace("2", "1"), {"ACCELERATE_MIXED_PRECISION": "no"}),
        ("[", {"ACCELERATE_MIXED_PRECISION": "no"}),
    ],
    ids=["by hand", "by the runner", "two", "one", "damaged"],
)
def test_there_is_no_warning_where_nothing_is_missing(launched, own_config, text, environment):
    own_config(text)
    assert len(launched(**environment)) == 1
