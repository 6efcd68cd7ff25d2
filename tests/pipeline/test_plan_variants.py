"""Variants of a section in the plan, and their average."""

import pytest

from data_schemas.errors import ConfigError
from pipeline.steps import Output


def both(step: str, name: str) -> tuple[Output, Output]:
    return Output(step, f"{name}.train"), Output(step, f"{name}.validation", optional=True)


LEARNING_RATES = "[{learning_rate: 1e-5}, {learning_rate: 2e-5}]"


@pytest.mark.parametrize("section", ["sft", "reward_model", "dpo"])
def test_variants_are_separate_steps_and_their_average_has_the_sections_name(plan, section):
    plain = plan()
    steps = plan(f"{section}.variants={LEARNING_RATES}", f"{section}.max_length=64", f"{section}.bf16=true")
    rounds = [number for number in range(3) if f"round-{number}.{section}" in plain]
    added = {f"round-{number}.{section}.{place}" for number in rounds for place in (1, 2)}
    assert set(steps) == set(plain) | added
    names = list(steps)
    for number in rounds:
        name = f"round-{number}.{section}"
        place = names.index(name)
        assert names[place - 2 : place] == [f"{name}.1", f"{name}.2"]
        for part, rate in ((f"{name}.1", 1e-5), (f"{name}.2", 2e-5)):
            assert (steps[part].stage, steps[part].section, steps[part].round) == (section, section, number)
            assert steps[part].inputs == plain[name].inputs
            assert steps[part].keys == plain[name].keys | {"learning_rate": rate, "max_length": 64, "bf16": True}
        average = steps[name]
        assert (average.stage, average.section, average.round) == ("average_models", section, number)
        assert average.inputs["models"] == [Output(f"{name}.1", "model"), Output(f"{name}.2", "model")]
        assert average.inputs["eval_data"] == plain[name].inputs["eval_data"]
        assert average.inputs["train_data"] == plain[name].inputs["train_data"]
        assert average.keys["averaged_stage"] == section
        assert average.keys["part_names"] == [f"{name}.1", f"{name}.2"]
        # The recipe's seed and keys that only training reads do not change the measurement.
        assert average.keys["stage_keys"] == {"max_length": 64, "bf16": True}
    others = [name for name in plain if name not in {f"round-{number}.{section}" for number in rounds}]
    assert {name: steps[name] for name in others} == {name: plain[name] for name in others}


def test_the_average_of_dpo_is_measured_against_its_parts_reference(plan, tmp_path):
    steps = plan(f"dpo.variants={LEARNING_RATES}", "dpo.beta=0.3", "dpo.bf16=false")
    assert steps["round-1.dpo"].inputs["reference_model"] == [Output("round-1.sft", "model")]
    assert steps["round-1.dpo"].keys["stage_keys"] == {"beta": 0.3, "bf16": False}
    assert steps["round-1.evaluate_policy"].keys["policy_step"] == "round-1.dpo"
    assert "reference_model" not in plan(f"sft.variants={LEARNING_RATES}")["round-1.sft"].inputs


def test_variants_may_have_other_mixes_of_data(plan):
    winners, human = both("round-1.rejection_sampling", "winners"), both("prepare_data", "instructions")
    steps = plan("sft.variants=[{human_share: 0.0}, {human_share: 0.5}]", "human_share=0.25")
    assert steps["round-1.sft.1"].inputs["train_data"] == [winners[0]]
    assert "train_data_shares" not in steps["round-1.sft.1"].keys
    assert steps["round-1.sft.2"].inputs["train_data"] == [winners[0], human[0]]
    assert steps["round-1.sft.2"].keys["train_data_shares"] == [1.0, 0.5]
    assert steps["round-1.sft"].inputs["eval_data"] == [winners[1], human[1]]  # from all parts, each once
    steps = plan("dpo.variants=[{dpo_batches: 1}, {dpo_batches: 2, beta: 0.2}]")
    assert [item.step for item in steps["round-2.dpo.1"].inputs["train_data"]] == ["round-2.annotate"]
    assert [item.step for item in steps["round-2.dpo.2"].inputs["train_data"]] == [
        "round-1.annotate",
        "round-2.annotate",
    ]
    assert (steps["round-2.dpo.1"].keys.get("beta"), steps["round-2.dpo.2"].keys["beta"]) == (None, 0.2)


def test_variants_that_are_the_same_in_a_round_are_trained_once_and_weigh_as_many(plan):
    # Round 0 has only human rows, so there the first two are the same.
    variants = "sft.variants=[{human_share: 1.0}, {human_share: 0.5}, {learning_rate: 1e-5}]"
    steps = plan(variants, "sft.average={weights: [1, 2, 5]}")
    assert [name for name in steps if name.startswith("round-0.sft")] == [
        "round-0.sft.1",
        "round-0.sft.3",
        "round-0.sft",
    ]
    assert steps["round-0.sft"].keys["weights"] == [3, 5]
    assert steps["round-1.sft"].keys["weights"] == [1, 2, 5]
    steps = plan("sft.variants=[{human_share: 1.0}, {human_share: 0.5}]")
    assert (steps["round-0.sft"].stage, steps["round-1.sft"].stage) == ("sft", "average_models")


def test_a_single_variant_is_the_section_with_its_keys_and_nothing_is_averaged(plan):
    steps = plan("dpo.variants=[{beta: 0.2}]")
    assert list(steps) == list(plan())
    assert steps["round-1.dpo"] == plan("dpo.beta=0.2")["round-1.dpo"]


