"""The plan: which steps, in which order, and what each is given. Worked out by hand from the published loop."""

import pytest
from fake_stages import build_inputs, write_keys

from data_schemas import stage_keys
from data_schemas.errors import ConfigError
from pipeline.plan import BestPolicy, EvaluationFolder, File, Model, Output, make_plan
from pipeline.recipe.schema import load_recipe

BASE = Output("prepare_base", "model")


@pytest.fixture(autouse=True)
def toy_keys(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_keys, "KEYS_FILE", write_keys(tmp_path / "keys.json"))
    stage_keys.stages.cache_clear()
    yield
    stage_keys.stages.cache_clear()


@pytest.fixture
def plan(tmp_path):
    recipe_file = build_inputs(tmp_path / "work")
    return lambda *overrides: {step.name: step for step in make_plan(load_recipe(recipe_file, overrides))}


def both(step: str, name: str) -> tuple[Output, Output]:
    return Output(step, f"{name}.train"), Output(step, f"{name}.validation", optional=True)


def test_two_rounds_are_these_steps_in_this_order(plan):
    assert list(plan()) == [
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
        "round-2.annotate",
        "round-2.reward_model",
        "round-2.rejection_sampling",
        "round-2.sft",
        "round-2.dpo",
        "round-2.evaluate_policy",
    ]


def test_the_base_is_given_or_pretrained(plan, tmp_path):
    steps = plan()
    assert steps["prepare_base"].inputs == {"model_name_or_path": [Model(str(tmp_path / "work" / "base"))]}
    steps = plan("base_model=null", "pretrain={block_size: 32}")
    assert list(steps)[:3] == ["prepare_data", "pretrain", "prepare_base"]
    assert steps["pretrain"].inputs["train_data"] == [Output("prepare_data", "documents.train")]
    assert steps["prepare_base"].inputs == {"model_name_or_path": [Output("pretrain", "model")]}


def test_raw_files_are_inputs_of_prepare_data(plan, tmp_path):
    assert plan()["prepare_data"].inputs == {
        "preferences": [File(str(tmp_path / "work" / "pairs.jsonl"))],
        "instructions": [File(str(tmp_path / "work" / "chats.jsonl"))],
    }


def test_reward_models_start_from_the_base_and_see_all_batches_so_far(plan):
    human, first, second = (
        both("prepare_data", "preferences"),
        both("round-1.annotate", "pairs"),
        both("round-2.annotate", "pairs"),
    )
    human = Output("prepare_data", "preferences.train", optional=True), human[1]  # others may stand in for it
    steps = plan()
    assert steps["round-2.reward_model"].inputs == {
        "model_name_or_path": [BASE],
        "train_data": [human[0], first[0], second[0]],
        "eval_data": [human[1], first[1], second[1]],
    }
    assert steps["round-1.reward_model"].inputs["train_data"] == [human[0], first[0]]


@pytest.mark.parametrize(
    ("batches", "train_data"),
    [
        (1, ["round-2.annotate"]),
        (2, ["round-1.annotate", "round-2.annotate"]),
        (9, ["prepare_data", "round-1.annotate", "round-2.annotate"]),
    ],
)
def test_dpo_starts_from_the_rounds_sft_and_sees_the_most_recent_batches(plan, batches, train_data):
    step = plan(f"dpo_batches={batches}")["round-2.dpo"]
    assert step.inputs["model_name_or_path"] == [Output("round-2.sft", "model")]
    assert [reference.step for reference in step.inputs["train_data"]] == train_data


def test_the_best_policy_so_far_samples_and_the_base_learns(plan):
    steps = plan()
    assert steps["round-1.rejection_sampling"].inputs["policies"] == [BestPolicy("round-0.evaluate_policy")]
    assert steps["round-2.rejection_sampling"].inputs["policies"] == [BestPolicy("round-1.evaluate_policy")]
    assert steps["round-2.rejection_sampling"].inputs["reward_model"] == [Output("round-2.reward_model", "model")]
    assert steps["round-2.sft"].inputs["model_name_or_path"] == [BASE]
    assert plan("sft_from=best")["round-2.sft"].inputs["model_name_or_path"] == [BestPolicy("round-1.evaluate_policy")]


def test_sft_mixes_winners_with_a_share_of_the_human_instructions(plan):
    step = plan("human_share=0.25")["round-1.sft"]
    winners, human = both("round-1.rejection_sampling", "winners"), both("prepare_data", "instructions")
    assert step.inputs["train_data"] == [winners[0], human[0]]
    assert step.inputs["eval_data"] == [winners[1], human[1]]
    assert step.keys["train_data_shares"] == [1.0, 0.25]
    step = plan("human_share=0.0")["round-1.sft"]
    assert step.inputs["train_data"] == [winners[0]]
    assert "train_data_shares" not in step.keys


