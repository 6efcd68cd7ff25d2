"""Values that no type refuses, and incompatible values: each is an error of one line, before anything runs."""

import pytest

from data_schemas.errors import ConfigError
from data_schemas.key_rules import RULES, check_batch, check_values
from data_schemas.limits import Limits
from data_schemas.stage_keys import check_keys, stages

HERE = "recipe.yaml: section"
ANNOTATE = {"policies": ["p"], "annotator_function": "a:b"}
SAMPLING = {"policies": ["p"], "reward_model": "r"}
AVERAGE = {"models": ["a", "b"], "averaged_stage": "sft", "eval_data": ["e.jsonl"]}
SLERP = AVERAGE | {"method": "slerp"}
REFUSED = [
    (
        "average_models",
        AVERAGE | {"weights": "unifrom"},
        "weights='unifrom' is not one of uniform, greedy, or a list of numbers",
    ),
    ("average_models", AVERAGE | {"weights": [0.5]}, "1 weights for 2 models; give one for each"),
    (
        "average_models",
        AVERAGE | {"weights": [0.0, 0.0]},
        "weights=[0.0, 0.0]: expected at least one above 0",
    ),
    (
        "average_models",
        AVERAGE | {"weights": [2.0, -1.0]},
        "weights=[2.0, -1.0]: expected numbers 0 or more",
    ),
    (
        "average_models",
        SLERP | {"weights": [0.5, 0.5]},
        "method=slerp takes two models and no weights; set fraction, or method: linear",
    ),
    (
        "average_models",
        SLERP | {"models": ["a", "b", "c"]},
        "method=slerp takes two models and no weights; set fraction, or method: linear",
    ),
    ("average_models", SLERP | {"fraction": 1.5}, "fraction=1.5: expected a number 0 or more, at most 1"),
    ("average_models", AVERAGE | {"fraction": 0.3}, "fraction is for method: slerp; a mean takes weights"),
    (
        "average_models",
        AVERAGE | {"averaged_stage": "dpo"},
        "reference_model is missing: the loss of dpo is measured against the parts' reference",
    ),
    (
        "average_models",
        AVERAGE | {"eval_data": None},
        "eval_data is missing: the held-out rows that the average and its parts are measured on",
    ),
    (
        "average_models",
        AVERAGE | {"stage_keys": {"eval_data": ["x"]}},
        "stage_keys.eval_data is a key of average_models itself",
    ),
    ("average_models", AVERAGE | {"part_names": ["one"]}, "1 part_names for 2 models; give one for each"),
    ("annotate", {"policies": ["p"]}, "annotator_function, annotator_models or annotator_llm is missing"),
    (
        "annotate",
        ANNOTATE | {"annotator_models": ["m"]},
        "annotator_function and annotator_models are both given; set one of them to null",
    ),
    ("annotate", ANNOTATE | {"num_answers": 1}, "num_answers=1 is too few to compare answers of 1 policies; try 2"),
    (
        "annotate",
        ANNOTATE | {"policies": ["p", "q", "r"]},
        "num_answers=2 is too few to compare answers of 3 policies; try 3",
    ),
    (
        "annotate",
        ANNOTATE | {"strength_margins": [0.5, 1.0, 0.2]},
        "strength_margins=[0.5, 1.0, 0.2]: expected three falling score differences",
    ),
    (
        "annotate",
        ANNOTATE | {"strength_margins": [0.5]},
        "strength_margins=[0.5]: expected three falling score differences",
    ),
    (
        "annotate",
        ANNOTATE | {"keep_rankings": True, "rejected": "random"},
        "keep_rankings: true keeps all answers in order; it does not support rejected: random",
    ),
    ("annotate", ANNOTATE | {"top_p": 1.5}, "top_p=1.5: expected a number above 0, at most 1"),
    ("annotate", ANNOTATE | {"temperature": -0.1}, "temperature=-0.1: expected a number 0 or more"),
    (
        "rejection_sampling",
        SAMPLING | {"num_answers": 1},
        "num_answers=1 is too few to choose the best answer among them; try 2",
    ),
    (
        "rejection_sampling",
        SAMPLING | {"keep_by": "min_score"},
        "min_score and keep_by: min_score need each other; set both or neither",
    ),
    (
        "rejection_sampling",
        SAMPLING | {"min_score": 1.0},
        "min_score and keep_by: min_score need each other; set both or neither",
    ),
    (
        "rejection_sampling",
        SAMPLING | {"temperature_range": [1.0, 0.5]},
        "temperature_range=[1.0, 0.5]: expected [lowest, highest]",
    ),
    (
        "rejection_sampling",
        SAMPLING | {"temperature_range": [1.0]},
        "temperature_range=[1.0]: expected [lowest, highest]",
    ),
    (
        "evaluate_policy",
        {"previous": ["e"]},
        "previous is given without a judge; expected judge_function, judge_model or judge_llm, which compares the "
        "policies; without one, only sample answers are written: leave it out",
    ),
    (
        "evaluate_policy",
        {"judge_function": "a:b", "judge_model": "m"},
        "judge_function and judge_model are both given; set one of them to null",
    ),
    (
        "dpo",
        {"loss_type": ["sigmoid"], "loss_weights": [1.0, 0.2]},
        "2 loss_weights for 1 of loss_type; give one for each",
    ),
    ("dpo", {"beta": 0.0}, "beta=0.0: expected a number above 0"),
    ("sft", {"learning_rate": -1.0}, "learning_rate=-1.0: expected a number above 0"),
]


