"""From a stage's keys to its arguments: roles, defaults and the batch; the committed description is up to date."""

import dataclasses

import pytest

from data_schemas.errors import ConfigError
from data_schemas.stage_command_line import help_text
from data_schemas.stage_keys import KEYS_FILE, stages, with_defaults
from engine.runtime.arguments import resolve_batch
from engine.runtime.keys import RUNTIME_KEYS, fill


def test_runtime_keys_are_keys_of_trl():
    from trl import DPOConfig, ModelConfig, RewardConfig, SFTConfig

    known = {item.name for cls in (SFTConfig, RewardConfig, DPOConfig, ModelConfig) for item in dataclasses.fields(cls)}
    assert not RUNTIME_KEYS - known


def test_keys_that_change_the_result_are_identity_and_others_are_not():
    for stage in ("sft", "dpo", "reward_model", "pretrain"):
        keys = stages()[stage].keys
        for name in ("learning_rate", "global_batch_size", "seed", "bf16", "optim", "max_length", "use_peft"):
            assert keys[name].role == "identity", name
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "use_cpu", "report_to", "output_dir"):
            assert keys[name].role == "runtime", name
        assert keys["train_data"].role == "rows" and keys["model_name_or_path"].role == "model"
    assert stages()["annotate"].keys["annotator_function"].role == "function"


def test_the_description_is_that_of_the_stages():
    """If this fails, run `make keys`."""
    from commands.describe_keys import describe_all

    assert KEYS_FILE.read_text(encoding="utf-8") == describe_all()


def test_defaults_are_ours_where_we_have_one():
    dpo = with_defaults("dpo", {"beta": 0.3})
    assert dpo["beta"] == 0.3
    assert (dpo["loss_type"], dpo["loss_weights"]) == (["sigmoid", "sft"], [1.0, 0.2])
    assert dpo["eval_strategy"] == "steps"


@pytest.mark.parametrize(
    ("processes", "values", "micro", "accumulation"),
    [
        (1, {"global_batch_size": 8}, 8, 1),
        (1, {"global_batch_size": 32}, 8, 4),
        (2, {"global_batch_size": 12}, 6, 1),
        (2, {"global_batch_size": 8, "per_device_train_batch_size": 2}, 2, 2),
        (1, {}, 8, 4),
    ],
)
def test_accumulation_follows_from_the_global_batch(processes, values, micro, accumulation, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    made = resolve_batch(values, default_global=32)
    assert (made["per_device_train_batch_size"], made["gradient_accumulation_steps"]) == (micro, accumulation)


@pytest.mark.parametrize(
    ("processes", "values", "message"),
    [
        (3, {"global_batch_size": 8}, "global_batch_size=8 cannot be divided among 3 processes; try 9"),
        (
            1,
            {"global_batch_size": 8, "per_device_train_batch_size": 3},
            "global_batch_size=8 is not a multiple of per_device_train_batch_size x num_processes = 3 x 1; try 9",
        ),
        (1, {"global_batch_size": 0}, "global_batch_size=0 cannot be divided among 1 processes; try 1"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(processes, values, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(ConfigError) as error:
        resolve_batch(values, default_global=32)
    assert str(error.value) == message


def test_a_value_that_a_dataclass_of_trl_refuses_is_one_line():
    from trl import SFTConfig

    with pytest.raises(ConfigError) as error:
        fill((SFTConfig,), {"output_dir": "x", "use_cpu": True, "bf16": False, "optim": "no such optimizer"}, {})
    assert "no such optimizer" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("stage", sorted(stages()))
def test_help_names_an_example_and_our_own_keys_first(stage):
    text = help_text(stage, everything=False).splitlines()
    assert text[0] == f"stages/{stage}.py" and text[3].strip().endswith(stages()[stage].example)
    assert len(text) < 60
    own = next(number for number, line in enumerate(text) if line.startswith("  --"))
    assert text[own - 1] == "Keys of this stage:"
    if stage in ("sft", "dpo", "reward_model", "pretrain"):
        assert len(help_text(stage, everything=True).splitlines()) > 100
        rest = next(number for number, line in enumerate(text) if "keys of TRL and transformers" in line)
        assert own < rest < next(number for number, line in enumerate(text) if line.startswith("  --learning_rate "))
