"""The runner and the command, with toy stages: what is reused, resumed and run, and how it fails and stops."""

import fcntl
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import yaml
from fake_stages import build_house, build_inputs
from rich.console import Console

from data_schemas.locks import is_locked
from pipeline.launch import command_line
from pipeline.plan import Step
from pipeline.recipe.sections import Launch
from pipeline.report import terminal
from pipeline.state.run import StepState

ONE_ROUND = ("--set", "rounds=1")
STEPS_OF_ONE_ROUND = [
    "prepare_data",
    "prepare_base",
    "round-0.sft",
    "round-0.evaluate_policy",
    "round-1.annotate",
    "round-1.reward_model",
    "round-1.rejection_sampling",
    "round-1.sft",
    "round-1.dpo",
    "round-1.evaluate_policy",
]


class World:
    """A house of toy stages, a folder to work in, and the command."""

    def __init__(self, root: Path) -> None:
        self.command = build_house(root / "house")
        self.work = build_inputs(root / "work").parent
        self.run_folder = self.work / "runs" / "toy"

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        env = os.environ | {"TOY": "{}", "SCORES": "{}", "GRACE": "0.5"} | environment
        return subprocess.Popen(
            [sys.executable, str(self.command), *words],
            cwd=self.work,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def call(self, *words: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def run(self, *words: str, **environment: str) -> tuple[int, str, str]:
        return self.call("run", "toy.yaml", *ONE_ROUND, *words, **environment)

    def launched(self) -> list[str]:
        """The steps that were started since the last call of this."""
        path = self.run_folder / "launched.txt"
        names = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return names

    def summary(self) -> dict:
        return json.loads((self.run_folder / "summary.json").read_text())

    def states(self) -> dict[str, str]:
        return {step["name"]: step["state"] for step in self.summary()["steps"]}

    def folder(self, step: str) -> Path:
        (folder,) = self.run_folder.glob(f"{step}-????????")
        return folder

    def config(self, step: str) -> dict:
        return yaml.safe_load((self.folder(step) / "config.yaml").read_text())

    def hanging(self, *, stages: int = 1) -> list[int]:
        """Waits for the toy stages that hang; their processes and those of their children."""
        path, deadline = self.run_folder / "hanging.txt", time.monotonic() + 30
        while not (path.exists() and len(path.read_text().split()) == 2 * stages):
            assert time.monotonic() < deadline, "no stage hangs"
            time.sleep(0.02)
        return [int(pid) for pid in path.read_text().split()]


def copied(world: World, work: Path) -> World:
    """The same command on a copy of the run and its inputs."""
    other = World.__new__(World)
    other.command, other.work, other.run_folder = world.command, work, work / "runs" / "toy"
    shutil.copytree(world.work, work, symlinks=True, dirs_exist_ok=True)
    return other


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def seconds_of(call: Callable[[], tuple[int, str, str]]) -> float:
    started = time.monotonic()
    assert call()[0] == 0
    return time.monotonic() - started


def test_a_finished_run_is_reused_whole_and_starts_no_process(world):
    code, out, _ = world.run()
    assert code == 0
    assert world.launched() == STEPS_OF_ONE_ROUND
    assert set(world.states().values()) == {"ran"}
    folder = world.folder("round-1.dpo")
    assert f"chat runs/toy/{folder.name}/model" in out
    assert "runs/toy/summary.json" in out

    # The command's own start is nearly all there is.
    assert seconds_of(world.run) < 4 * seconds_of(lambda: world.call("--help"))
    assert world.launched() == []
    assert set(world.states().values()) == {"reused"}


def test_an_edited_key_runs_what_hangs_on_it_and_both_results_exist(world):
    world.run()
    world.launched()
    code, out, _ = world.call("plan", "toy.yaml", *ONE_ROUND, "--set", "dpo.beta=0.2")
    assert code == 0
    lines = [line.strip("│├└─ ").partition("  <- ")[0] for line in out.splitlines()]
    assert [line.split()[1] for line in lines if line.startswith("run ")] == [
        "round-1.dpo:",
        "round-1.evaluate_policy:",
    ]
    assert "run    round-1.dpo: dpo.beta 0.1 -> 0.2" in lines
    assert "run    round-1.evaluate_policy: input round-1.dpo changed" in lines
    assert world.launched() == []

    assert world.run("--set", "dpo.beta=0.2")[0] == 0
    assert world.launched() == ["round-1.dpo", "round-1.evaluate_policy"]
    assert len(list(world.run_folder.glob("round-1.dpo-*"))) == 2
    assert world.run()[0] == 0  # and back, for free
    assert world.launched() == []


def test_a_step_with_a_missing_or_cut_file_runs_again_and_nothing_else(world):
    world.run()
    world.launched()
    (world.folder("round-1.sft") / "model" / "config.json").write_text("")
    assert (
        "round-1.sft: model/config.json is missing or has another size" in world.call("plan", "toy.yaml", *ONE_ROUND)[1]
    )
    assert world.run()[0] == 0
    assert world.launched() == ["round-1.sft"]


def test_the_stages_are_given_what_the_plan_says(world):
    world.run("--set", "human_share=0.25")
    sft = world.config("round-1.sft")
    winners = world.folder("round-1.rejection_sampling") / "winners.train.jsonl"
    data = world.folder("prepare_data")
    assert sft["train_data"] == [str(winners), str(data / "instructions.train.jsonl")]
    assert sft["train_data_shares"] == [1.0, 0.25]
    # The toy rejection sampling makes no winners.validation: an optional output is left out.
    assert sft["eval_data"] == [str(data / "instructions.validation.jsonl")]
    assert sft["use_cpu"] is True
    assert (sft["step"], sft["run_group"]) == ("round-1.sft", "toy")
    assert world.folder("round-1.sft").name.endswith(sft["fingerprint"][:8])
    annotate = world.config("round-1.annotate")
    assert annotate["policies"] == [str(world.folder("round-0.sft") / "model")]
    assert annotate["policy_names"] == ["round-0.sft"]
    assert world.config("round-1.evaluate_policy")["previous"] == [str(world.folder("round-0.evaluate_policy"))]


def test_a_round_that_made_things_worse_is_not_built_upon(world):
    assert world.call("run", "toy.yaml", SCORES='{"round-1.dpo": -1.0, "round-2.dpo": -0.5}')[0] == 0
    first = str(world.folder("round-0.sft") / "model")
    assert world.config("round-2.rejection_sampling")["policies"] == [first]
    assert world.config("round-2.annotate")["policy_names"] == ["round-0.sft", "round-1.dpo"]
    assert world.summary()["best_policy"] == {
        "step": "round-0.sft",
        "folder": f"{world.folder('round-0.sft').name}/model",
        "score": 0.0,
    }


def test_a_gate_that_stops_skips_the_later_rounds_and_says_by_which_number(world):
    code, out, _ = world.call("run", "toy.yaml", GATES='{"round-1.evaluate_policy": "stop"}')
    assert code == 0
    reason = "round-1.evaluate_policy stopped the run: KL 25.000 > 20"
    assert world.launched()[-1] == "round-1.evaluate_policy"
    states = world.states()
    assert {state for name, state in states.items() if name.startswith("round-2")} == {"skipped"}
    assert {state for name, state in states.items() if not name.startswith("round-2")} == {"ran"}
    summary = world.summary()
    assert summary["state"] == "done"
    assert (summary["rounds"][1]["gate"], summary["rounds"][1]["gate_reason"]) == ("stop", "KL 25.000 > 20")
    assert summary["rounds"][2]["gate"] is None and summary["rounds"][2]["reasons"]["gate"] == reason
    assert re.search(r"\| gate .*\| +stop \|", out) and re.search(r"\| decided by .*\| KL 25.000 > 20 \|", out)
    planned = world.call("plan", "toy.yaml")[1]
    assert f"skip   round-2.dpo: {reason}" in planned and "6 skip" in planned
    # Another rule makes another evaluation: what was skipped then runs.
    assert world.call("run", "toy.yaml", "--set", "seed=1")[0] == 0
    assert "round-2.evaluate_policy" in world.launched()


def test_online_dpo_runs_from_a_chat_model_with_given_reward_models(world):
    settings = [
        "round_stages=[annotate, dpo]",
        "first_sft=false",
        "dpo_reference=first",
        "annotate_policies=best",
        "annotate={annotator_models: [acme/reward], num_answers: 8}",
    ]
    words = [word for setting in settings for word in ("--set", setting)]
    assert world.call("run", "toy.yaml", *words, SCORES='{"round-1.dpo": -1.0}')[0] == 0
    assert world.launched() == [
        "prepare_data",
        "prepare_base",
        "round-0.evaluate_policy",
        "round-1.annotate",
        "round-1.dpo",
        "round-1.evaluate_policy",
        "round-2.annotate",
        "round-2.dpo",
        "round-2.evaluate_policy",
    ]
    base = str(world.folder("prepare_base") / "model")
    # Round 1 made things worse: round 2 goes on from the base.
    assert world.config("round-2.annotate")["policies"] == [base]
    assert world.config("round-2.annotate")["policy_names"] == ["prepare_base"]
    assert world.config("round-2.annotate")["annotator_models"] == ["acme/reward"]
    dpo = world.config("round-2.dpo")
    assert (dpo["model_name_or_path"], dpo["reference_model"]) == (base, base)
    assert dpo["train_data"] == [str(world.folder("round-2.annotate") / "pairs.train.jsonl")]
    assert world.config("round-2.evaluate_policy")["proxy_model"] == "acme/reward"
    rows = world.summary()["rounds"]
    assert [row["policy"] for row in rows] == ["prepare_base", "round-1.dpo", "round-2.dpo"]
    assert rows[2]["reasons"]["sft_eval_loss"] == "round 2 has no sft"
    assert world.summary()["best_policy"]["step"] == "round-2.dpo"


def test_raft_runs_on_winners_alone(world):
    settings = [
        "round_stages=[rejection_sampling, sft]",
        "first_sft=false",
        "sft_from=best",
        "human_share=0",
        "data={prompts: chats.jsonl}",
        "rejection_sampling.reward_model=acme/reward",
    ]
    code, out, _ = world.call("run", "toy.yaml", *(word for setting in settings for word in ("--set", setting)))
    assert code == 0 and "best policy: round-2.sft" in out
    assert world.launched()[2:] == [
        "round-0.evaluate_policy",
        "round-1.rejection_sampling",
        "round-1.sft",
        "round-1.evaluate_policy",
        "round-2.rejection_sampling",
        "round-2.sft",
        "round-2.evaluate_policy",
    ]
    first = str(world.folder("round-1.sft") / "model")
    assert world.config("round-2.rejection_sampling")["policies"] == [first]
    assert world.config("round-2.rejection_sampling")["reward_model"] == "acme/reward"
    sft = world.config("round-2.sft")
    assert sft["model_name_or_path"] == first
    assert sft["train_data"] == [str(world.folder("round-2.rejection_sampling") / "winners.train.jsonl")]


def test_a_recipe_for_gpus_is_planned_anywhere_but_runs_only_where_there_is_one(world):
    code, out, err = world.call("plan", "toy.yaml", "--set", "launch.device=gpu", CUDA_VISIBLE_DEVICES="")
    assert (code, err.count("\n")) == (0, 1)
    assert "run    round-2.dpo: never ran" in out
    assert err.startswith("warning: toy.yaml: launch: this machine has no GPU")
    code, out, err = world.call("run", "toy.yaml", "--set", "launch.device=gpu", CUDA_VISIBLE_DEVICES="")
    assert (code, out) == (2, "")
    assert err.startswith("error: toy.yaml: launch: this machine has no GPU")
    assert not world.run_folder.exists()


def test_the_summary_has_its_schema_and_a_reason_for_every_null(world):
    world.run()
    summary = world.summary()
    assert list(summary) == ["name", "state", "steps", "rounds", "best_policy"]
    assert summary["state"] == "done"
    assert list(summary["steps"][0]) == [
        "name",
        "stage",
        "round",
        "folder",
        "fingerprint",
        "state",
        "seconds",
        "metrics",
    ]
    rows = summary["rounds"]
    assert [(row["round"], row["policy"], row["gold_mean"]) for row in rows] == [
        (0, "round-0.sft", 0.0),
        (1, "round-1.dpo", 1.0),
    ]
    for row in rows:
        assert {name for name, value in row.items() if value is None} == set(row["reasons"])
    assert rows[0]["reasons"]["reward_accuracy"] == "round 0 has no reward_model"
    assert rows[0]["reasons"]["win_rate_vs_first"] == "there is no earlier policy"
    assert rows[1]["sft_eval_loss"] == 1.5


def test_a_stage_that_fails_is_told_with_command_log_and_hint_and_the_rest_is_kept(world):
    code, _, err = world.run(TOY='{"round-1.dpo": "fail"}')
    assert code == 1
    lines = err.splitlines()
    assert lines[0] == "error: round-1.dpo failed: ended with exit code 1"
    assert lines[1].endswith(f"stages/dpo.py --config {world.folder('round-1.dpo')}/config.yaml")
    assert lines[2] == f"last lines of runs/toy/{world.folder('round-1.dpo').name}/console.txt:"
    assert "  RuntimeError: torch.OutOfMemoryError: no memory" in lines
    assert lines[-1].startswith("hint: out of device memory: lower per_device_train_batch_size")
    assert world.summary()["state"] == "failed"
    assert world.states()["round-1.dpo"] == "failed"
    assert world.states()["round-1.evaluate_policy"] == "pending"

    world.launched()
    assert "round-1.dpo: did not finish" in world.call("plan", "toy.yaml", *ONE_ROUND)[1]
    assert world.run()[0] == 0
    assert world.launched() == ["round-1.dpo", "round-1.evaluate_policy"]
    assert world.states()["round-1.sft"] == "reused"


def test_a_stage_that_was_killed_is_told_with_the_likely_cause(world):
    code, _, err = world.run(TOY='{"round-1.dpo": "killed"}')
    assert code == 1
    assert err.startswith("error: round-1.dpo failed: killed by SIGKILL\n")
    assert "hint: killed, most likely for its memory: lower per_device_train_batch_size or generation_batch" in err


def test_a_stage_that_halved_its_batch_is_started_again_once_and_the_run_goes_on(world):
    code, out, err = world.run(TOY='{"round-1.dpo": "halve"}')
    assert code == 0, err
    assert world.launched() == [*STEPS_OF_ONE_ROUND[:-1], "round-1.dpo", STEPS_OF_ONE_ROUND[-1]]
    (said,) = [line for line in out.splitlines() if " halved " in line]
    assert "round-1.dpo" in said and said.endswith("(8 rows are too much: 4 now)")
    assert world.states()["round-1.dpo"] == "ran"


def test_a_stage_that_fails_after_it_halved_its_batch_has_failed(world):
    code, _, err = world.run(TOY='{"round-1.dpo": "halve and fail"}')
    assert code == 1
    assert err.startswith("error: round-1.dpo failed: ended with exit code 1")
    assert world.launched().count("round-1.dpo") == 2


def test_a_stage_that_never_stops_halving_is_started_three_times(world):
    code, _, err = world.run(TOY='{"round-1.dpo": "halve for ever"}')
    assert code == 1
    assert err.startswith("error: round-1.dpo failed: 8 rows are too much: 4 now")
    assert world.launched().count("round-1.dpo") == 3


def test_a_users_mistake_that_only_a_stage_can_see_is_exit_code_two(world):
    code, _, err = world.run(TOY='{"round-1.dpo": "config"}')
    assert code == 2
    assert "error: round-1.dpo failed: beta=9 is too much" in err
    assert "hint: try 1" in err


def test_an_empty_split_is_exit_code_two_and_names_the_step(world):
    code, _, err = world.run(TOY='{"round-1.annotate": "empty", "prepare_data": "empty"}')
    assert code == 2
    assert err.startswith("error: prepare_data made no instructions.train: the split is empty")
    assert err.count("\n") == 1


def test_a_step_with_a_whole_checkpoint_is_resumed(world):
    world.run(TOY='{"round-1.dpo": "checkpoint"}')
    assert "resume round-1.dpo: from checkpoint-50" in world.call("plan", "toy.yaml", *ONE_ROUND)[1]
    assert world.run()[0] == 0
    assert world.states()["round-1.dpo"] == "resumed"
    assert (world.folder("round-1.dpo") / "checkpoints" / "checkpoint-50" / "whole.json").exists()


def test_without_a_whole_checkpoint_nothing_half_written_is_left(world):
    world.run(TOY='{"round-1.dpo": "fail"}')
    folder = world.folder("round-1.dpo")
    (folder / "model").mkdir()
    (folder / "model" / "half.safetensors").write_text("")
    (folder / "metrics.jsonl").write_text("{}")
    world.run()
    assert not (folder / "model" / "half.safetensors").exists()
    assert not (folder / "metrics.jsonl").exists()
    assert (folder / "console.txt").read_text().count("hello from round-1.dpo") == 2


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("behaviour", ["hang", "stubborn"])
def test_a_signal_stops_the_stage_and_all_it_started(world, number, exit_code, behaviour):
    process = world.start("run", "toy.yaml", *ONE_ROUND, TOY=json.dumps({"round-0.sft": behaviour}))
    pids = world.hanging()
    assert all(map(alive, pids))
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == exit_code
    assert not any(map(alive, pids))
    assert "interrupted; what is finished is kept" in err
    assert world.summary()["state"] == "interrupted"
    assert world.states()["round-0.sft"] == "failed"


def test_the_stage_of_a_killed_runner_is_ended_before_its_step_is_run_again(world):
    process = world.start("run", "toy.yaml", *ONE_ROUND, TOY='{"round-0.sft": "hang"}')
    pids = world.hanging()
    process.kill()
    process.communicate()
    assert all(map(alive, pids))  # the toy stage does not watch its runner; ours do
    assert "stopped: its runner is gone" in world.call("status", "runs/toy")[1]
    world.launched()
    assert world.run()[0] == 0
    assert not any(map(alive, pids))
    assert world.launched() == STEPS_OF_ONE_ROUND[2:]


def test_a_second_run_on_the_same_folder_is_refused_and_names_the_first(world):
    process = world.start("run", "toy.yaml", *ONE_ROUND, TOY='{"round-0.sft": "hang"}')
    world.hanging()
    code, _, err = world.run()
    assert code == 2
    assert err == f"error: {world.run_folder} is in use by another run (pid {process.pid}); wait for it or stop it\n"
    assert "toy: running" in world.call("status", "runs/toy")[1]
    process.terminate()
    process.communicate()


def test_a_folder_that_has_packages_of_our_names_masks_none_of_ours(world):
    for name in ("pipeline", "stages", "engine", "data_schemas", "yaml"):
        (world.work / name).mkdir()
        (world.work / name / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    (world.work / "stages" / "sft.py").write_text("raise RuntimeError('the wrong one')")
    assert world.run()[0] == 0


def test_verbose_passes_the_stages_output_on(world):
    out = world.run("-v")[1]
    assert "hello from round-1.dpo" in out
    assert "hello from round-1.dpo" not in world.run("--set", "dpo.beta=0.2")[1]


def test_status_shows_every_step_and_the_table_by_round(world):
    world.run()
    for target in ("runs/toy", "runs/toy/summary.json"):
        code, out, _ = world.call("status", target)
        assert code == 0
        assert f"| {world.folder('round-1.reward_model').name} " in out
        assert ["judge's", "mean", "|", "0.000", "|", "1.000"] in [
            line.strip("| ").split() for line in out.splitlines()
        ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "gone.yaml"), "error: gone.yaml does not exist\n"),
        (
            ("plan", "toy.yaml", "--set", "dpo.betta=1"),
            "error: toy.yaml: dpo: unknown key 'betta' of stage dpo; did you mean 'beta'?\n",
        ),
        (("plan", "toy.yaml", "--set", "annotate.annotator_function=scores:scor"), "scores.py defines no 'scor'\n"),
        (("status", "."), "error: . has no summary.json: is it a run's folder?\n"),
        (("chat", "gone"), "error: gone does not exist\n"),
        (("chat", "."), "error: . is no model: it has no config.json, no record of a model and no summary.json\n"),
        (("run",), "Missing argument 'RECIPE'"),
        (("rnu",), "No such command 'rnu'"),
    ],
)
def test_a_users_mistake_is_one_line_on_stderr_and_exit_code_two(world, words, message):
    code, out, err = world.call(*words)
    assert code == 2
    assert message in err
    assert (err.count("\n"), out) == (1, "")
    assert not world.run_folder.exists()


