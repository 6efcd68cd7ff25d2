"""The stages' keys: which type a value gets, and which values and command lines are refused."""

import pytest

from data_schemas.errors import ConfigError
from data_schemas.stage_command_line import parse_command_line
from data_schemas.stage_keys import REPLACED_KEYS, check_keys, check_required, stages


@pytest.mark.parametrize(
    ("stage", "name", "value", "typed"),
    [
        ("sft", "learning_rate", "1e-5", 1e-5),  # in YAML 1e-5 is text
        ("sft", "learning_rate", 1, 1.0),
        ("sft", "max_length", "512", 512),
        ("sft", "max_length", None, None),
        ("sft", "max_length", "null", None),
        ("sft", "packing", "true", True),
        ("sft", "packing", "False", False),
        ("sft", "train_data_shares", ["1", 0.5], [1.0, 0.5]),
        ("sft", "train_data", ["a.jsonl", "b.jsonl"], ["a.jsonl", "b.jsonl"]),
        ("dpo", "loss_weights", [1, "0.2"], [1.0, 0.2]),
        ("pretrain", "architecture", "{hidden_size: 32}", {"hidden_size": 32}),
        ("annotate", "strength_margins", [3, 2, 1], [3.0, 2.0, 1.0]),
        ("prepare_base", "chat_template", "chatml", "chatml"),
        ("sft", "eval_steps", "0.1", 0.1),
    ],
)
def test_a_value_gets_its_keys_type(stage, name, value, typed):
    made = check_keys(stage, {name: value}, where="here")[name]
    assert made == typed and type(made) is type(typed)


@pytest.mark.parametrize(
    ("stage", "values", "message"),
    [
        ("sft", {"max_length": 2.5}, "here: max_length=2.5 is a number, expected nothing (null) | int"),
        ("sft", {"max_length": True}, "here: max_length=True is a boolean, expected nothing (null) | int"),
        ("sft", {"seed": [3]}, "here: seed=[3] is a list, expected int"),
        ("sft", {"seed": None}, "here: seed=None is nothing, expected int"),
        ("sft", {"packing": "yes please"}, "here: packing='yes please' is text, expected bool"),
        ("sft", {"learning_rate": "fast"}, "here: learning_rate='fast' is text, expected float"),
        ("sft", {"train_data": "one.jsonl"}, "here: train_data='one.jsonl' is text, expected list[str]"),
        (
            "sft",
            {"train_data_shares": [0.5, "half"]},
            "here: train_data_shares=[0.5, 'half'] is a list, and its item 2, 'half', is text, expected nothing",
        ),
        (
            "sft",
            {"on_bad_row": "setaside"},
            "here: on_bad_row='setaside' is not one of error, set_aside; did you mean 'set_aside'?",
        ),
        ("dpo", {"betta": 0.1}, "here: unknown key 'betta' of stage dpo; did you mean 'beta'?"),
        ("sft", {"beta": 0.1}, "here: unknown key 'beta' of stage sft"),
        (
            "sft",
            {"judge_share": 0.1},
            "here: unknown key 'judge_share' of stage sft; it is a key of the section data (of the stage prepare_data)",
        ),
        (
            "sft",
            {"per_device_train": 3},
            "here: unknown key 'per_device_train' of stage sft; did you mean 'per_device_train_batch_size'?",
        ),
    ],
)
def test_a_wrong_value_is_one_line_with_key_value_and_hint(stage, values, message):
    with pytest.raises(ConfigError) as error:
        check_keys(stage, values, where="here")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_command_line_wins_over_the_file_wherever_it_stands(tmp_path):
    (tmp_path / "sft.yaml").write_text("learning_rate: 1e-5\nseed: 3\ntrain_data: [a.jsonl]\n")
    config = ["--config", str(tmp_path / "sft.yaml")]
    for words in (["--seed", "4", *config], [*config, "--seed", "4"]):
        assert parse_command_line("sft", words) == {"learning_rate": 1e-5, "seed": 4, "train_data": ["a.jsonl"]}


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--learning_rate=1e-5"], {"learning_rate": 1e-5}),
        (["--train_data", "a.jsonl", "b.jsonl", "--seed", "1"], {"train_data": ["a.jsonl", "b.jsonl"], "seed": 1}),
        (["--train_data", "[a.jsonl, b.jsonl]"], {"train_data": ["a.jsonl", "b.jsonl"]}),
        (["--train_data", "a.jsonl"], {"train_data": ["a.jsonl"]}),
        (["--use_cpu"], {"use_cpu": True}),
        (["--no_packing"], {"packing": False}),
        (["--packing", "false"], {"packing": False}),
        (["--report_to", "none"], {"report_to": None}),
        (["--report_to", "wandb"], {"report_to": "wandb"}),
        (["--report_to", "wandb", "none"], {"report_to": ["wandb", "none"]}),
        (["--architecture", "{hidden_size: 8}"], {"architecture": {"hidden_size": 8}}),
        (["--max_steps", "-1"], {"max_steps": -1}),
    ],
)
def test_command_line_arguments_are_parsed(words, values):
    assert parse_command_line("pretrain", words) == values


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--per_device_train", "3"], "sft: unknown key 'per_device_train' of stage sft; did you mean"),
        (["--seed", "1", "2"], "--seed takes one value, got 2: 1 2"),
        (["--seed"], "sft: seed=True is a boolean, expected int"),
        (["seed", "1"], "'seed': expected --key value"),
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["--config"], "--config takes one file"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, message):
    with pytest.raises(ConfigError) as error:
        parse_command_line("sft", words)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_config_that_is_no_mapping_or_no_yaml_is_refused(tmp_path):
    path = tmp_path / "sft.yaml"
    for content, message in (
        ("- seed\n", f"{path} holds a list, expected `key: value` lines"),
        ("seed: [1\nlearning_rate: 2\n", f"{path}:2:14 is not YAML"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError) as error:
            parse_command_line("sft", ["--config", str(path)])
        assert str(error.value).startswith(message)


def test_a_missing_required_key_is_named_with_what_it_is():
    with pytest.raises(ConfigError, match=r"^sft: train_data is missing \(files or folders of training rows\)$"):
        check_required("sft", {"model_name_or_path": "base"}, where="sft")


@pytest.mark.parametrize("name", sorted(REPLACED_KEYS))
def test_a_replaced_key_is_refused_with_a_hint(name):
    stage = next(stage for stage, described in stages().items() if name in described.keys)
    kind = stages()[stage].keys[name].type
    value = True if "bool" in kind else 4 if "int" in kind else "text"
    with pytest.raises(ConfigError, match=f"{name} is not a key here: "):
        check_keys(stage, {name: value}, where="here")


def test_a_list_that_is_not_yaml_is_one_line():
    with pytest.raises(ConfigError, match=r"--train_data \[a: not YAML, as in"):
        parse_command_line("sft", ["--train_data", "[a"])
