"""The keys inside the key `vllm` of a stage that generates."""

import os
from pathlib import Path

from data_schemas.errors import ConfigError
from data_schemas.limits import Limits
from data_schemas.stage_keys import Keys, StageKey, Values, check_value
from data_schemas.text import nearest

SHARE_BESIDE_TRAINING = 0.3  # of a GPU's memory, where vLLM samples beside the model in training; as in TRL
VLLM_KEYS = {
    "python": StageKey(type="str"),  # the interpreter of vLLM's environment
    "tensor_parallel_size": StageKey(type="int", limits=Limits(minimum=1)),  # GPUs that hold one copy of the model
    "data_parallel_size": StageKey(type="int", limits=Limits(minimum=1)),  # copies, for each process of the stage
    # Share of a device's memory; on a CPU of its RAM.
    "gpu_memory_utilization": StageKey(type="float", limits=Limits(above=0, maximum=1)),
    "max_model_len": StageKey(type="int", limits=Limits(minimum=1)),  # tokens of a prompt and its answer
}


def vllm_options(values: Values) -> Keys:
    """The keys inside `vllm`, typed, of a stage that generates. Raises ConfigError for the first that is invalid."""
    options: Keys = {}
    for name, value in (values.get("vllm") or {}).items():
        if name not in VLLM_KEYS:
            raise ConfigError(f"vllm: unknown key {name!r}{nearest(str(name), list(VLLM_KEYS))}")
        options[name] = check_value(value, VLLM_KEYS[name], where=f"vllm.{name}")
    if values.get("engine") == "vllm" and not options.get("python"):
        raise ConfigError(
            "vllm.python is missing: the interpreter of vLLM's own environment, as in "
            "vllm: {python: /opt/vllm/bin/python}"
        )
    return options


def check_interpreter(python: str) -> None:
    """Raises ConfigError where vLLM's interpreter is not a program on this machine."""
    if not (Path(python).is_file() and os.access(python, os.X_OK)):
        raise ConfigError(
            f"vllm.python={python!r} is not a program on this machine: give the interpreter of the environment "
            "in which vLLM is installed, as in /opt/vllm/bin/python"
        )