@pytest.mark.parametrize("target", ["runs/toy", "{step}", "{step}/model"])
def test_chat_takes_a_run_a_step_or_a_model(world, target):
    (world.command.parent / "commands").mkdir()
    (world.command.parent / "commands" / "chat.py").write_text("import sys; print(sys.argv[1:])")
    world.run()
    step = f"runs/toy/{world.folder('round-1.dpo').name}"
    code, out, _ = world.call("chat", target.format(step=step), "--prompt", "hi", "--temperature", "0")
    assert code == 0
    assert out == f"['{step}/model', '--prompt', 'hi', '--temperature', '0']\n"


def test_the_command_loads_neither_torch_nor_transformers_and_plans_at_once(world):
    loaded = "import pipeline.cli, sys; print({'torch', 'transformers', 'trl', 'accelerate'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "set()\n"
    world.call("plan", "toy.yaml")
    assert seconds_of(lambda: world.call("plan", "toy.yaml")) < 4 * seconds_of(lambda: world.call("--help"))


# -- variants side by side ------------------------------------------------------------------------------------------

CORES = command_line.available_cores()
TWO = ("--set", "by_round.0.sft.variants=[{learning_rate: 1e-5}, {learning_rate: 2e-5}]", "--set", "rounds=0")
SIDE_BY_SIDE = (*TWO, "--set", f"launch.devices={CORES[:2]}")
two_cores = pytest.mark.skipif(len(CORES) < 2, reason="two steps side by side need two cores")


