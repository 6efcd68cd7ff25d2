"""Samples answers by vLLM, which gets our tokens and returns tokens; rows have the same form as with other engines.

Every answer has its own seed, from (seed, prompt id, k). `batch_size` answers are a group: vLLM batches only within the
group and clears its prefix cache before the next, so an attempt that resumes after the last finished group has the same
answers, bit by bit on the same devices. Groups are divided among our processes, each of which has its own vLLMs; their
number and size change rounding at most, as another kind of device does.
"""

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from data_schemas.errors import ConfigError
from data_schemas.stage_keys import Keys, Values
from data_schemas.vllm_keys import check_interpreter, vllm_options
from engine.models.loading import identity_of, read_config
from engine.models.merging import plain_folder
from engine.models.policy_tokenizer import load_policy_tokenizer
from engine.runtime import notices, progress, world
from engine.runtime.journal import in_batches
from engine.runtime.process import trusts_code
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer, GeneratedAnswer, Policy, SampleRequest, SamplingSettings, end_tokens_of
from engine.sampling.batching import (
    EncodedRequest,
    answer_in_length_order,
    check_context,
    encode_requests,
    longest_prompt,
)
from engine.sampling.vllm_process import VLLM, environment, version_of

TESTED_VERSIONS = ("0.32.0",)  # of vLLM
SHARE_OF_RAM = 0.4  # on a CPU, for all copies together; vLLM's own default leaves no memory for anything else
log = logging.getLogger(__name__)
Item = TypeVar("Item")


class VLLMEngine:
    """Samples from a policy by vLLM, in one process or more with vLLM's own environment."""

    def __init__(self, stage: Stage, name: str, policy: Policy, settings: SamplingSettings) -> None:
        """Raises ConfigError where the interpreter has no vLLM, or the policy's files cannot be read."""
        self.stage, self.name, self.policy, self.settings = stage, name, policy, settings
        self.tokenizer = load_policy_tokenizer(policy.path)
        self.options = vllm_options({"vllm": settings.vllm})
        # Not resolved: an environment is found by the path of its interpreter, which is a link.
        self.python = os.path.abspath(os.path.expanduser(self.options["python"]))  # noqa: PTH100, PTH111
        check_interpreter(self.python)
        self.version = version_of(self.python)
        log.info("vLLM %s of %s", self.version, self.python)
        if self.version.partition("+")[0] not in TESTED_VERSIONS:
            tested = ", ".join(TESTED_VERSIONS)
            notices.warn(log, "vLLM %s was not tested with alignloop (%s was)", self.version, tested)
        self.model = plain_folder(policy.path, stage.folder / "checkpoints")
        self.config = read_config(self.model)

    def sample(self, requests: Sequence[SampleRequest]) -> list[Answer]:
        """One answer for each request, in order. Raises ConfigError where the devices or the context are too small or
        vLLM does not support the model, StageError where vLLM's process fails."""
        encoded = encode_requests(self.tokenizer, requests)
        load_settings = self._load_settings(longest_prompt(encoded))
        copies = _Copies(
            [
                VLLM(
                    self.python, {**load_settings, **own}, environment(self.python) | env, self.stage.folder / log_file
                )
                for own, env, log_file in copy_settings(self.options, self.model, use_cpu=self.settings.use_cpu)
            ],
            self.settings,
            self.tokenizer,
            end_tokens_of(generation_config_of(self.model, self.config), self.tokenizer),
        )
        return answer_in_length_order(encoded, self.policy, lambda ordered: self._generate(copies, ordered))

    def _generate(self, copies: "_Copies", ordered: list[EncodedRequest]) -> list[GeneratedAnswer]:
        """Groups of answers, divided among the processes; each is generated once and kept in the journal."""
        rows = [(one.ids, one.prompt_id, one.request.k, one.request.temperature) for one in ordered]
        model_identity = identity_of(self.policy.path)
        content = ("vllm", self.version, model_identity, self.settings.identity, sorted(copies.end_ids), *rows)
        size = self.settings.batch_size
        try:
            generated = in_batches(
                self.stage,
                self.name,
                ordered,
                copies.generate,
                size=size,
                content=content,
                doing="generating answers by vLLM",
                unit="answers",
            )
        finally:
            copies.close()
        if seconds := copies.seconds:
            speed = copies.num_tokens / seconds
            log.info("%s: %d tokens in %.1f s, %.0f tokens/s", self.name, copies.num_tokens, seconds, speed)
        return generated

    def _load_settings(self, longest: int) -> Keys:
        """The arguments of vLLM's LLM that all copies have."""
        given = self.options.get("max_model_len")
        return {
            "model": self.model,
            "skip_tokenizer_init": True,
            "dtype": _dtype(self.settings.dtype, self.config),
            "max_model_len": _context(longest, self.settings.max_new_tokens, self.config, given),
            "enable_prefix_caching": True,
            "load_format": "safetensors",  # other formats are pickled: opening them runs the code they hold
            "generation_config": "vllm",  # nothing from the model's own
            "trust_remote_code": trusts_code(),
        }


