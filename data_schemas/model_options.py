"""The options of the commands that take a model: keys of the stages, with the same types, limits and help.

pipeline/cli/models.py offers them, and the programs in commands/ take them; both check the values here.
"""

from collections.abc import Mapping
from typing import Any

from data_schemas.stage_keys import Keys, StageKey, check_value, stages
from data_schemas.vllm_keys import vllm_options

STAGE = "evaluate_policy"  # whose keys they are: it samples answers, and scores them with a model
LOADING = ("use_cpu", "trust_remote_code")
SAMPLING = ("temperature", "top_p", "max_new_tokens", "seed")
BATCHES = ("generation_batch_size", "dtype")
OPTIONS = {
    "generate": ("num_answers", *SAMPLING, "engine", "vllm", *BATCHES, *LOADING),
    "score": (*BATCHES, *LOADING),
    "rewardbench": (*BATCHES, *LOADING),
    "chat": (*SAMPLING, "dtype", *LOADING),
    "assess": (*SAMPLING, "engine", "vllm", *BATCHES, *LOADING),
}
OTHER_HELP = {
    "vllm": "how vLLM is started, as in '{python: /opt/vllm/bin/python}'",
    "num_answers": "answers to each prompt",
    "seed": "seed of the sampling",
    "engine": "what generates",
    "generation_batch_size": "answers generated or scored at a time; another size changes rounding at most",
}
OTHER_DEFAULTS = {
    "generate": {"num_answers": 1},
    "chat": {"temperature": 0.7, "seed": 0},
    "assess": {"temperature": 0.0},
}


def key_of(name: str) -> StageKey:
    """The stage's key that an option is."""
    return stages()[STAGE].keys[name]


def help_of(name: str) -> str:
    """What an option does, as a sentence."""
    text = OTHER_HELP.get(name, key_of(name).help)
    choices = f": {', '.join(choices)}" if (choices := key_of(name).choices) else ""
    return f"{text[0].upper()}{text[1:]}{choices}."


def default_of(command: str, name: str) -> Any:
    """An option's value where it is left out."""
    return OTHER_DEFAULTS.get(command, {}).get(name, key_of(name).default)


def checked(command: str, given: Mapping[str, object]) -> Keys:
    """A command's options with their types, those that are left out or None with their defaults.

    Raises ConfigError for a value that the key does not allow.
    """
    options: Keys = {}
    for name in OPTIONS[command]:
        value = given.get(name)
        is_given = value is not None
        options[name] = check_value(value, key_of(name), where=f"--{name}") if is_given else default_of(command, name)
    vllm_options(options)
    return options
