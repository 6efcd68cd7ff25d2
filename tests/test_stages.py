"""A stage started by hand: what it refuses, how it ends, what it leaves.

prepare_data stands for all where it can: it loads no torch.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import call_stage, conversation, write_jsonl

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError
from data_schemas.files import read_json
from engine.runtime import folder as stage_folder
from engine.runtime.functions import find_function

ROOT = Path(__file__).parent.parent
MAKERS = """
import os, pathlib, signal, time

def slow(folder, *, seed):
    (folder / "begun").write_text(str(os.getpid()))
    time.sleep(60)

def broken(folder, *, seed):
    raise RuntimeError("CUDA out of memory:\\ntried to allocate 2 GiB")

def interrupted(folder, *, seed):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)

not_a_function = 3
"""


def by_hand(stage: str, *words: Any, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "stages" / f"{stage}.py"), *map(str, words)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # A suite started in the background ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """What a stage that refuses says: one line and exit code 2."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.fixture
def words(tmp_path) -> list[Any]:
    """The words of a prepare_data that works, into tmp_path/out."""
    data = write_jsonl(tmp_path / "conversations.jsonl", [conversation(number) for number in range(40)])
    (tmp_path / "makers.py").write_text(MAKERS)
    return ["--instructions", data, "--report_to", "none", "--output_dir", tmp_path / "out"]


def test_the_record_comes_last_and_names_everything(words, tmp_path):
    done = by_hand("prepare_data", *words, "--step", "prepare_data", "--seed", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = Artifact.read(tmp_path / "out")
    assert record is not None and not record.missing(tmp_path / "out")
    assert (record.stage, record.step, record.keys["seed"]) == ("prepare_data", "prepare_data", 3)
    assert record.keys["validation_share"] == 0.05, "defaults are written out too"
    assert record.inputs == {"instructions": str(tmp_path / "conversations.jsonl")}
    assert not {"output_dir", "report_to", "use_cpu"} & set(record.keys), "how it was run is no part of what it is"
    assert record.outputs["instructions.train"] == "instructions.train.jsonl"
    assert {"torch", "trl"} <= set(record.versions)
    outcome = read_json(tmp_path / "out" / "outcome.json")
    assert outcome is not None and abs(sum(outcome.pop("seconds").values()) - record.seconds) < 0.5
    assert outcome == {"state": "done", "cause": "", "hint": "", "kind": ""}
    newest = max((path for path in (tmp_path / "out").iterdir()), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name in ("artifact.json", "log.txt")  # the log says so after it
    assert "whole: " in (tmp_path / "out" / "log.txt").read_text()


def test_a_finished_folder_is_refused_and_stays_as_it_is(words, tmp_path):
    assert by_hand("prepare_data", *words, cwd=tmp_path).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json*")}
    said = refusal(by_hand("prepare_data", *words, cwd=tmp_path))
    assert said == (
        f"error: {tmp_path / 'out'} holds a finished stage (artifact.json); choose another output_dir, or move it away"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json*")} == before


def test_an_unfinished_folder_goes_on_with_the_same_keys_only(words, tmp_path):
    assert by_hand("prepare_data", *words, "--make_data", "makers:broken", cwd=tmp_path).returncode == 1
    said = refusal(by_hand("prepare_data", *words, "--make_data", "makers:broken", "--seed", "4", cwd=tmp_path))
    assert said == (
        f"error: {tmp_path / 'out'} holds an unfinished prepare_data with other keys (seed); "
        "choose another output_dir, or move it away"
    )
    said = refusal(by_hand("prepare_data", *words, cwd=tmp_path))
    assert "(make_data)" in said
    # How it is run may change; the maker was mended.
    (tmp_path / "makers.py").write_text("def broken(folder, *, seed):\n    pass\n")
    again = by_hand("prepare_data", *words, "--make_data", "makers:broken", "--log_level", "warning", cwd=tmp_path)
    assert again.returncode == 0 and Artifact.read(tmp_path / "out") is not None


def test_a_key_that_the_stage_refused_may_be_mended_in_the_same_folder(words, tmp_path):
    assert by_hand("prepare_data", *words, "--judge_share", "2", cwd=tmp_path).returncode == 2
    assert by_hand("prepare_data", *words, cwd=tmp_path).returncode == 0


def test_a_folder_that_another_process_writes_is_refused(words, tmp_path):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711\n")
        file.flush()
        said = refusal(by_hand("prepare_data", *words, cwd=tmp_path))
    assert said == f"error: {tmp_path / 'out'} is being written by another process (pid 4711)"
    assert by_hand("prepare_data", *words, cwd=tmp_path).returncode == 0


def test_a_stage_ends_when_its_runner_has_died(words, tmp_path):
    runner = subprocess.Popen(["sleep", "60"])
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "stages" / "prepare_data.py"), *map(str, words), "--make_data", "makers:slow"],
        cwd=tmp_path,
        env=os.environ | {"ALIGNLOOP_RUNNER_PID": str(runner.pid)},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out" / "made" / "begun").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        runner.kill()
        runner.wait()
        assert process.wait(timeout=10) == 70
    finally:
        runner.kill()
        process.kill()
    assert Artifact.read(tmp_path / "out") is None


def test_an_error_is_told_in_outcome_json_with_a_hint(words, tmp_path):
    done = by_hand("prepare_data", *words, "--make_data", "makers:broken", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr
    outcome = read_json(tmp_path / "out" / "outcome.json")
    assert outcome["cause"] == "RuntimeError: CUDA out of memory: tried to allocate 2 GiB"
    assert (outcome["state"], outcome["kind"]) == ("failed", "error")
    assert "lower per_device_train_batch_size" in outcome["hint"]
    assert Artifact.read(tmp_path / "out") is None


def test_an_interrupted_stage_says_so(words, tmp_path):
    done = by_hand("prepare_data", *words, "--make_data", "makers:interrupted", cwd=tmp_path)
    assert done.returncode == 130
    assert read_json(tmp_path / "out" / "outcome.json")["state"] == "interrupted"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere:make", "nowhere:make: No module named 'nowhere' (looked beside the recipe, then among installed"),
        ("makers:make", "makers:make: makers has no function 'make'"),
        ("makers:not_a_function", "makers:not_a_function: makers has no function 'not_a_function'"),
        ("makers", "'makers' is not of the form module:function"),
    ],
)
def test_a_function_that_is_not_found_is_one_line(reference, message, words, tmp_path):
    said = refusal(by_hand("prepare_data", *words, "--make_data", reference, cwd=tmp_path))
    assert said.startswith(f"error: {message}")
    outcome = read_json(tmp_path / "out" / "outcome.json")
    assert outcome["kind"] == "config" and outcome["cause"].startswith(message)


def test_a_function_is_looked_up_beside_the_recipe_first(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("def dumps(text):\n    return 'beside the recipe'\n")
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    assert find_function("json:dumps")("x") == "beside the recipe"
    assert find_function("base64:b64encode")(b"") == b""
    assert json.dumps("x") == '"x"', "the module of that name stays"
    (tmp_path / "needs.py").write_text("import no_such_library\n")
    with pytest.raises(ConfigError, match="needs:f: No module named 'no_such_library'"):
        find_function("needs:f")


@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        ("prepare_data", ["--seed", "3"], "error: output_dir is missing: the folder this stage writes"),
        (
            "prepare_data",
            ["--output_dir", "out", "--seeed", "3"],
            "error: prepare_data: unknown key 'seeed' of stage prepare_data; did you mean 'seed'?",
        ),
        (
            "prepare_data",
            ["--output_dir", "out"],
            "error: prepare_data has nothing to read: give make_data, documents, instructions or preferences",
        ),
        (
            "rejection_sampling",
            ["--prompts", "p.jsonl", "--policies", "m", "--output_dir", "out"],
            "error: rejection_sampling: reward_model is missing (the reward model that ranks)",
        ),
    ],
)
def test_what_is_missing_is_one_line(stage, words, message, tmp_path):
    assert refusal(by_hand(stage, *words, cwd=tmp_path)) == message


