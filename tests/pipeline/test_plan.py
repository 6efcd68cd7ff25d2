"""The plan: its steps, their order and their inputs, worked out by hand from the published loop."""

import pytest

from data_schemas.errors import ConfigError
from pipeline.steps import BestPolicy, EvaluationFolder, File, Model, Output

BASE = Output("prepare_base", "model")


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


def test_a_given_base_is_prepared_before_it_is_pretrained_only_if_its_tokenizer_is_extended(plan, tmp_path):
    given = Model(str(tmp_path / "work" / "base"))
    steps = plan("pretrain={block_size: 32}")
    assert steps["pretrain"].inputs["model_name_or_path"] == [given]
    assert steps["prepare_base"].inputs == {"model_name_or_path": [Output("pretrain", "model")]}
    (tmp_path / "work" / "ko.txt").write_text("안녕하세요\n")
    steps = plan("pretrain={block_size: 32}", "prepare_base={extend_tokenizer: ko.txt, num_new_tokens: 9}")
    corpus = File(str(tmp_path / "work" / "ko.txt"))
    assert steps["prepare_base"].inputs == {"model_name_or_path": [given], "extend_tokenizer": [corpus]}
    assert steps["pretrain"].inputs["model_name_or_path"] == [BASE]
    assert steps["round-1.reward_model"].inputs["model_name_or_path"] == [Output("pretrain", "model")]


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
    human = Output("prepare_data", "preferences.train", optional=True), human[1]  # others may replace it
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


def test_a_reward_model_may_start_from_a_model_of_its_own(plan, tmp_path):
    larger = tmp_path / "work" / "larger"
    larger.mkdir()
    plain, steps = plan(), plan("reward_model_from=larger", "prepare_base.dtype=bfloat16")
    assert set(steps) == set(plain) | {"prepare_reward_base"}
    step = steps["prepare_reward_base"]
    assert (step.stage, step.inputs) == ("prepare_base", {"model_name_or_path": [Model(str(larger))]})
    assert step.keys["dtype"] == "bfloat16"
    trained = steps["round-2.reward_model"]
    assert trained.inputs["model_name_or_path"] == [Output("prepare_reward_base", "model")]
    assert trained.keys["other_contract"] is True
    assert "other_contract" not in plain["round-2.reward_model"].keys
    policies = "round_stages=[annotate, dpo]", "annotate.annotator_function=world:score"
    assert "prepare_reward_base" not in plan("reward_model_from=larger", *policies)


def test_a_round_whose_training_repeats_an_earlier_one_is_refused_with_an_average_too(plan):
    repeated = ("rounds=2", "first_sft=false", "sft_from=base", "round_stages=[sft]", "reward_model=null")
    for average in ("average_with_best=0.0", "average_with_best=0.3"):
        with pytest.raises(ConfigError, match="round 2 trains no new policy"):
            plan(*repeated[:-1], average)


def test_dpo_reads_less_of_older_batches(plan):
    steps = plan("rounds=3", "dpo_batches=3", "dpo_batch_decay=0.5")
    assert [item.step for item in steps["round-3.dpo"].inputs["train_data"]] == [
        "round-1.annotate",
        "round-2.annotate",
        "round-3.annotate",
    ]
    assert steps["round-3.dpo"].keys["train_data_shares"] == [0.25, 0.5, 1.0]
    assert "train_data_shares" not in plan("dpo_batches=3")["round-2.dpo"].keys
    assert "train_data_shares" not in plan("dpo_batch_decay=0.5")["round-2.dpo"].keys


def test_the_hardest_prompts_by_the_rewards_of_earlier_rounds(plan):
    hardest = "{prompt_order: hardest_first, num_prompts: 9}"
    steps = plan("rounds=3", f"rejection_sampling={hardest}", f"annotate={hardest}")
    first, second = (Output(f"round-{number}.rejection_sampling", "candidates") for number in (1, 2))
    assert "earlier_candidates" not in steps["round-1.rejection_sampling"].inputs
    for section in ("annotate", "rejection_sampling"):
        assert steps[f"round-2.{section}"].inputs["earlier_candidates"] == [first]
        assert steps[f"round-3.{section}"].inputs["earlier_candidates"] == [first, second]
    assert "earlier_candidates" not in plan("rounds=3")["round-3.annotate"].inputs


