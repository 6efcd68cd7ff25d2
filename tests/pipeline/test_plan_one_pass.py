"""Plans without rounds, without a judge, and with parts that are not used."""

import pytest

from data_schemas.errors import ConfigError
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.steps import Model, Output
from pipeline.unused import check_unused
from tests.pipeline.fake_stages import build_inputs


def names(steps: dict) -> list[str]:
    return list(steps)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ("[sft]", ["prepare_data", "prepare_base", "sft"]),
        ("[sft, dpo]", ["prepare_data", "prepare_base", "sft", "dpo"]),
        ("[sft, reward_model, dpo]", ["prepare_data", "prepare_base", "sft", "reward_model", "dpo"]),
        ("[reward_model]", ["prepare_data", "prepare_base", "reward_model"]),
        ("[sft, evaluate_policy]", ["prepare_data", "prepare_base", "sft", "evaluate_policy"]),
    ],
)
def test_a_recipe_that_lists_its_stages_has_each_once(plan_one_pass, stages, expected):
    assert names(plan_one_pass(f"stages={stages}")) == expected


def test_dpo_starts_from_the_sft_model_and_the_reward_model_from_the_base(plan_one_pass):
    steps = plan_one_pass("stages=[sft, reward_model, dpo]")
    assert steps["dpo"].inputs["model_name_or_path"] == [Output("sft", "model")]
    assert steps["reward_model"].inputs["model_name_or_path"] == [Output("prepare_base", "model")]
    assert plan_one_pass("stages=[dpo]")["dpo"].inputs["model_name_or_path"] == [Output("prepare_base", "model")]


@pytest.mark.parametrize("stages", ["[sft, rl]", "[sft, reward_model, rl]"])
def test_rl_takes_the_reward_model_that_is_trained(stages, plan_one_pass):
    step = plan_one_pass(f"stages={stages}", "rl.reward_functions=scores:score")["rl"]
    trained = [Output("reward_model", "model")] if "reward_model" in stages else None
    assert step.inputs["model_name_or_path"] == [Output("sft", "model")]
    assert step.inputs.get("reward_model") == trained


def test_no_dialog_is_held_out_for_an_evaluation_that_does_not_happen(plan_one_pass):
    assert plan_one_pass("stages=[sft]")["prepare_data"].keys["evaluation_share"] == 0.0
    assert plan_one_pass("stages=[sft]", "data.evaluation_share=0.3")["prepare_data"].keys["evaluation_share"] == 0.3
    assert plan_one_pass("stages=[sft, evaluate_policy]")["prepare_data"].keys["evaluation_share"] == 0.0
    judged = plan_one_pass("stages=[sft, evaluate_policy]", "data.judge_share=0.2")
    assert names(judged) == ["prepare_data", "prepare_base", "sft", "judge", "evaluate_policy"]
    assert "evaluation_share" not in judged["prepare_data"].keys


def test_without_a_judge_an_evaluation_answers_a_few_held_out_prompts(plan_one_pass):
    step = plan_one_pass("stages=[sft, evaluate_policy]")["evaluate_policy"]
    validation = Output("prepare_data", "prompts.validation", optional=True)
    assert step.inputs == {"model_name_or_path": [Output("sft", "model")], "prompts": [validation]}
    assert step.keys == {"seed": 0, "report_to": "none", "num_prompts": 8, "num_answers": 1, "policy_step": "sft"}
    more = plan_one_pass("stages=[sft, evaluate_policy]", "evaluate_policy.num_prompts=3", "data.evaluation_share=0.2")
    assert more["evaluate_policy"].keys["num_prompts"] == 3
    assert more["evaluate_policy"].inputs["prompts"] == [
        Output("prepare_data", "evaluation_prompts", optional=True),
        validation,
    ]