@two_cores
def test_variants_run_side_by_side_each_with_devices_of_its_own(world):
    meet = {"round-0.sft.1": "meet round-0.sft.2", "round-0.sft.2": "meet round-0.sft.1"}
    code, out, err = world.call("run", "toy.yaml", *SIDE_BY_SIDE, TOY=json.dumps(meet))
    assert code == 0, err
    assert set(world.launched()[2:4]) == {"round-0.sft.1", "round-0.sft.2"}
    here = [json.loads((world.folder(f"round-0.sft.{n}") / "here.json").read_text()) for n in (1, 2)]
    assert [(place["cores"], place["threads"]) for place in here] == [([CORES[0]], "1"), ([CORES[1]], "1")]
    average = json.loads((world.folder("round-0.sft") / "here.json").read_text())
    assert average["cores"] == CORES[:2]  # alone, it has them all
    assert world.config("round-0.sft")["models"] == [str(world.folder(f"round-0.sft.{n}") / "model") for n in (1, 2)]
    assert world.summary()["rounds"][0]["sft_eval_loss"] == 1.25  # the average's, and no variant's
    # Off a terminal: a line at the start and one at the end of each, under one number.
    lines = [line.split()[:3] for line in out.splitlines() if "round-0.sft." in line]
    assert sorted(lines) == [
        ["[3/6]", "round-0.sft.1", "ran"],
        ["[3/6]", "round-0.sft.1", "running"],
        ["[4/6]", "round-0.sft.2", "ran"],
        ["[4/6]", "round-0.sft.2", "running"],
    ]
    assert [line[2] for line in lines[:2]] == ["running", "running"]

    assert world.call("run", "toy.yaml", *TWO)[0] == 0  # how it is run is no part of what it is
    assert world.launched() == []