def test_the_rounds_policy_may_be_an_average_with_the_best_before(plan):
    plain, steps = plan(), plan("average_with_best=0.25")
    assert set(steps) == set(plain) | {"round-1.average", "round-2.average"}
    average = steps["round-2.average"]
    assert (average.stage, average.section, average.round) == ("average_models", "dpo", 2)
    assert average.inputs == {"models": [BestPolicy("round-1.evaluate_policy"), Output("round-2.dpo", "model")]}
    assert average.keys["weights"] == [0.25, 0.75]
    assert "averaged_stage" not in average.keys
    two = plan("average_with_best=0.25", "launch={profile: zero3, num_processes: 2, device: cpu}")["round-1.average"]
    assert (two.launch.profile, two.launch.num_processes, two.launch.device) == ("single", 1, "cpu")
    evaluation = steps["round-2.evaluate_policy"]
    assert evaluation.inputs["model_name_or_path"] == [Output("round-2.average", "model")]
    assert evaluation.keys["policy_step"] == "round-2.average"
    assert steps["round-2.dpo"] == plain["round-2.dpo"]
    names = list(steps)
    assert names.index("round-2.average") == names.index("round-2.dpo") + 1
    with_rl = plan("average_with_best=0.25", "round_stages=[annotate, reward_model, rejection_sampling, sft, rl]")
    assert with_rl["round-1.average"].inputs["models"][1] == Output("round-1.rl", "model")


def test_the_best_policy_so_far_samples_and_the_base_is_trained(plan):
    steps = plan()
    assert steps["round-1.rejection_sampling"].inputs["policies"] == [BestPolicy("round-0.evaluate_policy")]
    assert steps["round-2.rejection_sampling"].inputs["policies"] == [BestPolicy("round-1.evaluate_policy")]
    assert steps["round-2.rejection_sampling"].inputs["reward_model"] == [Output("round-2.reward_model", "model")]
    assert steps["round-2.sft"].inputs["model_name_or_path"] == [BASE]
    assert steps["round-2.reward_model"].inputs["model_name_or_path"] == [BASE]
    from_best = plan("sft_from=best", "reward_model_from=best")
    for name in ("round-2.sft", "round-2.reward_model"):
        assert from_best[name].inputs["model_name_or_path"] == [BestPolicy("round-1.evaluate_policy")]


@pytest.mark.parametrize(("batches", "rounds"), [(1, [3]), (2, [2, 3]), (9, [1, 2, 3])])
def test_sft_sees_the_most_recent_batches_of_winners(plan, batches, rounds):
    step = plan("rounds=3", f"sft_batches={batches}")["round-3.sft"]
    names = [f"round-{number}.rejection_sampling" for number in rounds]
    assert [reference.step for reference in step.inputs["train_data"]] == [*names, "prepare_data"]


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


OFFLINE = ("annotate.annotator_function=null", "evaluate_policy={judge_function: null, judge_model: acme/judge}")


def steps_of_rounds(steps) -> list[str]:
    return [name for name, step in steps.items() if step.round]


def test_rounds_of_only_dpo_continue_from_the_best_policy_so_far(plan):
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


def test_only_rejection_sampling_and_sft_are_a_round(plan):
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


def test_dpo_may_come_before_rejection_sampling_which_then_takes_its_answers(plan):
    order = "round_stages=[annotate, reward_model, dpo, rejection_sampling, sft]"
    steps, best = plan(order, "sft_from=best"), BestPolicy("round-1.evaluate_policy")
    assert [name.partition(".")[2] for name in steps_of_rounds(steps)][6:] == [
        "annotate",
        "reward_model",
        "dpo",
        "rejection_sampling",
        "sft",
        "evaluate_policy",
    ]
    policy = Output("round-2.dpo", "model")
    assert steps["round-2.dpo"].inputs["model_name_or_path"] == [best]
    assert steps["round-2.rejection_sampling"].inputs["policies"] == [policy]
    assert steps["round-2.sft"].inputs["model_name_or_path"] == [policy]
    assert steps["round-2.evaluate_policy"].inputs["model_name_or_path"] == [Output("round-2.sft", "model")]
    both_policies = plan(order, "sampling_policies=best_two")["round-2.rejection_sampling"]
    assert both_policies.inputs["policies"] == [policy, best]
    assert plan(order)["round-2.sft"].inputs["model_name_or_path"] == [BASE]


