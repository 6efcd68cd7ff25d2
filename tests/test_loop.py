"""The complete loop through the real command: two rounds, edits, kills, LoRA, a fallback, failures and mistakes.

It is one file because its tests share two finished loops: `--dist loadfile` would run them again for each file.
"""

import hashlib
import json
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from data_schemas.artifact import Artifact
from data_schemas.text import normalise
from pipeline.launch.command_line import ROOT, available_cores
from pipeline.launch.machine import has_gpu
from stages.evaluate_policy import OF_LLM_JUDGES, OF_PEOPLE
from tests.loop_recipes import DATA_AND_BASE, STEPS, launches, processes_of, python_by_hand, wait_until
from tests.patience import PATIENCE
from tests.processes import cpu_seconds_of
from tests.toy_rows import read_jsonl

pytest_plugins = ("tests.loop_fixtures",)
COLUMNS = {  # by whether round 0 has it
    True: [
        "gold_mean",
        "judge",
        "judge_mean",
        "gate",
        "gate_reason",
        "kl_to_first",
        "mean_answer_tokens",
        "ended_share",
        "distinct_2",
        "best_by_judge",
        "differing_pairs",
        "diagnosis",
        "sft_eval_loss",
    ],
    False: [
        "proxy_mean",
        "best_by_proxy",
        "proxy_accuracy",
        "proxy_accuracy_low",
        "proxy_accuracy_high",
        "win_rate_vs_first",
        "win_rate_vs_first_low",
        "win_rate_vs_first_high",
        "win_rate_vs_previous",
        "win_rate_vs_previous_low",
        "win_rate_vs_previous_high",
        "score_gain_vs_first",
        "score_gain_vs_first_low",
        "score_gain_vs_first_high",
        "reward_accuracy",
        "dpo_reward_accuracy",
    ],
}


# -- the two-round loop ---------------------------------------------------------------------------------------------


def test_two_rounds_end_with_a_table_and_the_line_to_type_next(place):
    out = (place.work / "first_output.txt").read_text()
    best = json.loads((place.work / "first_summary.json").read_text())["best_policy"]
    assert f"best policy: {best['step']}" in out
    assert f"chat runs/loop/{best['folder']}" in out
    assert "runs/loop/summary.json" in out
    header = next(line for line in out.splitlines() if "round 0" in line)
    assert [cell.strip() for cell in header.strip("| ").split("|")] == ["round 0", "round 1", "round 2"]


def test_the_summary_has_its_schema_and_every_number_or_a_reason(place):
    summary = json.loads((place.work / "first_summary.json").read_text())
    assert list(summary) == ["name", "state", "steps", "rounds", "best_policy", "recipe"]
    assert (summary["name"], summary["state"]) == ("loop", "done")
    assert [step["name"] for step in summary["steps"]] == STEPS
    for step in summary["steps"]:
        assert list(step)[:6] == ["name", "stage", "round", "folder", "fingerprint", "state"]
        assert list(step)[6:] == ["seconds", "metrics", "warnings", "inputs", "cost"]
        assert step["state"] == "ran"
        assert step["folder"] == f"{step['name']}-{step['fingerprint'][:8]}"
        assert step["seconds"] > 0
        assert step["round"] == (int(step["name"][6]) if step["name"].startswith("round-") else None)
        assert step["metrics"]
    assert [(row["round"], row["policy"]) for row in summary["rounds"]] == [
        (0, "round-0.sft"),
        (1, "round-1.dpo"),
        (2, "round-2.dpo"),
    ]
    for row in summary["rounds"]:
        assert set(row) == {"round", "policy", "reasons", *COLUMNS[True], *COLUMNS[False], *OF_LLM_JUDGES, *OF_PEOPLE}
        missing = [*OF_LLM_JUDGES, *OF_PEOPLE, *(COLUMNS[False] if row["round"] == 0 else [])]
        assert sorted(name for name, value in row.items() if value is None) == sorted(missing)
        assert sorted(row["reasons"]) == sorted(missing)
        assert all(row["reasons"].values())
        assert row["judge"] == "world:score"
    scores = {row["policy"]: row["judge_mean"] for row in summary["rounds"]}
    best = max(scores, key=lambda policy: scores[policy])
    assert summary["best_policy"]["step"] == best
    assert summary["best_policy"]["score"] == scores[best]
    assert (place.work / "runs" / "loop" / summary["best_policy"]["folder"] / "model.safetensors").is_file()