def test_without_devices_variants_run_one_after_the_other(world):
    code, out, _ = world.call("run", "toy.yaml", *TWO)
    assert code == 0
    assert world.launched() == [
        "prepare_data",
        "prepare_base",
        "round-0.sft.1",
        "round-0.sft.2",
        "round-0.sft",
        "round-0.evaluate_policy",
    ]
    lines = [line.split()[1:3] for line in out.splitlines() if "round-0.sft." in line]
    assert lines == [[f"round-0.sft.{n}", state] for n in (1, 2) for state in ("running", "ran")]


@two_cores
def test_a_variant_that_fails_lets_the_other_finish_and_then_says_why(world):
    three = ("--set", "by_round.0.sft.variants=[{learning_rate: 1e-5}, {learning_rate: 2e-5}, {learning_rate: 3e-5}]")
    behaviour = {"round-0.sft.1": "config", "round-0.sft.2": "meet round-0.sft.1"}
    process = world.start("run", "toy.yaml", *SIDE_BY_SIDE, *three, TOY=json.dumps(behaviour))
    deadline = time.monotonic() + 30
    while not (world.run_folder / "summary.json").exists() or world.states().get("round-0.sft.1") != "failed":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert world.states()["round-0.sft.2"] == "running"
    assert world.summary()["state"] == "running"
    (world.folder("round-0.sft.1") / "here").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error: round-0.sft.1 failed: beta=9 is too much")
    assert "round-0.sft.3" not in world.launched()  # nothing is begun that can't be of use
    assert world.states()["round-0.sft.1"] == "failed"
    assert world.states()["round-0.sft.2"] == "ran"
    assert world.summary()["state"] == "failed"
    assert any(line.split()[1:3] == ["round-0.sft.1", "failed"] for line in out.splitlines())

    assert world.call("run", "toy.yaml", *SIDE_BY_SIDE, *three)[0] == 0
    assert set(world.launched()[:2]) == {"round-0.sft.1", "round-0.sft.3"}
    assert world.states()["round-0.sft.2"] == "reused"