@pytest.mark.parametrize(("stage", "values", "message"), REFUSED)
def test_impossible_values_are_refused_in_one_line(stage, values, message):
    with pytest.raises(ConfigError) as caught:
        check_values(stage, check_keys(stage, values, where=HERE), where=HERE)
    assert str(caught.value) == f"{HERE}: {message}"


def test_defaults_and_values_at_the_limits_are_accepted():
    for stage in stages():
        given = {
            "average_models": AVERAGE,
            "annotate": ANNOTATE,
            "rejection_sampling": SAMPLING,
            "evaluate_policy": {"judge_model": "m"},
            "evaluate_tasks": {"gsm8k": ["problems.jsonl"]},
            "rl": {"reward_model": "m"},
            "paraphrase": {"paraphrase_llm": "m"},
        }
        check_values(stage, given.get(stage, {}), where=stage)
    for values, past in (
        ({"top_p": 1.0}, {"top_p": 1.01}),
        ({"temperature": 0.0}, {"temperature": -0.01}),
        ({"num_prompts": 1}, {"num_prompts": 0}),
    ):
        check_keys("annotate", values, where="")
        with pytest.raises(ConfigError, match="expected a number"):
            check_keys("annotate", past, where="")
    check_values("rejection_sampling", SAMPLING | {"temperature_range": [0.7, 0.7]}, where="")


def test_every_rule_is_for_a_stage():
    assert set(RULES) <= set(stages())


@pytest.mark.parametrize(
    ("limits", "words", "allowed", "refused"),
    [
        (Limits(above=0, maximum=1), "above 0, at most 1", [0.1, 1], [0, 1.1, float("nan")]),
        (Limits(minimum=2), "2 or more", [2, 2.5, 10**30], [1.99, float("inf")]),
        (Limits(minimum=0, below=1), "0 or more, below 1", [0, 0.999], [1, -0.1]),
        (Limits(minimum=1, also=(-1,)), "1 or more, or -1", [1, -1], [0, -2]),
        (Limits(above=0, whole_from_1=True), "above 0, whole from 1 on", [0.5, 1, 3.0], [0, 1.5]),
    ],
)
def test_limits_hold_and_are_said_in_words(limits, words, allowed, refused):
    assert str(limits) == words
    assert all(limits.holds(value) for value in allowed)
    assert not any(limits.holds(value) for value in refused)


@pytest.mark.parametrize(
    ("rows", "micro_batch", "processes", "advice"),
    [(30, 4, 1, 32), (29, 4, 1, 28), (31, 4, 1, 32), (2, 4, 1, 4), (8, None, 3, 9), (7, None, 3, 6), (20, 2, 6, 24)],
)
def test_the_nearest_batch_that_can_be_divided_is_advised(rows, micro_batch, processes, advice):
    with pytest.raises(ConfigError, match=rf"^global_batch_size={rows} .*; try {advice}$"):
        check_batch(rows, micro_batch, processes=processes)
    check_batch(advice, micro_batch, processes=processes)
