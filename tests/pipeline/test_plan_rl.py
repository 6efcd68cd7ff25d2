"""Reinforcement learning in a plan: what it starts from, its prompts, and its rewards."""

from pipeline.steps import BestPolicy, Output

STAGES = "round_stages=[annotate, reward_model, rejection_sampling, sft, rl]"
VERIFIABLE = "rl.reward_functions=scores:score"  # one function stands for a list of one


def test_rl_goes_on_from_the_rounds_policy_with_the_rounds_reward_model(plan):
    steps = plan(STAGES)
    assert "round-1.dpo" not in steps
    assert steps["round-2.rl"].inputs == {
        "model_name_or_path": [Output("round-2.sft", "model")],
        "train_data": [Output("prepare_data", "prompts.train")],
        "eval_data": [Output("prepare_data", "prompts.validation", optional=True)],
        "reward_model": [Output("round-2.reward_model", "model")],
    }
    assert steps["round-2.rl"].keys["round"] == 2
    assert steps["round-2.evaluate_policy"].inputs["model_name_or_path"] == [Output("round-2.rl", "model")]


def test_after_dpo_it_goes_on_from_dpo(plan):
    steps = plan("round_stages=[annotate, reward_model, rejection_sampling, sft, dpo, rl]")
    assert steps["round-1.rl"].inputs["model_name_or_path"] == [Output("round-1.dpo", "model")]


def test_alone_in_a_round_it_goes_on_from_the_best_policy(plan):
    steps = plan("round_stages=[rl]", VERIFIABLE)
    assert steps["round-1.rl"].inputs["model_name_or_path"] == [BestPolicy("round-0.evaluate_policy")]
    assert "reward_model" not in steps["round-1.rl"].inputs
    assert steps["round-1.rl"].keys["reward_functions"] == ["scores:score"]


def test_without_a_reward_model_where_the_section_says_null(plan):
    steps = plan(STAGES, VERIFIABLE, "rl.reward_model=null")
    assert "reward_model" not in steps["round-1.rl"].inputs
    assert "reward_model" in plan(STAGES, VERIFIABLE)["round-1.rl"].inputs


def test_the_steps_of_other_stages_are_those_of_a_plan_without_rl(plan):
    without, with_rl = plan(), plan("round_stages=[annotate, reward_model, rejection_sampling, sft, dpo, rl]")
    for name in ("round-1.annotate", "round-1.reward_model", "round-1.sft", "round-1.dpo"):
        assert with_rl[name] == without[name]