# -- verify -----------------------------------------------------------------------------------------------------------


def change_a_byte(folder: Path) -> str:
    path = folder / "model" / "config.json"
    path.write_text("[]")
    return "model/config.json is not what was written"


def cut_a_file(folder: Path) -> str:
    path = folder / "model" / "config.json"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    return f"model/config.json has {size - 1} bytes, not {size}"


def remove_a_file(folder: Path) -> str:
    (folder / "model" / "config.json").unlink()
    return "model/config.json is missing"


def edit_the_record(folder: Path) -> str:
    path = folder / "artifact.json"
    path.write_text(path.read_text().replace('"seconds": 0.5', '"seconds": 0.6'))
    return "artifact.json was changed after it was written; put it back as it was, or move the folder away"


def cut_the_record(folder: Path) -> str:
    path = folder / "artifact.json"
    path.write_text(path.read_text()[:-9])
    return "artifact.json is not a record ("


def edit_the_identity(folder: Path) -> str:
    (folder / "fingerprint.json").write_text("{}")
    return "fingerprint.json is not what the record's fingerprint was made of"


def rename_the_folder(folder: Path) -> str:
    folder.rename(folder.with_name(f"{folder.name[:-8]}00000000"))
    return "the folder's name does not end in its fingerprint"


@pytest.mark.parametrize(
    "damage",
    [change_a_byte, cut_a_file, remove_a_file, edit_the_record, cut_the_record, edit_the_identity, rename_the_folder],
)
def test_verify_finds_what_is_not_as_it_was_written(world, damage):
    assert world.run()[0] == 0
    code, out, err = world.call("verify", "runs/toy")
    assert (code, err) == (0, "")
    assert out.count("| whole") == len(world.states())
    problem = damage(world.folder("round-1.sft"))
    code, out, err = world.call("verify", "runs/toy")
    assert code == 1
    assert problem in out
    assert out.count("| whole") == len(world.states()) - 1
    assert err.startswith("error: round-1.sft-")
    assert err.count("\n") == 1