def test_rounds_have_other_stages_from_a_round_on(plan):
    steps = plan("rounds=5", "round_stages_from={2: [annotate, dpo], 4: [reward_model, rejection_sampling, sft]}")
    of_rounds = {number: [step.stage for step in steps.values() if step.round == number] for number in range(1, 6)}
    whole = ["annotate", "reward_model", "rejection_sampling", "sft", "dpo", "evaluate_policy"]
    alone, raft = ["annotate", "dpo", "evaluate_policy"], ["reward_model", "rejection_sampling", "sft"]
    assert of_rounds == {1: whole, 2: alone, 3: alone, 4: [*raft, "evaluate_policy"], 5: [*raft[1:], "evaluate_policy"]}
    assert steps["round-3.dpo"].inputs["model_name_or_path"] == [BestPolicy("round-2.evaluate_policy")]
    batches = [Output("round-1.annotate", "pairs.train"), Output("round-3.annotate", "pairs.train")]
    assert [steps["round-4.reward_model"].inputs["train_data"][place] for place in (1, 3)] == batches
    # The reward model of round 1 is no reward of the rounds that do not read it.
    proxies = [steps[f"round-{number}.evaluate_policy"].inputs.get("proxy_model") for number in range(1, 6)]
    first, fourth = [Output(f"round-{number}.reward_model", "model") for number in (1, 4)]
    assert proxies == [[first], None, None, [fourth], [fourth]]


@pytest.mark.parametrize(
    ("of_rl", "proxy"),
    [
        ([], Output("round-1.reward_model", "model")),
        (["rl.reward_model=null"], None),
    ],
)
def test_only_a_reward_model_that_rl_reads_is_the_proxy_of_its_round(of_rl, proxy, plan):
    settings = ["rl.reward_functions=[rewards:length]", "rl.num_generations=2", *of_rl]
    steps = plan("rounds=2", "round_stages_from={2: [annotate, dpo, rl]}", *settings)
    assert steps["round-2.evaluate_policy"].inputs.get("proxy_model") == (proxy and [proxy])


def test_a_later_round_may_read_the_reward_model_of_an_earlier_one(plan):
    steps = plan("rounds=3", "round_stages_from={2: [rejection_sampling, sft]}", "sft_from=best")
    reward_model = Output("round-1.reward_model", "model")
    assert steps["round-3.rejection_sampling"].inputs["reward_model"] == [reward_model]
    assert steps["round-3.evaluate_policy"].inputs["proxy_model"] == [reward_model]
    # Without rejection sampling SFT takes no winners of an earlier round.
    steps = plan("rounds=3", "round_stages_from={3: [annotate, sft, dpo]}")
    assert steps["round-3.dpo"].inputs["model_name_or_path"] == [Output("round-0.sft", "model")]
    # The first rounds of a longer run are those of a shorter one.
    whole, longer = plan(), plan("rounds=3", "round_stages_from={3: [annotate, dpo]}")
    assert [longer[name] for name in whole] == list(whole.values())