def test_every_steps_folder_is_complete(place):
    for name in STEPS:
        folder = place.folder(name)
        record = Artifact.read(folder)
        assert record is not None and record.missing(folder) == [] and record.files
        assert (record.step, record.fingerprint[:8]) == (name, folder.name[-8:])
        for file in ("config.yaml", "log.txt", "console.txt"):
            assert (folder / file).stat().st_size > 0, f"{name}/{file}"
        assert json.loads((folder / "outcome.json").read_text())["state"] == "done"
        assert launches(folder) == 1
        assert not (folder / "checkpoints").exists()
        newest = max(path.stat().st_mtime_ns for path in folder.rglob("*") if path.name not in ("log.txt", ".lock"))
        assert (folder / "artifact.json").stat().st_mtime_ns == pytest.approx(newest, abs=10**9)
        if (loss := record.metrics.get("eval_loss")) is not None:
            assert (folder / "metrics.jsonl").stat().st_size > 0
            assert loss <= record.metrics["eval_loss_at_step_0"]
        assert (place.work / "runs" / "loop" / "steps" / name).resolve() == folder


def test_a_second_run_launches_nothing(place):
    before = _stamps(place)
    seconds = cpu_seconds_of(place.run)
    assert set(place.states().values()) == {"reused"}
    assert _stamps(place) == before
    assert seconds < 4 * cpu_seconds_of(lambda: place.call("--help"))


def _stamps(place) -> dict[str, int]:
    run = place.work / "runs" / "loop"
    return {str(path): path.stat().st_mtime_ns for step in STEPS for path in run.glob(f"{step}-*/**/*")}


def test_an_edited_key_is_planned_with_its_reason_and_all_that_depends_on_it(place):
    code, out, err = place.call("plan", *place.words("dpo.beta=0.3"))
    assert code == 0, err
    lines = [line.strip("│├└─ ").partition("  <- ")[0].split(maxsplit=1) for line in out.splitlines()]
    runs = dict(line[1].split(": ", 1) for line in lines if line[0] == "run")
    # The choice after round 1 is computed again, so all of round 2 depends on it.
    below = ["round-1.evaluate_policy", *(name for name in STEPS if name.startswith("round-2."))]
    assert list(runs) == ["round-1.dpo", *below]
    assert runs["round-1.dpo"] == "dpo.beta 0.1 -> 0.3; reference log-probs are there"
    assert runs["round-1.evaluate_policy"] == "input round-1.dpo changed"
    assert runs["round-2.dpo"].startswith("dpo.beta 0.1 -> 0.3") and "reference" not in runs["round-2.dpo"]
    assert [line[1].split(":")[0] for line in lines if line[0] == "reuse"] == STEPS[:9]


# -- nothing of an evaluation dialog is trained on ------------------------------------------------------------------


def test_no_evaluation_prompt_is_in_any_row_that_anything_trains_on(place):
    data = place.folder("prepare_data")
    held_out = read_jsonl(data / "evaluation_prompts.jsonl")
    groups = {row["group_id"] for row in held_out}
    texts = {normalise(row["prompt"][0]["content"]) for row in held_out}
    assert len(groups) == len(texts) == 6
    files = [path for name in STEPS for path in place.folder(name).glob("*.jsonl")]
    files = [path for path in files if path.name not in ("evaluation_prompts.jsonl", "answers.jsonl", "metrics.jsonl")]
    by_name = {path.name for path in files if path.stat().st_size}
    assert by_name >= {
        "documents.train.jsonl",
        "instructions.train.jsonl",
        "preferences.train.jsonl",
        "prompts.train.jsonl",
        "prompts.validation.jsonl",
        "pairs.train.jsonl",
        "pairs.validation.jsonl",
        "winners.train.jsonl",
        "candidates.jsonl",
    }
    for path in files:
        for row in read_jsonl(path):
            assert row.get("group_id") not in groups
            said = [message["content"] for key in ("messages", "prompt") for message in row.get(key, ())]
            assert not texts & {normalise(text) for text in said}, path
            assert not any(text in normalise(row.get("text", "")) for text in texts), path
    record = Artifact.read(data)
    assert record is not None
    # Every question is quoted in one document.
    assert record.metrics["documents_left_out"] == 6


