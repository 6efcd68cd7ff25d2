"""What the planner needs torch or a tokenizer for: lengths of rows, parameters, and the memory of a training step.

    python commands/estimate.py < questions     # started by pipeline/planner/questions.py

Each line of stdin is a Question of data_schemas/cost_request.py; each answer is a line of stdout. Uses no GPU.
"""

import json
import logging
import os
import sys
import time
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from commands.check import load_tokenizer
from commands.memory_probe import measure
from commands.row_lengths import row_lengths
from data_schemas.check_request import ModelSource
from data_schemas.cost_request import ANSWER, ModelAnswer, Question
from engine.models.loading import read_config
from engine.runtime.process import use_all_cores

RATE_SIZE, RATE_REPEATS = 1024, 4  # of the matrix product by which the speed of a CPU is measured


def answer(question: Question) -> object:
    """The answer to one question, as JSON has it."""
    if "rows" in question:
        tokenizer, problem = _tokenizer(question)
        return {name: row_lengths(asked, tokenizer, problem) for name, asked in question["rows"].items()}
    if "model" in question:
        return model_answer(question["model"])
    if "probe" in question:
        return measure(question["probe"])
    return cpu_rate()


def _tokenizer(question: Question) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The run's tokenizer; None and the reason where it can't be read, as that of a hub name without network."""
    try:
        with Path(os.devnull).open("w") as nowhere:
            return load_tokenizer(question.get("tokenizer", {}), Console(file=nowhere)), ""
    except Exception as error:  # a library may refuse a tokenizer in any way
        return None, " ".join(str(error).split())[:300]


def model_answer(source: ModelSource) -> ModelAnswer:
    """The configuration and the number of parameters of a model, counted where weights take no memory."""
    try:
        config = config_of(source)
        with torch.device("meta"):
            count = AutoModelForCausalLM.from_config(config).num_parameters()
    except Exception as error:  # a library may refuse a configuration in any way
        return {"config": {}, "parameters": 0, "problem": " ".join(str(error).split())[:300]}
    return {"config": json.loads(config.to_json_string(use_diff=False)), "parameters": count, "problem": ""}


def config_of(source: ModelSource) -> PretrainedConfig:
    """The configuration of a folder or hub name, or that of an architecture."""
    if "path" in source:
        return read_config(source["path"], revision=source.get("revision", "main"))
    keys = dict(source.get("architecture", {}))
    return AutoConfig.for_model(str(keys.pop("model_type", "llama")), **keys)


def cpu_rate() -> float:
    """Floating point operations a second of a float32 matrix product on this CPU, the best of a few."""
    left, right = torch.randn(RATE_SIZE, RATE_SIZE), torch.randn(RATE_SIZE, RATE_SIZE)
    seconds: list[float] = []
    for _ in range(RATE_REPEATS):
        started = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - started)
    return 2 * RATE_SIZE**3 / min(seconds)


def main() -> int:
    transformers_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    use_all_cores()
    for line in sys.stdin:
        print(f"{ANSWER}{json.dumps(answer(json.loads(line)))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