@pytest.mark.parametrize("damage", [edit_the_record, cut_the_record])
def test_a_record_that_was_changed_stops_a_run_and_nothing_is_touched(world, damage):
    assert world.run()[0] == 0
    problem, folder = damage(world.folder("round-1.sft")), world.folder("round-1.sft")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, _, err = world.run()
    assert code == 2
    assert problem in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_record_of_an_older_version_is_reused_and_verify_says_what_it_cannot_check(world):
    assert world.run()[0] == 0
    path = world.folder("round-1.sft") / "artifact.json"
    older = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("digest", "sha256")}
    path.write_text(json.dumps(older))
    assert world.run()[0] == 0
    assert set(world.states().values()) == {"reused"}
    code, out, _ = world.call("verify", "runs/toy")
    assert (code, out.count("| sizes only")) == (0, 1)


def test_verify_says_what_is_not_finished_and_what_is_no_run(world):
    assert world.run(TOY='{"round-1.dpo": "fail"}')[0] == 1
    code, out, _ = world.call("verify", "runs/toy")
    assert code == 0
    assert "not finished" in out
    assert world.call("verify", "runs") == (2, "", "error: runs holds no step: is it a run's folder?\n")


@two_cores
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_stages_that_run_side_by_side(world, number):
    behaviour = {"round-0.sft.1": "stubborn", "round-0.sft.2": "hang"}
    process = world.start("run", "toy.yaml", *SIDE_BY_SIDE, TOY=json.dumps(behaviour))
    pids = world.hanging(stages=2)
    assert len(pids) == 4 and all(map(alive, pids))
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert not any(map(alive, pids))
    assert world.summary()["state"] == "interrupted"
    assert (world.states()["round-0.sft.1"], world.states()["round-0.sft.2"]) == ("failed", "failed")


