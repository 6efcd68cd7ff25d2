"""The runner with toy stages: what is reused and what is run, and what each stage is given."""

import re
import socket

from tests.pipeline.toy_house import ONE_ROUND, STEPS_OF_ONE_ROUND
from tests.processes import cpu_seconds_of


def test_a_finished_run_is_reused_completely_and_starts_no_process(world):
    code, out, _ = world.run()
    assert code == 0
    assert world.launched() == STEPS_OF_ONE_ROUND
    assert set(world.states().values()) == {"ran"}
    folder = world.folder("round-1.dpo")
    assert f"chat runs/toy/{folder.name}/model" in out
    assert "runs/toy/summary.json" in out

    # Nearly all of its time is the start of the command.
    assert cpu_seconds_of(world.run) < 4 * cpu_seconds_of(lambda: world.call("--help"))
    assert world.launched() == []
    assert set(world.states().values()) == {"reused"}


def test_an_edited_key_runs_what_depends_on_it_and_both_results_exist(world):
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
    assert world.run()[0] == 0  # and back, without a launch
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


def test_the_stages_get_the_keys_and_inputs_of_the_plan(world):
    world.run("--set", "human_share=0.25")
    sft = world.config("round-1.sft")
    winners = world.folder("round-1.rejection_sampling") / "winners.train.jsonl"
    data = world.folder("prepare_data")
    assert sft["train_data"] == [str(winners), str(data / "instructions.train.jsonl")]
    assert sft["train_data_shares"] == [1.0, 0.25]
    # The toy rejection sampling writes no winners.validation, and an optional output is left out.
    assert sft["eval_data"] == [str(data / "instructions.validation.jsonl")]
    assert sft["use_cpu"] is True
    assert (sft["step"], sft["run_group"]) == ("round-1.sft", "toy")
    assert world.folder("round-1.sft").name.endswith(sft["fingerprint"][:8])
    annotate = world.config("round-1.annotate")
    assert annotate["policies"] == [str(world.folder("round-0.sft") / "model")]
    assert annotate["policy_names"] == ["round-0.sft"]
    assert world.config("round-1.evaluate_policy")["previous"] == [str(world.folder("round-0.evaluate_policy"))]


def test_a_round_that_got_worse_is_not_the_start_of_the_next(world):
    assert world.call("run", "toy.yaml", SCORES='{"round-1.dpo": -1.0, "round-2.dpo": -0.5}')[0] == 0
    first = str(world.folder("round-0.sft") / "model")
    assert world.config("round-2.rejection_sampling")["policies"] == [first]
    assert world.config("round-2.annotate")["policy_names"] == ["round-0.sft", "round-1.dpo"]
    assert world.summary()["best_policy"] == {
        "step": "round-0.sft",
        "folder": f"{world.folder('round-0.sft').name}/model",
        "score": 0.0,
    }


def test_a_gate_that_stops_skips_the_later_rounds_and_reports_the_number(world):
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
    # Another rule changes the evaluation, so what was skipped runs.
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
    # Round 1 made the policy worse, so round 2 continues from the base.
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


def test_raft_runs_only_on_winners(world):
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


def test_a_recipe_for_gpus_is_planned_anywhere_but_runs_only_with_a_gpu(world):
    code, out, err = world.call("plan", "toy.yaml", "--set", "launch.device=gpu", CUDA_VISIBLE_DEVICES="")
    assert (code, err.count("\n")) == (0, 1)
    assert "run    round-2.dpo: not run yet" in out
    assert err.startswith("warning: toy.yaml: launch: this machine has no GPU")
    code, out, err = world.call("run", "toy.yaml", "--set", "launch.device=gpu", CUDA_VISIBLE_DEVICES="")
    assert (code, out) == (2, "")
    assert err.startswith("error: toy.yaml: launch: this machine has no GPU")
    assert not world.run_folder.exists()


def test_a_second_run_on_the_same_folder_is_refused_and_names_the_first(world):
    process = world.start("run", "toy.yaml", *ONE_ROUND, TOY='{"round-0.sft": "hang"}')
    world.hanging()
    code, _, err = world.run()
    assert code == 2
    holder = f"pid {process.pid} on {socket.gethostname()}"
    assert err == f"error: {world.run_folder} is in use by another process ({holder}); wait for it or stop it\n"
    assert "toy: running" in world.call("status", "runs/toy")[1]
    process.terminate()
    process.communicate()