def test_help_shows_our_own_keys_first_and_ends_well(tmp_path):
    done = by_hand("sft", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.index("--train_data") < done.stdout.index("keys of TRL") < done.stdout.index("  --learning_rate")
    assert len(done.stdout.splitlines()) < 60 and not any(tmp_path.iterdir())


def test_a_users_own_folders_do_not_stand_in_for_ours(words, tmp_path):
    for name in ("engine", "stages", "pipeline", "data_schemas"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    assert by_hand("prepare_data", *words, cwd=tmp_path).returncode == 0


def test_the_first_process_waits_for_the_others_before_it_clears_up(tmp_path, monkeypatch):
    """Another process may still read the first one's answers, which lie in `checkpoints`."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    (tmp_path / "checkpoints").mkdir()
    waiting = threading.Thread(target=stage_folder.wait_for_other_ranks, args=(tmp_path,), daemon=True)
    waiting.start()
    for rank in (2, 1):
        waiting.join(0.2)
        assert waiting.is_alive(), f"ended before rank {rank}"
        stage_folder.rank_done_file(tmp_path, rank).touch()
    waiting.join(10)
    assert not waiting.is_alive()


# -- what only a stage with a model can refuse ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "changed", "message"),
    [
        ("sft", {"model_name_or_path": "base"}, "has no chat template; run stages/prepare_base.py on it first"),
        ("sft", {"model_name_or_path": "empty"}, "has no tokenizer that can be read"),
        ("sft", {"train_data": ["pairs.jsonl"]}, "has the columns prompt, chosen, rejected; expected messages"),
        ("sft", {"train_data": ["none.jsonl"]}, "none.jsonl is empty: it has no rows"),
        ("sft", {"eval_data": ["conversations.jsonl"]}, "24 dialogs stand in train_data and in eval_data"),
        ("sft", {"max_length": 4}, "train: nothing is left of 24 rows (all too long, or nothing to train in them)"),
        ("sft", {"train_data_shares": [0.5, 0.5]}, "sft: 2 shares for 1 files of data; give one for each"),
        ("sft", {"eval_data": None, "validation_share": 0.0}, "sft: no row is left for eval_data"),
        (
            "pretrain",
            {"model_name_or_path": None, "train_data": ["documents.jsonl"], "eval_data": None},
            "pretrain needs architecture (random weights) or model_name_or_path (to continue from)",
        ),
    ],
)
def test_a_stage_that_cannot_run_says_why_in_one_line(stage, changed, message, tiny_model, tiny_base, rows, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.jsonl").touch()
    keys: dict[str, Any] = {
        "model_name_or_path": tiny_model,
        "train_data": ["conversations.jsonl"],
        "eval_data": ["conversations_eval.jsonl"],
        **changed,
    }
    models = {"base": tiny_base, "empty": tmp_path / "empty"}
    keys["model_name_or_path"] = models.get(keys["model_name_or_path"], keys["model_name_or_path"])
    for name in ("train_data", "eval_data"):
        if keys[name]:
            keys[name] = [tmp_path / file if file == "none.jsonl" else rows / file for file in keys[name]]
    assert call_stage(stage, tmp_path / "out", **keys) == 2
    outcome = read_json(tmp_path / "out" / "outcome.json")
    assert outcome["kind"] == "config" and message in outcome["cause"] and "\n" not in outcome["cause"]
