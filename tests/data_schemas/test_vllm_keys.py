"""The key `vllm`: which values are refused without torch, and which part of it is identity."""

import pytest

from data_schemas.errors import ConfigError
from data_schemas.key_rules import check_values
from data_schemas.stage_command_line import parse_command_line
from data_schemas.stage_keys import stages

REFUSED = [
    ({}, "vllm.python is missing: the interpreter of vLLM's own environment, as in vllm: {python: /opt/vllm/bin/"),
    ({"pyton": "x"}, "vllm: unknown key 'pyton'; did you mean 'python'?"),
    ({"python": "p", "tensor_parallel_size": 0}, "vllm.tensor_parallel_size=0: expected a number 1 or more"),
    ({"python": "p", "data_parallel_size": 1.5}, "vllm.data_parallel_size=1.5 is a number, expected int"),
    ({"python": "p", "gpu_memory_utilization": 1.1}, "vllm.gpu_memory_utilization=1.1: expected a number above 0, at"),
    ({"python": "p", "max_model_len": "long"}, "vllm.max_model_len='long' is text, expected int"),
    ({"python": None}, "vllm.python=None is nothing, expected str"),
]


@pytest.mark.parametrize(("vllm", "message"), REFUSED)
def test_keys_that_vllm_does_not_support_are_refused_without_torch(vllm, message):
    values = {"engine": "vllm", "vllm": vllm, "judge_model": "m"}
    with pytest.raises(ConfigError) as error:
        check_values("evaluate_policy", values, where="here")
    assert str(error.value).startswith(f"here: {message}")


def test_vllm_may_be_named_where_another_engine_generates():
    check_values("evaluate_policy", {"judge_model": "m", "vllm": {"python": "p", "max_model_len": 9}}, where="here")
    with pytest.raises(ConfigError, match=r"here: vllm: unknown key 'x'"):
        check_values("evaluate_policy", {"judge_model": "m", "vllm": {"x": 1}}, where="here")


def test_a_stage_by_hand_gets_vllm_as_a_mapping():
    words = ["--engine", "vllm", "--vllm", "{python: /x/python, data_parallel_size: 2}"]
    vllm = {"python": "/x/python", "data_parallel_size": 2}
    assert parse_command_line("annotate", words) == {"engine": "vllm", "vllm": vllm}


def test_the_engine_is_identity_and_where_vllm_is_found_is_not():
    generating = {name for name, stage in stages().items() if "engine" in stage.keys}
    assert generating == {"paraphrase", "annotate", "rejection_sampling", "rl", "evaluate_policy", "evaluate_tasks"}
    for name in generating:
        keys = stages()[name].keys
        assert (keys["engine"].role, keys["engine"].default) == ("identity", "transformers")
        assert keys["vllm"].role == "runtime"
