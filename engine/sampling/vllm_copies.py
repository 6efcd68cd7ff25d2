"""The vLLMs of this process: their settings and devices, and the requests that are divided among them."""

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from data_schemas.errors import ConfigError
from data_schemas.stage_keys import Keys, Values
from engine.runtime import progress, world
from engine.sampling.answers import GeneratedAnswer, SamplingSettings
from engine.sampling.batching import EncodedRequest
from engine.sampling.vllm_process import VLLM, environment

SHARE_OF_RAM = 0.4  # on a CPU, for all copies together; vLLM's own default leaves no memory for anything else
Item = TypeVar("Item")


class Copies:
    """The vLLMs of this process, each with a copy of the model, and the time that they took."""

    def __init__(
        self,
        vllms: Sequence[VLLM],
        settings: SamplingSettings,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: set[int],
        *,
        gives_log_probs: bool = False,
    ) -> None:
        """`gives_log_probs`: answers have the log-probs of their tokens, at the temperature and nucleus of sampling."""
        self.vllms, self.settings, self.tokenizer, self.end_ids = vllms, settings, tokenizer, end_ids
        self.gives_log_probs = gives_log_probs
        self.num_tokens, self.seconds = 0, 0.0

    def generate(self, group: Sequence[EncodedRequest], *, seed: str | None = None) -> list[GeneratedAnswer]:
        """The group's answers, in order; its requests are divided among the copies. `seed` replaces the settings'."""
        seed = self.settings.seed if seed is None else seed
        wanted = [
            {
                "prompt": one.ids,
                "temperature": self.settings.temperature_of(one.request),
                "seed": seed_of(seed, one.prompt_id, one.request.k),
            }
            for one in group
        ]
        common = {
            "top_p": self.settings.top_p,
            "max_tokens": self.settings.max_new_tokens,
            "stop": sorted(self.end_ids),
            "log_probs": self.gives_log_probs,
        }
        parts = list(zip(self.vllms, _split(wanted, len(self.vllms)), strict=True))
        with progress.activity("starting vLLM") if not self.seconds else contextlib.nullcontext():
            for vllm in self.vllms:  # all copies load at the same time
                vllm.start()
            for vllm, part in parts:
                vllm.submit({**common, "answers": part})
        started = time.monotonic()
        answers = [answer for vllm, _ in parts for answer in vllm.results()]
        self.seconds += time.monotonic() - started
        self.num_tokens += sum(len(ids) for ids, _ in answers)
        return [self._to_answer(*answer) for _, answer in zip(group, answers, strict=True)]

    def load_weights(self, folder: str) -> None:
        """Loads the weights of another model of the same architecture into all copies."""
        for vllm in self.vllms:
            vllm.load_weights(folder)

    def close(self) -> None:
        for vllm in self.vllms:
            vllm.close()

    def _to_answer(self, ids: list[int], log_probs: list[float] | None) -> GeneratedAnswer:
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        answer: GeneratedAnswer = {"text": text, "ids": ids, "ended": ids[-1] in self.end_ids}
        return answer if log_probs is None else {**answer, "log_probs": log_probs}


def vllms_for(
    python: str, options: Values, load_settings: Values, log_folder: Path, *, use_cpu: bool, may_leave: bool = True
) -> list[VLLM]:
    """The vLLMs of this process, not started yet; `load_settings` are the arguments of LLM that all of them have.

    `may_leave`: SIGTERM ends the process while a model loads. Raises ConfigError where there are too few GPUs.
    """
    return [
        VLLM(python, {**load_settings, **own}, environment(python) | env, log_folder / log_file, may_leave=may_leave)
        for own, env, log_file in copy_settings(options, str(load_settings["model"]), use_cpu=use_cpu)
    ]


def seed_of(seed: str, prompt_id: str, k: int) -> int:
    """The seed of one answer, below 2^62."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}/{k}".encode()).digest()[:8], "big") >> 2


def _split(items: Sequence[Item], count: int) -> list[Sequence[Item]]:
    """`count` parts of similar size, in order."""
    return [items[part * len(items) // count : (part + 1) * len(items) // count] for part in range(count)]


def copy_settings(options: Values, path: str, *, use_cpu: bool) -> list[tuple[Keys, dict[str, str], str]]:
    """For each vLLM of this process: its own arguments of LLM, its own environment variables, the name of its log.

    Raises ConfigError where the processes on this machine need more GPUs than are available.
    """
    processes = world.num_local_processes()
    shards, copies = options.get("tensor_parallel_size", 1), options.get("data_parallel_size", 1)
    needed, gpus = processes * copies * shards, [] if use_cpu else _gpus()
    if gpus and needed > len(gpus):
        raise ConfigError(
            f"vllm needs {processes} processes x data_parallel_size {copies} x tensor_parallel_size "
            f"{shards} = {needed} GPUs, {len(gpus)} are available; lower one of them"
        )
    found: list[tuple[Keys, dict[str, str], str]] = []
    for copy in range(copies):
        first = (world.local_rank() * copies + copy) * shards
        own: Keys = {"tensor_parallel_size": shards}
        env = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + shards])}
        if not gpus:
            env |= _cpu_environment([_cores(part, needed) for part in range(first, first + shards)])
        share = options.get("gpu_memory_utilization", None if gpus else SHARE_OF_RAM / needed)
        if share is not None:
            own["gpu_memory_utilization"] = share
        if Path(path).is_dir():
            env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        number = world.rank() * copies + copy
        found.append((own, env, f"vllm-{number}.log" if number else "vllm.log"))
    return found


def _cpu_environment(cores: Sequence[Sequence[int]]) -> Mapping[str, str]:
    """Variables of a vLLM on a CPU, of which each shard has one list of cores."""
    bound = "|".join(",".join(map(str, shard)) for shard in cores)
    return {
        # On a CPU vLLM 0.32 cannot load what it compiled ahead of time, and compiles again at each start; what inductor
        # caches it can load.
        "VLLM_USE_AOT_COMPILE": os.environ.get("VLLM_USE_AOT_COMPILE", "0"),
        # The first is read by a copy in one process, the second by shards, each of which has its own process.
        "OMP_NUM_THREADS": str(len(cores[0])),
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND") or bound,
    }


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [name for name in visible.split(",") if name.strip() and name != "-1"]


def _cores(part: int, parts: int) -> list[int]:
    """One of `parts` equal parts of this process's cores; one core at least."""
    cores = world.available_cores()
    return cores[part * len(cores) // parts : (part + 1) * len(cores) // parts] or [cores[part % len(cores)]]
