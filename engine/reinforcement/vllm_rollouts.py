"""Samples answers by vLLM from the weights of a model in training, which are sent to it after every change.

The weights are written to a folder, from which vLLM loads them in place. Each process has a separate vLLM, on the
device that it trains on. Answers have the log-probs with which vLLM has sampled them: the trainer's own differ by
rounding, and GRPO's loss is corrected for it (engine/reinforcement/mismatch.py).
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate.utils import wait_for_everyone
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from data_schemas.vllm_keys import SHARE_BESIDE_TRAINING
from engine.reinforcement.rollouts import Rollouts
from engine.runtime import progress, timing, world
from engine.runtime.stage import Stage
from engine.sampling.answers import GeneratedAnswer, SamplingSettings, end_tokens_of
from engine.sampling.batching import EncodedRequest
from engine.sampling.vllm_copies import Copies, vllms_for
from engine.sampling.vllm_engine import common_load_settings, context, generation_config_of, options_of

WEIGHTS = "vllm-weights"  # in the checkpoints' folder
WritesWeights = Callable[[Path], None]  # all processes call it; the main one writes a complete model into the folder


class ServedWeights:
    """The vLLM of this process, and which weights it has. It is started by the first request."""

    def __init__(
        self,
        stage: Stage,
        tokenizer: PreTrainedTokenizerBase,
        settings: SamplingSettings,
        config: PretrainedConfig,
        *,
        folder: Path,
        longest: int = 0,
    ) -> None:
        """`settings.dtype` is vLLM's precision; `longest` is the longest prompt, in tokens; `folder` is that of the
        checkpoints. Raises ConfigError where the interpreter has no vLLM."""
        self.stage, self.tokenizer, self.settings, self.config = stage, tokenizer, settings, config
        self.options, self.python, _ = options_of(settings)
        if not settings.use_cpu and torch.cuda.is_available():  # on a CPU the processes divide vLLM's share of the RAM
            self.options.setdefault("gpu_memory_utilization", SHARE_BESIDE_TRAINING)
        self.folder, self.longest = folder / WEIGHTS, longest
        self._copies: Copies | None = None
        self._version: object = None

    def serve(self, write: WritesWeights, version: object) -> Copies:
        """The vLLM with the weights that `write` writes; those of the same version as before are not written again."""
        if version == self._version:
            assert self._copies is not None
            return self._copies
        with timing.part("save"), progress.activity("giving vLLM the weights"):
            if self.stage.is_main:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
            write(self.folder)
            wait_for_everyone()
            if self._copies is None:
                self._copies = self._start()
            else:
                self._copies.load_weights(str(self.folder))
            self._version = version
        return self._copies

    def close(self) -> None:
        """Ends vLLM and removes its weights."""
        if self._copies is not None:
            self._copies.close()
        self._copies = self._version = None
        if self.stage.is_main:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> Copies:
        load_settings = {
            "model": str(self.folder),
            "dtype": self.settings.dtype,
            "max_model_len": context(
                self.longest,
                self.settings.max_new_tokens,
                self.config,
                self.options.get("max_model_len"),
                key="max_completion_length",
            ),
            "logprobs_mode": "processed_logprobs",  # those of the distribution that is sampled, at its temperature
            **common_load_settings(),
        }
        # Where SIGTERM reaches one of several processes first, the others would wait for it in their next exchange.
        may_leave = world.num_processes() == 1
        vllms = vllms_for(
            self.python,
            self.options,
            load_settings,
            self.stage.folder,
            use_cpu=self.settings.use_cpu,
            may_leave=may_leave,
        )
        ends = end_tokens_of(generation_config_of(str(self.folder), self.config), self.tokenizer)
        return Copies(vllms, self.settings, self.tokenizer, ends, gives_log_probs=True)


class VLLMRollouts(Rollouts):
    """Samples by vLLM from the weights that `write` writes, whenever their version has changed."""

    group_batches = 1  # vLLM batches by itself within a group

    def __init__(self, served: ServedWeights, write: WritesWeights, version: Callable[[], object]) -> None:
        self.served, self.write, self.version = served, write, version
        self.settings, self.tokenizer = served.settings, served.tokenizer

    def generate(
        self, groups: Sequence[Sequence[Sequence[EncodedRequest]]], *, seed: str
    ) -> list[Sequence[GeneratedAnswer]]:
        copies = self.served.serve(self.write, self.version())
        found: list[Sequence[GeneratedAnswer]] = []
        for group in groups:
            answers = copies.generate([request for prompt in group for request in prompt], seed=seed)
            starts = range(0, len(answers), len(group[0]))
            found += [answers[start : start + len(group[0])] for start in starts]
        return found

    def close(self) -> None:
        self.served.close()
