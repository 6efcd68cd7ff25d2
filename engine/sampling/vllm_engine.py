"""Sampling by vLLM: our tokens go in, its tokens come out, and rows of the same schema are made of them.

Every answer has a seed of its own, from (seed, prompt id, k). `generation_batch_size` answers are a group: vLLM forms
its batches within it alone and forgets its prefixes before the next, so an attempt that goes on from the last finished
group finds the same answers, bit by bit on the same devices. Groups are divided among our processes, each of which
has vLLMs of its own; number and size of these change rounding at most, as another kind of device does.
"""

import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from data_schemas.errors import ConfigError
from data_schemas.key_rules import check_interpreter, vllm_options
from engine.models.loading import identity_of, read_config
from engine.runtime import world
from engine.runtime.arguments import GenerationArguments
from engine.runtime.journal import in_batches
from engine.runtime.process import trusts_code
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer, SampleRequest, ends_of
from engine.sampling.vllm_process import VLLM, environment, version_of
from engine.tokens.template import encode_prompt

TRIED = ("0.32.0",)  # versions of vLLM
SHARE_OF_RAM = 0.4  # on a CPU, for all copies together; vLLM's own default leaves no room for anything else
log = logging.getLogger(__name__)


def sample_by_vllm(
    stage: Stage,
    name: str,
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    asks: Sequence[SampleRequest],
    arguments: GenerationArguments,
    *,
    purpose: str,
) -> list[Answer]:
    """One answer for each ask, in order, from the model in `path`. As engine.generation.sample, by other means."""
    options = vllm_options({"vllm": arguments.vllm})
    python = os.path.abspath(os.path.expanduser(options["python"]))  # noqa: PTH100, PTH111 (a link is not followed)
    check_interpreter(python)
    version = version_of(python)
    log.info("vLLM %s of %s", version, python)
    if version.partition("+")[0] not in TRIED:
        log.warning("vLLM %s is not a version that was tried here (%s)", version, ", ".join(TRIED))

    config = read_config(path)
    encoded = {
        ask.prompt.prompt_id: encode_prompt(tokenizer, ask.prompt.prompt, tools=ask.prompt.tools) for ask in asks
    }
    longest = max(map(len, encoded.values()), default=0)
    settings = {
        "model": path,
        "skip_tokenizer_init": True,
        "dtype": _dtype(arguments.dtype, config),
        "max_model_len": _num_positions(longest, arguments.max_new_tokens, config, options.get("max_model_len")),
        "enable_prefix_caching": True,
        "load_format": "safetensors",  # other formats are pickled: opening them runs what is written there
        "generation_config": "vllm",  # nothing from the model's own
        "trust_remote_code": trusts_code(),
    }
    end_ids = ends_of(_generation_config(path, config), tokenizer)
    seed = f"{arguments.seed}/{purpose}"
    vllms = [
        VLLM(python, settings | own, environment(python) | of_machine, stage.folder / file)
        for own, of_machine, file in _copies(options, path, use_cpu=arguments.use_cpu)
    ]
    num_tokens, seconds = 0, 0.0

    def generate(group: Sequence[SampleRequest]) -> list[dict[str, Any]]:
        nonlocal num_tokens, seconds
        wanted = [
            {
                "prompt": encoded[ask.prompt.prompt_id],
                "temperature": arguments.temperature if ask.temperature is None else ask.temperature,
                "seed": seed_of(seed, ask.prompt.prompt_id, ask.k),
            }
            for ask in group
        ]
        common = {"top_p": arguments.top_p, "max_tokens": arguments.max_new_tokens, "stop": sorted(end_ids)}
        for vllm in vllms:  # they load side by side
            vllm.start()
        parts = list(zip(vllms, _parts(wanted, len(vllms)), strict=True))
        for vllm, part in parts:
            vllm.ask(common | {"answers": part})
        started = time.monotonic()
        rows = [row for vllm, _ in parts for row in vllm.answer()]
        seconds += time.monotonic() - started
        num_tokens += sum(map(len, rows))
        return [
            {"text": tokenizer.decode(ids, skip_special_tokens=True), "ids": ids, "ended": ids[-1] in end_ids}
            for _, ids in zip(group, rows, strict=True)
        ]

    # The answers to a prompt side by side, for its cache; the order is part of the step's identity.
    order = sorted(
        range(len(asks)), key=lambda i: (len(encoded[asks[i].prompt.prompt_id]), asks[i].prompt.prompt_id, asks[i].k)
    )
    ordered = [asks[i] for i in order]
    rows = [(encoded[ask.prompt.prompt_id], ask.prompt.prompt_id, ask.k, ask.temperature) for ask in ordered]
    sampling = (arguments.dtype, seed, arguments.temperature, arguments.top_p, arguments.max_new_tokens)
    content = ("vllm", version, identity_of(path), sampling, sorted(end_ids), *rows)
    try:
        results = in_batches(stage, name, ordered, generate, size=arguments.generation_batch_size, content=content)
    finally:
        for vllm in vllms:
            vllm.close()
    if seconds:
        log.info("%s: %d tokens in %.1f s, %.0f a second", name, num_tokens, seconds, num_tokens / seconds)
    answers: list[Answer | None] = [None] * len(asks)
    for position, result in zip(order, results, strict=True):
        answers[position] = Answer(**result)
    return [answer for answer in answers if answer is not None]