def test_a_rounds_own_variants_and_average_take_the_sections_place(plan):
    steps = plan(
        f"sft.variants={LEARNING_RATES}",
        "by_round.1.sft.variants=[{learning_rate: 3e-5}]",
        "by_round.2.sft.average={method: slerp, fraction: 0.25}",
        "by_round.2.sft.max_length=8",
    )
    assert (steps["round-1.sft"].stage, steps["round-1.sft"].keys["learning_rate"]) == ("sft", 3e-5)
    assert "weights" not in steps["round-0.sft"].keys and "method" not in steps["round-0.sft"].keys
    assert (steps["round-2.sft"].keys["method"], steps["round-2.sft"].keys["fraction"]) == ("slerp", 0.25)
    assert steps["round-2.sft.1"].keys["max_length"] == steps["round-2.sft"].keys["stage_keys"]["max_length"] == 8


def test_the_judge_is_one_model_whatever_the_reward_models_variants(plan):
    steps = plan(f"reward_model.variants={LEARNING_RATES}", "evaluate_policy.judge_function=null")
    assert steps["judge"] == plan("evaluate_policy.judge_function=null")["judge"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sft.variants=[]"], r"sft\.variants=\[\]: expected a list of mappings, as in \[\{seed: 1\}, \{seed: 2\}\]"),
        (["sft.variants={seed: 1}"], r"sft\.variants=\{'seed': 1\}: expected a list of mappings"),
        (
            ["dpo.variants=[{beta: 0.1}, {betta: 1}]"],
            r"dpo\.variants\.2: unknown key 'betta' of stage dpo; did you mean 'beta'\?",
        ),
        (["dpo.variants=[{beta: x}]"], r"dpo\.variants\.1: beta='x' is text, expected float"),
        (["dpo.variants=[{human_share: 1}]"], r"dpo\.variants\.1: unknown key 'human_share'"),
        (["sft.variants=[{human_share: 2}]"], r"sft\.variants\.1: human_share=2: expected 1 or less"),
        (
            ["dpo.variants=[{validation_share: 0.2}, {}]"],
            r"dpo\.variants\.1\.validation_share: all variants must have the same; set it in the section dpo",
        ),
        (["sft.variants=[{launch: {num_processes: 2}}]"], r"sft\.variants\.1\.launch: a variant holds only keys"),
        (["sft.variants=[{model_name_or_path: x}]"], r"sft\.model_name_or_path is set by the plan"),
        (["annotate.variants=[{}]"], r"annotate: unknown key 'variants' of stage annotate"),
        (["sft.average={weights: greedy}"], r"sft\.average: there is nothing to average; list two models or more"),
        (
            ["sft.variants=[{seed: 1}, {seed: 2}]", "sft.average={wieghts: greedy}"],
            r"sft\.average: unknown key 'wieghts'; did you mean 'weights'\?",
        ),
        (
            ["sft.variants=[{seed: 1}, {seed: 2}]", "sft.average={weights: gredy}"],
            r"sft\.average: weights='gredy' is not one of uniform, greedy, or a list of numbers",
        ),
        (
            ["sft.variants=[{seed: 1}, {seed: 2}]", "sft.average={weights: [1]}"],
            r"sft\.average: 1 weights for 2 models; give one for each",
        ),
        (["sft.variants=[{seed: 1}, {seed: 2}]", "sft.average={weights: [0, 0]}"], r"expected at least one above 0"),
        (
            ["sft.variants=[{seed: 1}, {seed: 2}, {seed: 3}]", "sft.average={method: slerp}"],
            r"sft\.average: method=slerp takes two models and no weights",
        ),
        (["sft.variants=[{seed: 1}, {seed: 2}]", "sft.average={fraction: 0.3}"], r"fraction is for method: slerp"),
        (
            ["sft.variants=[{seed: 1}, {seed: 2}]", "sft.average={method: slerp, fraction: 3}"],
            r"0 or more, at most 1",
        ),
    ],
)
def test_a_mistake_in_variants_is_one_line_before_launch(plan, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan(*overrides)
    assert "\n" not in str(caught.value)


def test_the_variants_of_the_reward_model_vote_in_rejection_sampling(plan):
    variants = "reward_model.variants=[{seed: 1}, {seed: 2}, {seed: 3}]"
    by_average = plan(variants)["round-1.rejection_sampling"]
    assert by_average.inputs["reward_model"] == [Output("round-1.reward_model", "model")]
    assert "other_reward_models" not in by_average.inputs
    steps = plan(variants, "rejection_sampling.vote=worst", "refit_reward_model=false")
    for number in (1, 2):
        step = steps[f"round-{number}.rejection_sampling"]
        assert step.inputs["reward_model"] == [Output("round-1.reward_model.1", "model")]
        assert step.inputs["other_reward_models"] == [
            Output("round-1.reward_model.2", "model"),
            Output("round-1.reward_model.3", "model"),
        ]
    # The average is still the model that annotates and that an evaluation reports.
    assert steps["round-1.evaluate_policy"].inputs["proxy_model"] == [Output("round-1.reward_model", "model")]


def test_a_vote_of_one_reward_model_is_refused(plan):
    with pytest.raises(ConfigError, match="vote=mean has one reward model to ask; list several, which differ"):
        plan("rejection_sampling.vote=mean")