def test_no_two_steps_are_the_same(plan):
    steps = plan("round_stages=[reward_model, rejection_sampling, sft, dpo]")
    # Without new pairs the reward model of round 1 is that of round 2.
    assert "round-2.reward_model" not in steps
    assert steps["round-2.rejection_sampling"].inputs["reward_model"] == [Output("round-1.reward_model", "model")]
    assert steps["round-2.dpo"].inputs["train_data"] == [Output("prepare_data", "preferences.train")]
    # Without winners SFT has only the human instructions, as in round 0.
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
            "round_stages: annotate has no annotator: give annotate.annotator_function, annotate.annotator_models or",
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
        (["round_stages_from={2: [annotate, sft]}"], "round_stages_from.2: nothing trains on the pairs of annotate"),
        (
            ["round_stages=[sft, dpo]", "round_stages_from={2: [rejection_sampling, sft]}"],
            "round_stages_from.2: rejection_sampling has no reward model",
        ),
        (
            [
                "rejection_sampling.reward_model=acme/reward",
                "round_stages=[rejection_sampling, sft]",
                "round_stages_from={2: [dpo]}",
                "data.preferences=null",
            ],
            "data.preferences is missing: dpo has no pairs",
        ),
        (["round_stages_from={2: [reward_model]}"], "round 2 trains no new policy"),
        (["round_stages=[]"], "round 1 trains no new policy"),
        (["round_stages=[annotate, reward_model]"], "round 1 trains no new policy"),
        (["round_stages=[sft]"], "round 1 trains no new policy"),
    ],
)
def test_what_a_round_lacks_is_one_line(plan, overrides, message):
    with pytest.raises(ConfigError) as error:
        plan(*overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_run_may_have_no_round(plan):
    assert list(plan("rounds=0"))[-1] == "round-0.evaluate_policy"


def test_a_key_that_the_plan_sets_is_refused(plan):
    with pytest.raises(ConfigError, match=r"rejection_sampling\.reward_model is set by the plan"):
        plan("rejection_sampling.reward_model=x")


def test_rows_keep_their_files_only_for_a_mix_of_sources(plan):
    def keeps(section: str, mix: str) -> bool | None:
        return plan(f"{section}={{{mix}}}")["prepare_data"].keys.get("keep_sources")

    assert keeps("curate", "mix_weights: {a.jsonl: 0.5}") is keeps("curate_sft", "mix_words: 9") is True
    assert keeps("curate", "") is keeps("curate", "mix_by: tag, mix_words: 9") is None


def test_a_section_curate_stands_between_the_files_and_what_trains_on_them(plan):
    """Held-out rows are read from prepare_data: no rule of curation touches them."""
    steps = plan("curate={}", "curate_sft={}", "base_model=null", "pretrain={block_size: 32}")
    assert list(steps)[:3] == ["prepare_data", "curate", "pretrain"]
    kinds = ("documents", "instructions", "preferences", "prompts")
    curated = {kind: [Output("prepare_data", f"{kind}.train", optional=True)] for kind in kinds}
    held_out = {"evaluation_prompts": [Output("prepare_data", "evaluation_prompts", optional=True)]}
    assert steps["curate"].inputs == curated | held_out
    assert steps["pretrain"].inputs["train_data"] == [Output("curate", "documents.train")]
    assert steps["round-0.sft"].inputs["train_data"] == [Output("curate", "instructions.train")]
    assert steps["round-0.sft"].inputs["eval_data"] == [both("prepare_data", "instructions")[1]]
    assert steps["round-1.annotate"].inputs["prompts"] == [Output("curate", "prompts.train")]
    winners, human = both("round-2.rejection_sampling", "winners"), both("prepare_data", "instructions")
    assert steps["round-2.curate_sft"].inputs == {
        "instructions": [winners[0], Output("curate", "instructions.train")],
        "earlier_results": [Output("round-1.curate_sft", "results")],
        **held_out,
    }
    assert steps["round-2.sft"].inputs["train_data"] == [Output("round-2.curate_sft", "instructions.train")]
    assert steps["round-2.sft"].inputs["eval_data"] == [winners[1], human[1]]


def test_a_section_paraphrase_stands_between_the_prompts_and_what_answers_them(plan, tmp_path):
    (tmp_path / "work" / "words.txt").write_text("quick, fast\n")
    (tmp_path / "work" / "leaks.txt").write_text("Which animal barks?\n")
    named = f"paraphrase={{paraphrase_llm: {tmp_path / 'work' / 'base'}}}"
    held_out = [Output("prepare_data", name, optional=True) for name in ("evaluation_prompts", "prompts.validation")]
    steps = plan(named)
    assert list(steps)[:3] == ["prepare_data", "paraphrase", "prepare_base"]
    assert steps["paraphrase"].inputs == {
        "prompts": [Output("prepare_data", "prompts.train")],
        "held_out_prompts": held_out,
        "paraphrase_llm": [Model(str(tmp_path / "work" / "base"))],
    }
    for name in ("round-1.annotate", "round-2.rejection_sampling"):
        assert steps[name].inputs["prompts"] == [Output("paraphrase", "prompts.train")]
        assert steps[name].inputs["validation_prompts"] == [both("prepare_data", "prompts")[1]]
    assert steps["round-0.sft"].inputs["train_data"] == [Output("prepare_data", "instructions.train")]
    steps = plan(named, "curate={num_variants: 1, synonyms: [words.txt], decontaminate_against: [leaks.txt]}")
    assert steps["paraphrase"].inputs == {
        "prompts": [Output("curate", "prompts.train")],
        "held_out_prompts": held_out,
        "earlier_variants": [Output("curate", "variants", optional=True)],
        "decontaminate_against": [File(str(tmp_path / "work" / "leaks.txt"))],
        "paraphrase_llm": [Model(str(tmp_path / "work" / "base"))],
    }
    own = plan(named, "curate={decontaminate_against: [leaks.txt]}", "paraphrase.decontaminate_against=[words.txt]")
    assert own["paraphrase"].inputs["decontaminate_against"] == [File(str(tmp_path / "work" / "words.txt"))]


def test_prompts_that_no_step_answers_are_not_paraphrased(plan, tmp_path):
    named = f"paraphrase={{paraphrase_llm: {tmp_path / 'work' / 'base'}}}"
    assert "paraphrase" not in plan()
    assert "paraphrase" in plan(named) and "paraphrase" not in plan(named, "round_stages=[dpo]")


def test_without_a_section_nothing_is_curated(plan):
    assert not any(step.stage == "curate" for step in plan().values())
    assert "round-1.curate_sft" not in plan("curate={}")


def test_rows_are_embedded_by_the_base_unless_a_section_names_a_model(plan, tmp_path):
    steps = plan("curate={semantic_duplicates: 0.9}", "curate_sft={semantic_duplicates: 0.9}")
    base = Model(str(tmp_path / "work" / "base"))
    assert steps["curate"].inputs["embedding_model"] == [base]
    assert steps["round-1.curate_sft"].inputs["embedding_model"] == [BASE]
    named = plan(f"curate={{semantic_duplicates: 0.9, embedding_model: {base.path}}}")["curate"]
    assert named.inputs["embedding_model"] == [base]
    assert "embedding_model" not in plan("curate={}")["curate"].inputs


def test_tokens_are_counted_by_the_prepared_base_and_a_round_reads_the_results_of_the_one_before(plan, tmp_path):
    steps = plan("curate={mix_tokens: 100}", "curate_sft={mix_tokens: 100}")
    assert steps["curate"].inputs["tokenizer"] == steps["round-1.curate_sft"].inputs["tokenizer"] == [BASE]
    names = list(steps)
    assert names.index("prepare_base") < names.index("curate") < names.index("round-0.sft")
    assert "earlier_results" not in steps["round-1.curate_sft"].inputs
    assert steps["round-2.curate_sft"].inputs["earlier_results"] == [Output("round-1.curate_sft", "results")]
    keeps = {name: step.keys.get("keep_results") for name, step in steps.items() if step.section == "curate_sft"}
    assert keeps == {f"round-{number}.curate_sft": True for number in (1, 2)}
    base = Model(str(tmp_path / "work" / "base"))
    steps = plan("curate={mix_tokens: 100}", "pretrain={}", "data.documents=texts.txt")
    assert steps["curate"].inputs["tokenizer"] == [base]  # a pretrained one exists only after curation


@pytest.mark.parametrize("words", [[], ["curate={}", "curate_sft={}"], ["annotate={people: [ana]}"]])
def test_a_further_round_leaves_the_steps_of_earlier_rounds_as_they_were(plan, words):
    """So a finished run that is continued with more rounds takes over all that it has."""
    two, three = plan("rounds=2", *words), plan("rounds=3", *words)
    of_both = {name: (step.stage, step.keys, step.inputs) for name, step in three.items() if name in two}
    assert of_both == {name: (step.stage, step.keys, step.inputs) for name, step in two.items()}
    assert any(name.startswith("round-3.") for name in three)


def test_every_policy_is_evaluated_on_tasks_before_the_gate_compares_them(plan, tmp_path):
    (tmp_path / "work" / "math.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    steps = plan("evaluate_tasks={gsm8k: math.jsonl}", "evaluate_policy.gate_max_task_fall=0.05")
    order = list(steps)
    for number in range(3):
        name = f"round-{number}.evaluate_tasks"
        assert order.index(name) + 1 == order.index(f"round-{number}.evaluate_policy")
        policy = steps[f"round-{number}.evaluate_policy"].inputs["model_name_or_path"]
        assert steps[name].inputs["model_name_or_path"] == policy
        assert steps[name].inputs.get("first", []) == [EvaluationFolder("round-0.evaluate_tasks")] * bool(number)
        assert steps[name].inputs["gsm8k"] == [File(str(tmp_path / "work" / "math.jsonl"))]
        assert steps[name].keys["policy_step"] == policy[0].step
        tasks = [EvaluationFolder(f"round-{earlier}.evaluate_tasks") for earlier in range(number + 1)]
        assert steps[f"round-{number}.evaluate_policy"].inputs["tasks"] == tasks


def test_a_limit_for_tasks_needs_tasks(plan):
    with pytest.raises(ConfigError, match="gate_max_task_fall has no tasks to compare"):
        plan("evaluate_policy.gate_max_task_fall=0.05")


def test_people_who_compare_everything_annotate_round_one(plan):
    steps = plan("annotate={people: [ana, ben]}")
    for number in (1, 2):
        step = steps[f"round-{number}.annotate"]
        assert not {"annotator_models", "second_opinion"} & step.inputs.keys() and step.keys["people"] == ["ana", "ben"]


def test_people_after_a_model_get_the_reward_model_as_the_second_opinion(plan):
    steps = plan("annotate.people=[ana]", "annotate.people_budget=9")
    assert "second_opinion" not in steps["round-1.annotate"].inputs
    assert steps["round-2.annotate"].inputs["second_opinion"] == [Output("round-1.reward_model", "model")]
    steps = plan("annotate={people: [ana], people_budget: 9}")  # the reward model judges first
    assert "round-1.annotate" not in steps
    assert steps["round-2.annotate"].inputs["annotator_models"] == [Output("round-1.reward_model", "model")]
    assert "second_opinion" not in steps["round-2.annotate"].inputs