def test_the_evaluation_prompts_are_the_same_for_every_policy(place):
    ids = [
        [row["prompt_id"] for row in read_jsonl(place.folder(f"round-{number}.evaluate_policy") / "answers.jsonl")]
        for number in (0, 1, 2)
    ]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) == 6


# -- reinforcement learning -----------------------------------------------------------------------------------------


def test_rl_in_place_of_dpo_is_the_rounds_policy_and_the_gate_decides_about_it(place):
    before = ("round-0.sft", "round-0.evaluate_policy", "round-1.annotate", "round-1.reward_model")
    place.begin_with(*DATA_AND_BASE, *before, name="rl")
    keys = "{global_batch_size: 4, num_generations: 2, max_completion_length: 8, steps_per_window: 1}"
    stages = "round_stages=[annotate, reward_model, rl]"
    code, _, err = place.run("rounds=1", stages, f"rl={keys}", name="rl")
    assert code == 0, err
    states = place.states(name="rl")
    assert states == dict.fromkeys([*DATA_AND_BASE, *before], "reused") | {
        "round-1.rl": "ran",
        "round-1.evaluate_policy": "ran",
    }
    config = place.config("round-1.rl", name="rl")
    assert config["reward_model"] == str(place.folder("round-1.reward_model", name="rl") / "model")
    first, second = place.summary(name="rl")["rounds"]
    assert (first["policy"], second["policy"]) == ("round-0.sft", "round-1.rl")
    record = Artifact.read(place.folder("round-1.rl", name="rl"))
    assert record is not None
    assert (second["rl_reward"], second["rl_kl"]) == (record.metrics["eval_reward"], record.metrics["eval_kl"])
    assert second["gate"] in ("accept", "keep")


# -- variants -------------------------------------------------------------------------------------------------------


def test_variants_are_averaged_and_the_average_is_the_rounds_model(place):
    place.begin_with(*DATA_AND_BASE, name="variants")
    settings = ["rounds=0", "sft.variants=[{learning_rate: 1e-3}, {learning_rate: 3e-3}]"]
    if len(cores := available_cores()) > 1:
        settings.append(f"sft.launch={{devices: {cores[:2]}}}")
    code, _, err = place.run(*settings, name="variants")
    assert code == 0, err
    record = Artifact.read(place.folder("round-0.sft", name="variants"))
    assert record is not None
    parts = [Artifact.read(place.folder(f"round-0.sft.{part}", name="variants")) for part in (1, 2)]
    for part, made in enumerate(parts, 1):
        assert made is not None
        # Measured on the rows and with the numbers of its own training.
        assert record.metrics[f"eval_loss_of_round-0.sft.{part}"] == pytest.approx(made.metrics["eval_loss"], abs=1e-5)
        assert record.metrics[f"weight_of_round-0.sft.{part}"] == 0.5
    (row,) = place.summary(name="variants")["rounds"]
    assert (row["policy"], row["sft_eval_loss"]) == ("round-0.sft", record.metrics["eval_loss"])
    assert place.config("round-0.evaluate_policy", name="variants")["model_name_or_path"] == str(
        place.folder("round-0.sft", name="variants") / "model"
    )


# -- killed, stopped, refused ---------------------------------------------------------------------------------------


LONG_SFT = ("rounds=0", "sft.max_steps=40", "sft.eval_steps=20", "sft.save_strategy=steps", "sft.save_steps=4")