@two_cores
def test_verbose_says_whose_line_it_is(world):
    meet = {"round-0.sft.1": "meet round-0.sft.2", "round-0.sft.2": "meet round-0.sft.1"}
    out = world.call("run", "toy.yaml", "-v", *SIDE_BY_SIDE, TOY=json.dumps(meet))[1]
    assert "round-0.sft.1 | hello from round-0.sft.1\n" in out
    assert "\nhello from prepare_data\n" in out


def test_live_lines_show_every_step_that_runs():
    console = Console(force_terminal=True, width=100, file=io.StringIO())
    progress = terminal.Progress(console, 6, live=True)
    one, two = (Step(f"round-0.sft.{n}", "sft", 0, "sft", {}, {}, Launch()) for n in (1, 2))
    states = [StepState(None, "running"), StepState(None, "running")]
    progress(one, states[0])
    progress(two, states[1])
    progress(one, states[0])
    assert [str(line).split()[1] for line in progress.running.values()] == ["round-0.sft.1", "round-0.sft.2"]
    states[0].state = "ran"
    progress(one, states[0])
    assert [str(line).split()[:2] for line in progress.running.values()] == [["[2/6]", "round-0.sft.2"]]


@pytest.mark.parametrize(
    ("launch", "num_steps", "expected"),
    [
        ({}, 3, [None]),
        ({"device": "gpu", "devices": [0, 1, 2, 3], "num_processes": 2}, 3, [(0, 1), (2, 3)]),
        ({"device": "gpu", "devices": [4, 5, 6], "num_processes": 2}, 3, [(4, 5)]),
        ({"device": "gpu", "devices": [4, 5, 6]}, 2, [(4,), (5,)]),
        ({"device": "cpu", "devices": [0, 1, 2, 3]}, 2, [(0, 1), (2, 3)]),
        ({"device": "cpu", "devices": [0, 1, 2, 3]}, 1, [(0, 1, 2, 3)]),
    ],
)
def test_devices_are_dealt_to_as_many_steps_as_fit(launch, num_steps, expected):
    assert [slot.devices for slot in command_line.slots(Launch(**launch), num_steps)] == expected