class _Copies:
    """The vLLMs of this process, each with a copy of the model, and the time that they took."""

    def __init__(
        self,
        vllms: Sequence[VLLM],
        settings: SamplingSettings,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: set[int],
    ) -> None:
        self.vllms, self.settings, self.tokenizer, self.end_ids = vllms, settings, tokenizer, end_ids
        self.num_tokens, self.seconds = 0, 0.0

    def generate(self, group: Sequence[EncodedRequest]) -> list[GeneratedAnswer]:
        """The group's answers, in order; its requests are divided among the copies."""
        wanted = [
            {
                "prompt": one.ids,
                "temperature": self.settings.temperature_of(one.request),
                "seed": seed_of(self.settings.seed, one.prompt_id, one.request.k),
            }
            for one in group
        ]
        common = {
            "top_p": self.settings.top_p,
            "max_tokens": self.settings.max_new_tokens,
            "stop": sorted(self.end_ids),
        }
        parts = list(zip(self.vllms, _split(wanted, len(self.vllms)), strict=True))
        with progress.activity("starting vLLM") if not self.seconds else contextlib.nullcontext():
            for vllm in self.vllms:  # all copies load at the same time
                vllm.start()
            for vllm, part in parts:
                vllm.submit({**common, "answers": part})
        started = time.monotonic()
        answers = [ids for vllm, _ in parts for ids in vllm.results()]
        self.seconds += time.monotonic() - started
        self.num_tokens += sum(map(len, answers))
        return [self._to_answer(ids) for _, ids in zip(group, answers, strict=True)]

    def close(self) -> None:
        for vllm in self.vllms:
            vllm.close()

    def _to_answer(self, ids: list[int]) -> GeneratedAnswer:
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return {"text": text, "ids": ids, "ended": ids[-1] in self.end_ids}


def seed_of(seed: str, prompt_id: str, k: int) -> int:
    """The seed of one answer, below 2^62."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}/{k}".encode()).digest()[:8], "big") >> 2


def _split(items: Sequence[Item], count: int) -> list[Sequence[Item]]:
    """`count` parts of similar size, in order."""
    return [items[part * len(items) // count : (part + 1) * len(items) // count] for part in range(count)]


def _dtype(name: str, config: PretrainedConfig) -> str:
    """`auto` is the precision in which the model was saved; vLLM's own auto shortens float32."""
    saved = str(getattr(config, "dtype", None) or "auto").removeprefix("torch.")
    return saved if name == "auto" else name


def _context(longest: int, max_new_tokens: int, config: PretrainedConfig, given: int | None) -> int | None:
    """vLLM's max_model_len in tokens; None leaves it to vLLM. Raises ConfigError where `given` is less than needed."""
    needed = longest + max_new_tokens
    if given is not None and given < needed:  # a runtime key must not cut answers
        raise ConfigError(
            f"vllm.max_model_len={given} is too little for prompts of up to {longest} tokens + "
            f"max_new_tokens={max_new_tokens}; try {needed}, or leave it out"
        )
    limit = check_context(config, longest=longest, max_new_tokens=max_new_tokens)
    return given if limit and needed > limit else given or needed


def generation_config_of(path: str, config: PretrainedConfig) -> GenerationConfig:
    """The generation configuration that a loaded model would have."""
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:
        return GenerationConfig.from_model_config(config)


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