def test_a_given_base_model_is_pretrained_further(plan_one_pass, tmp_path):
    base = Model(str(tmp_path / "work" / "base"))
    steps = plan_one_pass("stages=[pretrain]")
    assert (names(steps), steps["pretrain"].inputs["model_name_or_path"]) == (["prepare_data", "pretrain"], [base])
    steps = plan_one_pass("stages=[pretrain, sft]", "pretrain={block_size: 32}")
    assert names(steps) == ["prepare_data", "pretrain", "prepare_base", "sft"]
    assert steps["prepare_base"].inputs["model_name_or_path"] == [Output("pretrain", "model")]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "stages=[sfft]",
            "'sfft' is not one of pretrain, reward_model, sft, dpo, rl, evaluate_tasks, evaluate_policy; did you mean",
        ),
        ("stages=[evaluate_policy]", "no stage that trains"),
        ("stages=[]", "no stage that trains"),
    ],
)
def test_a_list_of_stages_that_cannot_be_is_refused(plan_one_pass, setting, message):
    with pytest.raises(ConfigError) as raised:
        plan_one_pass(setting)
    assert message in str(raised.value)


def test_a_key_of_the_rounds_contradicts_a_list_of_stages(plan_one_pass):
    with pytest.raises(ConfigError, match=r"rounds is a key of the rounds, and a recipe with `stages` has none"):
        plan_one_pass("stages=[sft]", "rounds=2")


def test_rounds_without_a_judge_continue_from_the_newest_policy(plan_one_pass):
    steps = plan_one_pass("annotate={annotator_function: 'scores:score'}")
    assert not [name for name in steps if "evaluate" in name or name == "judge"]
    assert steps["round-1.rejection_sampling"].inputs["policies"] == [Output("round-0.sft", "model")]
    assert steps["round-2.annotate"].inputs["policies"] == [
        Output("round-1.dpo", "model"),
        Output("round-0.sft", "model"),
    ]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["stages=[sft]"], "data.preferences is not used: no step of this recipe reads it; add its stage to `stages`"),
        (["stages=[dpo]", "data.instructions=null", "sft={}"], "the section sft is not used: no step of this recipe"),
    ],
)
def test_what_the_listed_stages_do_not_use_is_refused(toy_recipe, settings, sentence):
    recipe = load_recipe(toy_recipe, settings)
    with pytest.raises(ConfigError) as raised:
        check_unused(recipe, make_plan(recipe))
    assert sentence in str(raised.value)


def test_what_rounds_do_not_use_is_a_warning(toy_recipe):
    settings = ["round_stages=[reward_model, rejection_sampling, sft]", "dpo.beta=0.2", "data.judge_share=0.5"]
    recipe = load_recipe(toy_recipe, settings)
    assert check_unused(recipe, make_plan(recipe)) == ["the section dpo is not used: no step of this recipe runs it"]


def test_keys_of_a_round_that_does_not_run_their_section_are_a_warning(toy_recipe):
    later = ["rounds=3", "round_stages_from={2: [annotate, dpo]}"]
    given = [
        "by_round={1: {sft: {seed: 2}}, 2: {dpo: {beta: 0.2}, sft: {seed: 2}}, 3: {rejection_sampling: {seed: 2}}}"
    ]
    recipe = load_recipe(toy_recipe, later + given)
    assert check_unused(recipe, make_plan(recipe)) == [
        f"by_round.{number}.{name} is not used: round {number} runs no step of {name}"
        for number, name in ((2, "sft"), (3, "rejection_sampling"))
    ]


def test_rounds_0_says_itself_what_it_leaves_out(toy_recipe):
    recipe = load_recipe(toy_recipe, ["rounds=0", "dpo.beta=0.2", "data.judge_share=0.5"])
    assert check_unused(recipe, make_plan(recipe)) == []


@pytest.fixture
def toy_recipe(tmp_path):
    """The toy recipe without its rounds and its judge."""
    path = build_inputs(tmp_path / "work")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith(("rounds", "evaluate_policy", "annotate"))))
    return path


@pytest.fixture
def plan_one_pass(toy_recipe):
    """-> the steps of that recipe by name."""
    return lambda *overrides: {step.name: step for step in make_plan(load_recipe(toy_recipe, overrides))}