def test_a_killed_run_leaves_no_process_and_resumes_to_the_same_weights(place):
    place.begin_with(*DATA_AND_BASE, name="killed")
    run = place.work / "runs" / "killed"
    kept = {step: (place.folder(step, name="killed") / "artifact.json").stat().st_mtime_ns for step in DATA_AND_BASE}
    process = place.start("run", *place.words(*LONG_SFT, name="killed"))
    wait_until(
        lambda: any(run.glob("round-0.sft-*/checkpoints/checkpoint-*/whole.json")),
        seconds=120,
        what="a complete checkpoint of round-0.sft",
        process=process,
    )
    process.kill()
    process.communicate()
    wait_until(lambda: not processes_of(run), seconds=PATIENCE, what="the end of the killed runner's stage")
    folder = place.folder("round-0.sft", name="killed")
    assert not (folder / "artifact.json").exists()
    assert "stopped: the process that ran it has ended" in place.call("status", str(run))[1]

    code, _, err = place.run(*LONG_SFT, name="killed")
    assert code == 0, err
    assert place.states(name="killed") == dict.fromkeys(DATA_AND_BASE, "reused") | {
        "round-0.sft": "resumed",
        "round-0.evaluate_policy": "ran",
    }
    for step, written in kept.items():
        done = place.folder(step, name="killed")
        assert (done / "artifact.json").stat().st_mtime_ns == written
        assert launches(done) == 1
    assert launches(folder) == 2
    logged = [(row["step"], key) for row in read_jsonl(folder / "metrics.jsonl") for key in row if key != "step"]
    assert len(logged) == len(set(logged))
    assert {step for step, _ in logged} == set(range(41))

    uninterrupted = place.work / "uninterrupted"
    config = str(folder / "config.yaml")
    done = python_by_hand(f"{ROOT}/stages/sft.py", "--config", config, "--output_dir", str(uninterrupted), cwd=run)
    assert done.returncode == 0, done.stderr[-3000:]
    assert _hash(folder) == _hash(uninterrupted)


def _hash(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("number", "exit_code", "launch"),
    [
        (signal.SIGINT, 130, {}),
        # torch's launcher starts every rank in a separate session: a signal to its group reaches none of them.
        (signal.SIGTERM, 143, {"profile": "ddp", "num_processes": 2}),
    ],
)
def test_a_signal_stops_the_stage_and_a_second_run_is_refused_before(place, number, exit_code, launch):
    name = f"stopped-{exit_code}"
    place.begin_with(*DATA_AND_BASE, name=name)
    run = place.work / "runs" / name
    words = place.words(*LONG_SFT, "sft.max_steps=2000", f"sft.launch={json.dumps(launch)}", name=name)
    process = place.start("run", *words)
    wait_until(
        lambda: any(path.stat().st_size for path in run.glob("round-0.sft-*/metrics.jsonl")),
        seconds=120,
        what="round-0.sft in training",
        process=process,
    )
    of_stage = "stages/sft.py" if launch else "pipeline.launch.warm"
    training = [line for line in processes_of(run) if of_stage in line and "accelerate" not in line]
    assert len(training) == launch.get("num_processes", 1)

    code, out, err = place.call("run", *words)
    assert (code, out) == (2, "")
    holder = f"pid {process.pid} on {socket.gethostname()}"
    assert err.endswith(f"error: {run} is in use by another process ({holder}); wait for it or stop it\n")

    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == exit_code
    assert err.splitlines()[-1].startswith("interrupted: ")
    assert processes_of(run) == []
    summary = place.summary(name=name)
    assert summary["state"] == "interrupted"
    assert {step["name"]: step["state"] for step in summary["steps"]} == dict.fromkeys(DATA_AND_BASE, "reused") | {
        "round-0.sft": "interrupted",
        "round-0.evaluate_policy": "pending",
    }


# -- LoRA, and a round that made things worse -----------------------------------------------------------------------