def test_two_policies_are_compared_from_round_two_on(plan):
    steps = plan()
    assert steps["round-1.annotate"].inputs["policies"] == [BestPolicy("round-0.evaluate_policy")]
    assert steps["round-2.annotate"].inputs["policies"] == [
        BestPolicy("round-1.evaluate_policy"),
        BestPolicy("round-1.evaluate_policy", rank=1),
    ]
    assert plan("annotate_policies=best")["round-2.annotate"].inputs["policies"] == [
        BestPolicy("round-1.evaluate_policy")
    ]


def test_without_an_annotator_function_the_last_reward_model_annotates_from_round_two_on(plan):
    steps = plan("annotate.annotator_function=null")
    assert "round-1.annotate" not in steps
    assert steps["round-1.reward_model"].inputs["train_data"] == [Output("prepare_data", "preferences.train")]
    assert steps["round-1.dpo"].inputs["train_data"] == [Output("prepare_data", "preferences.train")]
    assert steps["round-2.annotate"].inputs["annotator_models"] == [Output("round-1.reward_model", "model")]
    assert "annotator_models" not in plan()["round-2.annotate"].inputs


def test_every_evaluation_has_the_same_judge_and_all_earlier_ones(plan):
    steps = plan("evaluate_policy.judge_function=null")
    assert steps["judge"].stage == "reward_model"
    assert steps["judge"].inputs["train_data"] == [Output("prepare_data", "preferences.judge")]
    assert [steps[f"round-{r}.evaluate_policy"].inputs["judge_model"] for r in range(3)] == [
        [Output("judge", "model")]
    ] * 3
    last = steps["round-2.evaluate_policy"]
    assert last.inputs["previous"] == [
        EvaluationFolder("round-0.evaluate_policy"),
        EvaluationFolder("round-1.evaluate_policy"),
    ]
    assert last.inputs["first_policy"] == [Output("round-0.sft", "model")]
    assert last.inputs["proxy_model"] == [Output("round-2.reward_model", "model")]
    assert last.keys["policy_step"] == "round-2.dpo"
    first = steps["round-0.evaluate_policy"]
    assert first.inputs.keys() == {"prompts", "model_name_or_path", "judge_model"}
    assert "judge" not in plan()  # a judge function decides


def test_every_round_draws_other_prompts_with_the_recipes_seed(plan):
    steps = plan("seed=5", "rejection_sampling.seed=6")
    assert (steps["round-2.annotate"].keys["round"], steps["round-2.annotate"].keys["seed"]) == (2, 5)
    assert (steps["round-1.rejection_sampling"].keys["round"], steps["round-1.rejection_sampling"].keys["seed"]) == (
        1,
        6,
    )


# -- other rounds than the published ones ---------------------------------------------------------------------------

OFFLINE = ("annotate.annotator_function=null", "evaluate_policy={judge_function: null, judge_model: acme/judge}")


def steps_of_rounds(steps) -> list[str]:
    return [name for name, step in steps.items() if step.round]