def test_a_slot_of_gpus_is_all_that_its_step_sees(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    step = step_with(profile="zero2", num_processes=2, main_process_port=29500, devices=[0, 1, 2, 3])
    slot = command_line.slots(step.launch, 2)[1]
    values = command_line.environment(step, tmp_path / "step", tmp_path, slot)
    assert values["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert Path(values["TORCH_EXTENSIONS_DIR"]).name == ".torch_extensions-1"  # another's lock is not nobody's
    command_line.launch_command(step, tmp_path, slot)
    assert yaml.safe_load((tmp_path / "accelerate.yaml").read_text())["main_process_port"] == 29501
    assert "CUDA_VISIBLE_DEVICES" not in command_line.environment(step_with(), tmp_path, tmp_path).keys() - os.environ


# -- how stages are launched ----------------------------------------------------------------------------------------


def step_with(**launch) -> Step:
    return Step("round-1.dpo", "dpo", 1, "dpo", {}, {}, Launch(**launch))


def test_one_process_is_plain_python(tmp_path):
    command = command_line.launch_command(step_with(device="cpu"), tmp_path)
    assert command == [
        sys.executable,
        str(command_line.ROOT / "stages" / "dpo.py"),
        "--config",
        f"{tmp_path}/config.yaml",
    ]


def test_several_processes_and_zero_go_through_accelerate_with_the_steps_own_profile(tmp_path):
    step = step_with(profile="zero3", num_processes=2, device="cpu", main_process_port=29555)
    command = command_line.launch_command(step, tmp_path)
    assert command[1:5] == ["-m", "accelerate.commands.launch", "--config_file", f"{tmp_path}/accelerate.yaml"]
    profile = yaml.safe_load((tmp_path / "accelerate.yaml").read_text())
    assert (profile["use_cpu"], profile["num_processes"], profile["main_process_port"]) == (True, 2, 29555)
    assert profile["deepspeed_config"]["zero_stage"] == 3
    offloaded = command_line.launch_command(step_with(profile="zero3_offload"), tmp_path)
    assert "accelerate.commands.launch" in offloaded  # one GPU with its optimizer in the CPU's memory
    assert yaml.safe_load((tmp_path / "accelerate.yaml").read_text())["use_cpu"] is False


def test_the_environment_divides_the_cores_and_says_the_device_as_the_profile_takes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    cpu = command_line.environment(step_with(profile="ddp", num_processes=3, device="cpu"), tmp_path, tmp_path)
    assert (cpu["OMP_NUM_THREADS"], cpu["ACCELERATE_USE_CPU"]) == ("2", "true")
    assert cpu["PYTHONPATH"].split(os.pathsep)[0] == str(command_line.ROOT)
    # With this variable accelerate drops DeepSpeed without a word.
    zero = command_line.environment(step_with(profile="zero2", num_processes=2, device="cpu"), tmp_path, tmp_path)
    assert "ACCELERATE_USE_CPU" not in zero
    assert "ACCELERATE_USE_CPU" not in command_line.environment(step_with(), tmp_path, tmp_path)


def test_every_profile_of_a_recipe_is_a_file_without_precision_accumulation_or_clipping():
    folder = command_line.ROOT / "configs" / "accelerate"
    assert {path.stem for path in folder.glob("*.yaml")} == set(get_args(Launch.model_fields["profile"].annotation))
    for path in folder.glob("*.yaml"):
        profile = yaml.safe_load(path.read_text())
        text = json.dumps(profile)
        assert not any(word in text for word in ("mixed_precision", "gradient_accumulation", "gradient_clipping"))
        if path.stem.startswith("zero"):
            assert profile["deepspeed_config"]["zero_stage"] == int(path.stem[4])
        if path.stem.startswith("zero3"):
            assert profile["deepspeed_config"]["zero3_save_16bit_model"] is True
            assert profile["deepspeed_config"]["zero3_init_flag"] is True


def test_accelerate_itself_accepts_every_profile(tmp_path):
    check = (
        "import sys; from accelerate.commands.launch import launch_command_parser, _validate_launch_command as v\n"
        "for path in sys.argv[1:]:\n"
        "    args, *_ = v(launch_command_parser().parse_args(['--config_file', path, 'x.py']))\n"
        "    print(path.rpartition('/')[2], bool(args.use_deepspeed), args.num_processes)\n"
    )
    paths = []
    for name in ("ddp", "zero1", "zero2", "zero3", "zero3_offload"):
        (tmp_path / name).mkdir()
        command_line.launch_command(step_with(profile=name, num_processes=2, device="cpu"), tmp_path / name)
        paths.append(str((tmp_path / name / "accelerate.yaml").rename(tmp_path / f"{name}.yaml")))
    done = subprocess.run([sys.executable, "-c", check, *paths], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "ddp.yaml False 2",
        "zero1.yaml True 2",
        "zero2.yaml True 2",
        "zero3.yaml True 2",
        "zero3_offload.yaml True 2",
    ], done.stderr


def test_a_lock_is_seen_from_outside(tmp_path):
    assert not is_locked(tmp_path)
    with (tmp_path / ".lock").open("w") as file:
        assert not is_locked(tmp_path)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_locked(tmp_path)


def test_numbers_and_intervals_are_shown_short():
    assert [terminal.number(value) for value in (None, 0.12345, 3, "gold")] == ["-", "0.123", "3", "gold"]


def test_a_killed_compilation_does_not_stop_later_zero_launches(tmp_path, monkeypatch):
    left = tmp_path / "run" / ".torch_extensions" / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    left.parent.mkdir(parents=True)
    left.touch()
    zero = step_with(profile="zero2", num_processes=2, device="cpu")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/the/users/own")
    assert (
        command_line.environment(zero, tmp_path / "run" / "step", tmp_path)["TORCH_EXTENSIONS_DIR"] == "/the/users/own"
    )
    assert left.exists()
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    environment = command_line.environment(zero, tmp_path / "run" / "step", tmp_path)
    assert environment["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "run" / ".torch_extensions") and not left.exists()