def test_with_lora_two_rounds_complete_and_every_model_is_plain_and_merged(lora):
    assert lora.summary(name="lora")["state"] == "done"
    assert list(lora.states(name="lora").values()) == ["reused"] * 3 + ["ran"] * 14
    base = load_file(lora.folder("prepare_base", name="lora") / "model" / "model.safetensors")
    trained = [name for name in STEPS if name.endswith((".sft", ".dpo", ".reward_model"))]
    assert len(trained) == 7
    for name in trained:
        folder = lora.folder(name, name="lora")
        assert lora.config(name, name="lora")["use_peft"] is True
        assert not list((folder / "model").glob("adapter*"))
        weights = load_file(folder / "model" / "model.safetensors")
        is_reward_model = name.endswith(".reward_model")
        config = json.loads((folder / "model" / "config.json").read_text())
        kind = "SequenceClassification" if is_reward_model else "CausalLM"
        assert config["architectures"] == [f"LlamaFor{kind}"]
        expected = {key for key in base if key != "lm_head.weight"} | {
            "score.weight" if is_reward_model else "lm_head.weight"
        }
        assert set(weights) == expected
    first = load_file(lora.folder("round-0.sft", name="lora") / "model" / "model.safetensors")
    key = "model.layers.0.self_attn.q_proj.weight"
    assert (first[key] != base[key]).any()  # the adapter is in the weights
    assert (first["model.embed_tokens.weight"] == base["model.embed_tokens.weight"]).all()  # which LoRA did not change


def test_a_round_that_got_worse_is_not_the_start_of_the_next(lora):
    first = str(lora.folder("round-0.sft", name="lora") / "model")
    choice = Artifact.read(lora.folder("round-1.evaluate_policy", name="lora"))
    assert choice is not None
    assert [(item.step, item.score) for item in choice.choices] == [("round-0.sft", 0.5), ("round-1.dpo", -0.5)]
    assert lora.config("round-2.rejection_sampling", name="lora")["policies"] == [first]
    second = str(lora.folder("round-1.dpo", name="lora") / "model")
    assert lora.config("round-2.annotate", name="lora")["policies"] == [first, second]
    summary = lora.summary(name="lora")
    assert summary["best_policy"]["step"] == "round-0.sft"
    assert [row["judge_mean"] for row in summary["rounds"]] == [0.5, -0.5, 0.0]
    assert summary["rounds"][2]["win_rate_vs_first"] == 0.0
    assert summary["rounds"][2]["win_rate_vs_previous"] == 1.0
    # Every policy is KL-compared with round 0's, and round 0's with itself.
    assert summary["rounds"][0]["kl_to_first"] == 0.0


# -- a stage that fails ---------------------------------------------------------------------------------------------


def test_a_failing_stage_is_reported_with_its_log_and_runs_again_after_the_fix(place):
    place.begin_with(*DATA_AND_BASE, "round-0.sft", name="failing")
    run, module = place.work / "runs" / "failing", place.recipes / "judging.py"
    settings = ("rounds=0", "evaluate_policy.judge_function=judging:judge")

    def run_with(body: str) -> tuple[int, list[str]]:
        module.write_text(f"def judge(prompt, answer, ended):\n    {body}\n")
        code, _, err = place.run(*settings, name="failing")
        return code, err.splitlines()

    code, lines = run_with("return float('nan')")
    assert code == 2, "the function is the user's"
    assert re.match(r"error: round-0.evaluate_policy failed: judging:judge\(…, .*\) gave nan, expected a", lines[0])
    assert not any("learning_rate" in line for line in lines), "no learning rate makes a judge's number finite"
    (folder,) = run.glob("round-0.evaluate_policy-*")
    assert lines[1:] == [f"log: runs/failing/{folder.name}/console.txt"]
    assert "gave nan" in (folder / "console.txt").read_text()
    assert place.summary(name="failing")["state"] == "failed"
    assert place.states(name="failing")["round-0.evaluate_policy"] == "failed"

    code, lines = run_with("return 1.0")
    assert code == 0, lines
    assert place.states(name="failing") == dict.fromkeys([*DATA_AND_BASE, "round-0.sft"], "reused") | {
        "round-0.evaluate_policy": "ran"
    }
    assert launches(place.folder("round-0.sft", name="failing")) == 1