def test_direct_alignment_alone_goes_on_from_the_best_policy_so_far(plan):
    steps = plan(
        "round_stages=[annotate, dpo]",
        "first_sft=false",
        "annotate_policies=best",
        *OFFLINE,
        "annotate.annotator_models=[acme/reward]",
    )
    assert list(steps) == [
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
    assert steps["round-0.evaluate_policy"].inputs["model_name_or_path"] == [BASE]
    assert steps["round-0.evaluate_policy"].keys["policy_step"] == "prepare_base"
    for number in (1, 2):
        best = BestPolicy(f"round-{number - 1}.evaluate_policy")
        assert steps[f"round-{number}.annotate"].inputs["policies"] == [best]
        assert steps[f"round-{number}.annotate"].inputs["annotator_models"] == [Model("acme/reward")]
        dpo, pairs = steps[f"round-{number}.dpo"], both(f"round-{number}.annotate", "pairs")
        assert dpo.inputs == {"model_name_or_path": [best], "train_data": [pairs[0]], "eval_data": [pairs[1]]}
    last = steps["round-2.evaluate_policy"].inputs
    assert last["model_name_or_path"] == [Output("round-2.dpo", "model")]
    assert (last["first_policy"], last["judge_model"], last["proxy_model"]) == (
        [BASE],
        [Model("acme/judge")],
        [Model("acme/reward")],
    )


def test_the_reference_of_dpo_may_stay_the_first_policy(plan):
    steps = plan("round_stages=[annotate, dpo]", "dpo_reference=first")
    assert steps["round-2.dpo"].inputs["reference_model"] == [Output("round-0.sft", "model")]
    assert "reference_model" not in plan()["round-2.dpo"].inputs


def test_rejection_sampling_and_sft_alone_are_a_round(plan):
    steps = plan(
        "round_stages=[rejection_sampling, sft]",
        "sft_from=best",
        "human_share=0",
        "data.preferences=null",
        "rejection_sampling.reward_model=acme/reward",
    )
    assert steps_of_rounds(steps) == [
        "round-1.rejection_sampling",
        "round-1.sft",
        "round-1.evaluate_policy",
        "round-2.rejection_sampling",
        "round-2.sft",
        "round-2.evaluate_policy",
    ]
    best, winners = BestPolicy("round-1.evaluate_policy"), both("round-2.rejection_sampling", "winners")
    sampling = steps["round-2.rejection_sampling"].inputs
    assert (sampling["policies"], sampling["reward_model"]) == ([best], [Model("acme/reward")])
    assert steps["round-2.sft"].inputs == {
        "model_name_or_path": [best],
        "train_data": [winners[0]],
        "eval_data": [winners[1]],
    }
    last = steps["round-2.evaluate_policy"].inputs
    assert last["model_name_or_path"] == [Output("round-2.sft", "model")]
    assert last["proxy_model"] == [Model("acme/reward")]


def test_no_two_steps_are_the_same(plan):
    steps = plan("round_stages=[reward_model, rejection_sampling, sft, dpo]")
    # Without new pairs the reward model of round 1 is that of round 2.
    assert "round-2.reward_model" not in steps
    assert steps["round-2.rejection_sampling"].inputs["reward_model"] == [Output("round-1.reward_model", "model")]
    assert steps["round-2.dpo"].inputs["train_data"] == [Output("prepare_data", "preferences.train")]
    # Without winners SFT has the human instructions alone, as in round 0.
    steps = plan("round_stages=[annotate, sft, dpo]")
    assert not {"round-1.sft", "round-2.sft"} & set(steps)
    assert steps["round-2.dpo"].inputs["model_name_or_path"] == [Output("round-0.sft", "model")]
    steps = plan("round_stages=[annotate, sft, dpo]", "human_share=0.5", "sft_from=best")
    assert steps["round-2.sft"].inputs["train_data"] == [Output("prepare_data", "instructions.train")]
    assert steps["round-2.sft"].keys["train_data_shares"] == [0.5]


def test_two_policies_may_be_sampled(plan):
    steps = plan("sampling_policies=best_two")
    assert steps["round-1.rejection_sampling"].inputs["policies"] == [BestPolicy("round-0.evaluate_policy")]
    assert steps["round-2.rejection_sampling"].inputs["policies"] == [
        BestPolicy("round-1.evaluate_policy"),
        BestPolicy("round-1.evaluate_policy", rank=1),
    ]


def test_given_annotators_win_over_the_trained_reward_model_and_annotate_round_one(plan):
    steps = plan("annotate={annotator_function: null, annotator_models: [acme/one, acme/two]}")
    for number in (1, 2):
        assert steps[f"round-{number}.annotate"].inputs["annotator_models"] == [Model("acme/one"), Model("acme/two")]
    assert steps["round-2.evaluate_policy"].inputs["proxy_model"] == [Output("round-2.reward_model", "model")]
    steps = plan("annotate.annotator_function=null", "by_round.1.annotate.annotator_models=[acme/one]")
    assert steps["round-2.annotate"].inputs["annotator_models"] == [Output("round-1.reward_model", "model")]


def test_a_given_judge_asks_for_no_pairs(plan):
    steps = plan("evaluate_policy={judge_function: null, judge_model: acme/judge}")
    assert "judge" not in steps
    assert steps["round-0.evaluate_policy"].inputs["judge_model"] == [Model("acme/judge")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["round_stages=[annotate, rejection_sampling, sft]"],
            "round_stages: rejection_sampling has no reward model: add reward_model, or give",
        ),
        (
            ["round_stages=[annotate, dpo]", "annotate.annotator_function=null"],
            "round_stages: annotate has no annotator: give annotate.annotator_function or annotate.annotator_models",
        ),
        (["round_stages=[annotate, sft]"], "round_stages: nothing trains on the pairs of annotate"),
        (
            ["round_stages=[annotate, reward_model, rejection_sampling, dpo]"],
            "round_stages: nothing trains on the winners of rejection_sampling: add sft",
        ),
        (["round_stages=[annotate, sft, dpo]", "human_share=0"], "round_stages: sft has no rows"),
        (["round_stages=[dpo]", "data.preferences=null"], "data.preferences is missing: dpo has no pairs"),
        (
            ["round_stages=[reward_model, rejection_sampling, sft]", "data.preferences=null"],
            "data.preferences is missing: reward_model has no pairs",
        ),
        (["round_stages=[]"], "round 1 trains no new policy"),
        (["round_stages=[annotate, reward_model]"], "round 1 trains no new policy"),
        (["round_stages=[sft]"], "round 1 trains no new policy"),
    ],
)
def test_what_a_round_lacks_is_one_line(plan, overrides, message):
    with pytest.raises(ConfigError) as error:
        plan(*overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_no_round_is_a_run_too(plan):
    assert list(plan("rounds=0"))[-1] == "round-0.evaluate_policy"


def test_a_key_that_the_plan_sets_is_refused(plan):
    with pytest.raises(ConfigError, match=r"rejection_sampling\.reward_model is set by the plan"):
        plan("rejection_sampling.reward_model=x")


# -- variants -------------------------------------------------------------------------------------------------------

LEARNING_RATES = "[{learning_rate: 1e-5}, {learning_rate: 2e-5}]"


@pytest.mark.parametrize("section", ["sft", "reward_model", "dpo"])
def test_variants_are_steps_of_their_own_and_their_average_bears_the_sections_name(plan, section):
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
        # The recipe's seed and what only training reads leave the measurement as it is.
        assert average.keys["stage_keys"] == {"max_length": 64, "bf16": True}
    others = [name for name in plain if name not in {f"round-{number}.{section}" for number in rounds}]
    assert {name: steps[name] for name in others} == {name: plain[name] for name in others}


def test_the_average_of_dpo_is_measured_against_its_parts_reference(plan, tmp_path):
    steps = plan(f"dpo.variants={LEARNING_RATES}", "dpo.beta=0.3")
    assert steps["round-1.dpo"].inputs["reference_model"] == [Output("round-1.sft", "model")]
    assert steps["round-1.dpo"].keys["stage_keys"] == {"beta": 0.3}
    assert steps["round-1.evaluate_policy"].keys["policy_step"] == "round-1.dpo"
    assert "reference_model" not in plan(f"sft.variants={LEARNING_RATES}")["round-1.sft"].inputs


def test_variants_may_have_other_mixes_of_data(plan):
    winners, human = both("round-1.rejection_sampling", "winners"), both("prepare_data", "instructions")
    steps = plan("sft.variants=[{human_share: 0.0}, {human_share: 0.5}]", "human_share=0.25")
    assert steps["round-1.sft.1"].inputs["train_data"] == [winners[0]]
    assert "train_data_shares" not in steps["round-1.sft.1"].keys
    assert steps["round-1.sft.2"].inputs["train_data"] == [winners[0], human[0]]
    assert steps["round-1.sft.2"].keys["train_data_shares"] == [1.0, 0.5]
    assert steps["round-1.sft"].inputs["eval_data"] == [winners[1], human[1]]  # of all parts, each once
    steps = plan("dpo.variants=[{dpo_batches: 1}, {dpo_batches: 2, beta: 0.2}]")
    assert [item.step for item in steps["round-2.dpo.1"].inputs["train_data"]] == ["round-2.annotate"]
    assert [item.step for item in steps["round-2.dpo.2"].inputs["train_data"]] == [
        "round-1.annotate",
        "round-2.annotate",
    ]
    assert (steps["round-2.dpo.1"].keys.get("beta"), steps["round-2.dpo.2"].keys["beta"]) == (None, 0.2)


def test_variants_that_are_the_same_in_a_round_are_trained_once_and_weigh_as_many(plan):
    # Round 0 has human rows alone, so there the first two differ in nothing.
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
        (["sft.variants=[{human_share: 2}]"], r"sft\.variants\.1: human_share=2: Input should be less than"),
        (
            ["dpo.variants=[{validation_share: 0.2}, {}]"],
            r"dpo\.variants\.1\.validation_share: all variants must have the same; say it in the section dpo",
        ),
        (["sft.variants=[{launch: {num_processes: 2}}]"], r"sft\.variants\.1\.launch: a variant holds keys"),
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
        (["sft.variants=[{seed: 1}, {seed: 2}]", "sft.average={weights: [0, 0]}"], r"expected numbers >= 0 with a sum"),
        (
            ["sft.variants=[{seed: 1}, {seed: 2}, {seed: 3}]", "sft.average={method: slerp}"],
            r"sft\.average: method=slerp takes two models and no weights",
        ),
        (["sft.variants=[{seed: 1}, {seed: 2}]", "sft.average={fraction: 0.3}"], r"fraction is for method: slerp"),
        (["sft.variants=[{seed: 1}, {seed: 2}]", "sft.average={method: slerp, fraction: 3}"], r"not between 0 and 1"),
    ],
)
def test_a_mistake_in_variants_is_one_line_before_launch(plan, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan(*overrides)
    assert "\n" not in str(caught.value)