def seed_of(seed: str, prompt_id: str, k: int) -> int:
    """Of one answer, below 2^62."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}/{k}".encode()).digest()[:8], "big") >> 2


def _parts(items: list[Any], number: int) -> list[list[Any]]:
    """So many parts of like size, in order."""
    return [items[part * len(items) // number : (part + 1) * len(items) // number] for part in range(number)]


def _dtype(name: str, config: Any) -> str:
    """auto is the precision that the model was saved in; vLLM's own auto makes float32 a shorter one."""
    saved = str(getattr(config, "dtype", None) or "auto").removeprefix("torch.")
    return saved if name == "auto" else name


def _num_positions(longest: int, max_new_tokens: int, config: Any, given: int | None) -> int | None:
    """Tokens that vLLM makes room for; None leaves it to vLLM. Raises ConfigError where fewer are given than needed."""
    limit, needed = getattr(config, "max_position_embeddings", None), longest + max_new_tokens
    if given is not None and given < needed:  # how a step is run must not cut its answers
        raise ConfigError(
            f"vllm.max_model_len={given} is too little for prompts of up to {longest} tokens + "
            f"max_new_tokens={max_new_tokens}; try {needed}, or leave it out"
        )
    if limit and needed > limit:
        log.warning(
            "prompts of up to %d tokens + max_new_tokens=%d pass the model's %d positions",
            longest,
            max_new_tokens,
            limit,
        )
        return given
    return given or needed


def _generation_config(path: str, config: Any) -> GenerationConfig:
    """As a loaded model has it."""
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:
        return GenerationConfig.from_model_config(config)


def _copies(
    options: Mapping[str, Any], path: str, *, use_cpu: bool
) -> list[tuple[dict[str, Any], dict[str, str], str]]:
    """Of each vLLM of this process: its settings, its environment, the name of its log.

    Raises ConfigError where the processes on this machine need more GPUs than there are.
    """
    processes = world.num_local_processes()
    shards, copies = options.get("tensor_parallel_size", 1), options.get("data_parallel_size", 1)
    needed, gpus = processes * copies * shards, [] if use_cpu else _gpus()
    if gpus and needed > len(gpus):
        raise ConfigError(
            f"vllm needs {processes} processes x data_parallel_size {copies} x tensor_parallel_size "
            f"{shards} = {needed} GPUs, there are {len(gpus)}"
        )
    made = []
    for copy in range(copies):
        first = (world.local_rank() * copies + copy) * shards
        own: dict[str, Any] = {"tensor_parallel_size": shards}
        env = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + shards])}
        if not gpus:
            cores = [_cores(part, needed) for part in range(first, first + shards)]
            # On a CPU vLLM 0.32 can't load what it compiled ahead, and compiles anew; what inductor keeps it can.
            env["VLLM_USE_AOT_COMPILE"] = os.environ.get("VLLM_USE_AOT_COMPILE", "0")
            # The first is for a copy in one process, the second for shards, each of which has a process of its own.
            env["OMP_NUM_THREADS"] = str(len(cores[0]))
            env["VLLM_CPU_OMP_THREADS_BIND"] = os.environ.get("VLLM_CPU_OMP_THREADS_BIND") or "|".join(
                ",".join(map(str, own)) for own in cores
            )
        share = options.get("gpu_memory_utilization", None if gpus else SHARE_OF_RAM / needed)
        own |= {} if share is None else {"gpu_memory_utilization": share}
        if Path(path).is_dir():
            env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        number = world.rank() * copies + copy
        made.append((own, env, f"vllm-{number}.log" if number else "vllm.log"))
    return made


def _gpus() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [name for name in listed.split(",") if name.strip() and name != "-1"]


def _cores(part: int, parts: int) -> list[int]:
    """The cores of one of so many parts of this process's; one at least."""
    cores = world.available_cores()
    return cores[part * len(cores) // parts : (part + 1) * len(cores) // parts] or [cores[part % len(cores)]]