# -- mistakes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(place) -> Path:
    """Folders that are not complete models."""
    folder = place.work / "models"
    good = place.folder("pretrain") / "model"
    for name, lacks in (("no_tokenizer", "tokenizer*"), ("no_config", "config.json"), ("no_template", "nothing")):
        shutil.copytree(good, folder / name)
        for path in (folder / name).glob(lacks):
            path.unlink()
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("dpo.betta=0.2",), "dpo: unknown key 'betta' of stage dpo; did you mean 'beta'?"),
        (("dppo.beta=0.2",), "unknown key 'dppo'; did you mean 'dpo'?"),
        (("defaults.max_lenght=64",), "unknown key 'max_lenght': no stage has it; did you mean 'max_length'?"),
        (("sft.max_length=2.5",), "sft: max_length=2.5 is a number, expected"),
        (("rounds=two",), "rounds='two'"),
        (("dpo.beta",), "--set dpo.beta: expected key=value"),
        (("data.instructions=gone.jsonl",), "data.instructions='gone.jsonl' does not exist"),
        (("base_model=models/no_tokenizer",), "models/no_tokenizer has no tokenizer"),
        (("base_model=models/no_config",), "models/no_config has no config.json; expected a model folder"),
        (
            ("base_model=models/no_template", "pretrain=null", "prepare_base.chat_template=null"),
            "no_template has no chat template",
        ),
        (
            ("sft.global_batch_size=6", "sft.per_device_train_batch_size=4"),
            "sft.global_batch_size=6 is not a multiple of per_device_train_batch_size x num_processes = 4 x 1; try 8",
        ),
        (
            ("dpo.launch={profile: ddp, num_processes: 3}",),
            "dpo.global_batch_size=4 cannot be divided among 3 processes; try 3",
        ),
        (("annotate.annotator_function=world:scor",), "world.py defines no function 'scor'"),
        (("dpo.launch={profile: zero4}",), "dpo.launch: profile='zero4'"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_launched(place, models, settings, message):
    code, out, err = place.run(*settings, name="mistaken")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
    assert message in err
    assert not (place.work / "runs" / "mistaken").exists()


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU, so asking for one is no mistake")
def test_a_gpu_on_a_machine_without_one_is_refused(place):
    code, _, err = place.run("launch.device=gpu", name="mistaken")
    assert (code, err.count("\n")) == (2, 1)
    assert "this machine has no GPU; to use the CPU, set launch: {device: cpu} in the recipe" in err


def test_a_recipe_that_is_missing_or_no_yaml_is_refused(place):
    (place.recipes / "broken.yaml").write_text("name: a\nsft: [1\ndpo: 2\n")
    code, out, err = place.call("run", "gone.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: gone.yaml does not exist, and no shipped recipe has this name; ")
    code, _, err = place.call("run", "../recipes/broken.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: ../recipes/broken.yaml:3:4 is not YAML: ")


OTHER_ROWS = (
    "data.make_data=null",
    "data.make_data_arguments=null",
    "data.instructions=rows.jsonl",
    "base_model=models/no_template",
    "pretrain=null",
)


def test_rows_without_the_needed_columns_are_refused_before_anything_is_launched(place, models):
    (place.recipes / "rows.jsonl").write_text('{"question": "a", "reply": "b"}\n')
    code, out, err = place.run(*OTHER_ROWS, name="columns")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: --set data.instructions=rows.jsonl: data.instructions: ")
    assert "recipes/rows.jsonl has the columns question, reply; expected messages |" in err
    assert not (place.work / "runs" / "columns").exists()


def test_an_empty_split_ends_the_run_with_exit_code_two_before_a_model_is_loaded(place, models):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (place.recipes / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    code, _, err = place.run(*OTHER_ROWS, "data.evaluation_share=0.0001", name="empty")
    assert code == 2
    assert err.startswith("error: prepare_data failed: no evaluation prompt is left: give evaluation_prompts, or a")
    assert [path.name[:13] for path in (place.work / "runs" / "empty").glob("*-????????")] == ["prepare_data-"]


# -- chat -----------------------------------------------------------------------------------------------------------


def test_chat_answers_one_prompt_of_a_finished_run(place):
    code, out, err = place.call("chat", "runs/loop", "--prompt", "Which town?", "--max_new_tokens", "12")
    assert code == 0, err
    assert out.strip()
    assert "Traceback" not in err


def test_chat_holds_a_conversation_on_piped_input_until_an_empty_line(place):
    model = str(place.folder("round-0.sft") / "model")
    code, out, err = place.call("chat", model, "--max_new_tokens", "6", typed="Hello\nAnd then?\n\nnot asked\n")
    assert code == 0, err
    assert out.count("you: ") == 3
    assert "Traceback" not in err


def test_chat_refuses_a_folder_that_is_not_a_model(place):
    code, out, err = place.call("chat", "../recipes", "--prompt", "hi")
    assert (code, out) == (2, "")
    assert (
        err
        == "error: ../recipes is not a model, a step or a run: no config.json, no record of a model, no summary.json\n"
    )


# -- a stage by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", [(), ("-m", "accelerate.commands.launch", "--cpu")], ids=["python", "accelerate"])
def test_sft_by_hand_gives_the_same_folder_as_the_pipeline(place, tmp_path, launcher):
    made = place.folder("round-0.sft")
    if launcher:  # never the user's own default profile, which may ask for anything
        launcher = (*launcher, "--config_file", str(ROOT / "configs" / "accelerate" / "single.yaml"))
    words = (*launcher, f"{ROOT}/stages/sft.py", "--config", str(made / "config.yaml"), "--output_dir", "by-hand")
    done = python_by_hand(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "by-hand"
    for file in ("model/model.safetensors", "model/tokenizer.json", "model/config.json", "metrics.jsonl"):
        assert (folder / file).read_bytes() == (made / file).read_bytes(), file
    mine, pipelines = Artifact.read(folder), Artifact.read(made)
    assert mine is not None and pipelines is not None
    changing = {"seconds": True, "beside": {"config.yaml"}}  # the runner writes the config
    assert mine.model_dump(exclude=changing) == pipelines.model_dump(exclude=changing)
    assert _names(folder) == _names(made) - {
        "config.yaml",  # the runner writes it and the identity, and records the console
        "console.txt",
        "fingerprint.json",
    }


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_folder_and_a_misspelt_key_are_refused_by_hand_too(place, tmp_path):
    made = place.folder("prepare_data")
    config = ("--config", str(made / "config.yaml"))
    again = python_by_hand(f"{ROOT}/stages/prepare_data.py", *config, cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith(f"error: {made} holds a finished stage (artifact.json); choose")
    misspelt = python_by_hand(f"{ROOT}/stages/prepare_data.py", *config, "--evaluation_shar", "0.1", cwd=tmp_path)
    assert misspelt.returncode == 2
    assert "unknown key 'evaluation_shar' of stage prepare_data; did you mean 'evaluation_share'?" in misspelt.stderr


def test_a_folder_of_another_unfinished_stage_is_refused(place, tmp_path):
    (tmp_path / "begun").mkdir()
    before = {"stage": "prepare_data", "keys": {"seed": 1}, "inputs": {}}
    (tmp_path / "begun" / "identity.json").write_text(json.dumps(before))
    config = ("--config", str(place.folder("prepare_data") / "config.yaml"))
    done = python_by_hand(f"{ROOT}/stages/prepare_data.py", *config, "--output_dir", "begun", cwd=tmp_path)
    assert done.returncode == 2
    assert "begun holds an unfinished prepare_data with other keys (" in done.stderr
    assert "choose another output_dir, or move it away" in done.stderr
