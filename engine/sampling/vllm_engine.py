"""Samples answers by vLLM, which gets our tokens and returns tokens; rows have the same form as with other engines.

Every answer has its own seed, from (seed, prompt id, k). `batch_size` answers are a group: vLLM batches only within the
group and clears its prefix cache before the next, so an attempt that resumes after the last finished group has the same
answers, bit by bit on the same devices. Groups are divided among our processes, each of which has its own vLLMs; their
number and size change rounding at most, as another kind of device does.
"""

import logging
import os
from collections.abc import Sequence

from transformers import GenerationConfig, PretrainedConfig

from data_schemas.errors import ConfigError
from data_schemas.stage_keys import Keys
from data_schemas.vllm_keys import check_interpreter, vllm_options
from engine.models.loading import identity_of, read_config
from engine.models.merging import plain_folder
from engine.models.policy_tokenizer import load_policy_tokenizer
from engine.runtime import notices
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
from engine.sampling.vllm_copies import Copies, vllms_for
from engine.sampling.vllm_process import version_of

TESTED_VERSIONS = ("0.32.0",)  # of vLLM
log = logging.getLogger(__name__)


class VLLMEngine:
    """Samples from a policy by vLLM, in one process or more with vLLM's own environment."""

    def __init__(self, stage: Stage, name: str, policy: Policy, settings: SamplingSettings) -> None:
        """Raises ConfigError where the interpreter has no vLLM, or the policy's files cannot be read."""
        self.stage, self.name, self.policy, self.settings = stage, name, policy, settings
        self.tokenizer = load_policy_tokenizer(policy.path)
        self.options, self.python, self.version = options_of(settings)
        self.model = plain_folder(policy.path, stage.folder / "checkpoints")
        self.config = read_config(self.model)

    def sample(self, requests: Sequence[SampleRequest]) -> list[Answer]:
        """One answer for each request, in order. Raises ConfigError where the devices or the context are too small or
        vLLM does not support the model, StageError where vLLM's process fails."""
        encoded = encode_requests(self.tokenizer, requests)
        load_settings = self._load_settings(longest_prompt(encoded))
        copies = Copies(
            vllms_for(self.python, self.options, load_settings, self.stage.folder, use_cpu=self.settings.use_cpu),
            self.settings,
            self.tokenizer,
            end_tokens_of(generation_config_of(self.model, self.config), self.tokenizer),
        )
        return answer_in_length_order(encoded, self.policy, lambda ordered: self._generate(copies, ordered))

    def _generate(self, copies: Copies, ordered: list[EncodedRequest]) -> list[GeneratedAnswer]:
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
            "dtype": _dtype(self.settings.dtype, self.config),
            "max_model_len": context(longest, self.settings.max_new_tokens, self.config, given),
            **common_load_settings(),
        }


def _dtype(name: str, config: PretrainedConfig) -> str:
    """`auto` is the precision in which the model was saved; vLLM's own auto shortens float32."""
    saved = str(getattr(config, "dtype", None) or "auto").removeprefix("torch.")
    return saved if name == "auto" else name


def options_of(settings: SamplingSettings) -> tuple[Keys, str, str]:
    """The options inside the key `vllm`, the interpreter's absolute path, and the version of its vLLM.

    Raises ConfigError where the interpreter has none.
    """
    options = vllm_options({"vllm": settings.vllm})
    # Not resolved: an environment is found by the path of its interpreter, which is a link.
    python = os.path.abspath(os.path.expanduser(options["python"]))  # noqa: PTH100, PTH111
    check_interpreter(python)
    version = version_of(python)
    log.info("vLLM %s of %s", version, python)
    if version.partition("+")[0] not in TESTED_VERSIONS:
        tested = ", ".join(TESTED_VERSIONS)
        notices.warn(log, "vLLM %s was not tested with alignloop (%s was)", version, tested)
    return options, python, version


def common_load_settings() -> Keys:
    """The arguments of vLLM's LLM that are the same for every model."""
    return {
        "skip_tokenizer_init": True,
        "enable_prefix_caching": True,
        "load_format": "safetensors",  # other formats are pickled: opening them runs the code they hold
        "generation_config": "vllm",  # nothing from the model's own
        "trust_remote_code": trusts_code(),
    }


def context(
    longest: int, max_new_tokens: int, config: PretrainedConfig, given: int | None, *, key: str = "max_new_tokens"
) -> int | None:
    """vLLM's max_model_len in tokens; None leaves it to vLLM. `key` is what the stage calls `max_new_tokens`.

    Raises ConfigError where `given` is less than needed, or more than the model has.
    """
    needed = longest + max_new_tokens
    if given is not None and given < needed:  # a runtime key must not cut answers
        raise ConfigError(
            f"vllm.max_model_len={given} is too little for prompts of up to {longest} tokens + "
            f"{key}={max_new_tokens}; try {needed}, or leave it out"
        )
    limit = check_context(config, longest=longest, max_new_tokens=max_new_tokens, key=key)
    if given is not None and limit and given > limit:
        raise ConfigError(f"vllm.max_model_len={given} is more than the model's {limit} positions; leave it out")
    return given if limit and needed > limit else given or needed


def generation_config_of(path: str, config: PretrainedConfig) -> GenerationConfig:
    """The generation configuration that a loaded model would have."""
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:
        return GenerationConfig.from_model_config(config)
