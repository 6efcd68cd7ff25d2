"""Log-probs of answers under the policy and under the reference, and samplers of both."""

import contextlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.utils import add_fused_lm_head

from data_schemas.rows import Prompt
from data_schemas.stage_keys import Values
from engine.models.loading import load_causal, outside_zero3
from engine.models.merging import write_plain
from engine.packing.shared_rows import base_model_of
from engine.packing.trainer_mixin import SharedRowsMixin
from engine.reinforcement.arguments import PolicyGradientConfig, RLArguments
from engine.reinforcement.rollouts import LiveSampler, Rollouts
from engine.reinforcement.vllm_rollouts import ServedWeights, VLLMRollouts
from engine.sampling.answers import SamplingSettings
from engine.tokens.template import encode_prompt
from engine.training.host import Batch
from engine.training.loop import TrainingLoop

# Shapes: N = answers of a batch, C = tokens of the longest.


@dataclass(frozen=True)
class Reference:
    """The reference policy."""

    path: str  # a folder or a hub name
    is_start: bool  # training starts from it
    options: Values  # keyword arguments of from_pretrained


class AnswerLogProbs(SharedRowsMixin, TrainingLoop):
    """Mixin, to be placed before TRL's GRPOTrainer or RLOOTrainer among the bases.

    The reference is kept in memory, except where LoRA trains adapters on it: without them the policy is the reference.
    """

    args: PolicyGradientConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    stage_arguments: RLArguments
    beta: float  # read by TRL's losses
    temperature: float  # of TRL's trainer: divides the logits
    is_reward_model_trainer = False
    _get_per_token_logps_and_entropies: Callable[..., tuple[torch.Tensor, Any, Any]]  # of TRL's trainers

    def __init__(
        self,
        *args,
        reference: Reference,
        train_prompts: list[Prompt],
        eval_prompts: list[Prompt],
        sampling: SamplingSettings,
        served: ServedWeights | None = None,
        describe_adapter: Callable[[Any, Path], None] | None = None,
        **kwargs,
    ) -> None:
        """`served`: vLLM samples; then `describe_adapter` makes the folder of LoRA's adapter complete."""
        self._describe_adapter, self._reference_path = describe_adapter, reference.path
        self._served_dtype = served.settings.dtype if served else "float32"
        self.train_prompts, self.eval_prompts = train_prompts, eval_prompts
        super().__init__(*args, **kwargs)
        self.beta = self.stage_arguments.beta  # TRL's trainer was given 0, so that it loads no reference itself
        tokenizer: Any = self.processing_class
        self.pad_token_id = int(tokenizer.pad_token_id)
        self._tokens = {
            prompt.prompt_id: encode_prompt(tokenizer, prompt.prompt, tools=prompt.tools)
            for prompt in (*train_prompts, *eval_prompts)
        }
        self._reference = None if reference.is_start and self._has_adapters else self._load_reference(reference)
        self.policy_sampler: Rollouts
        self.reference_sampler: Rollouts
        if served:
            served.longest = max(map(len, self._tokens.values()))
            self.policy_sampler = VLLMRollouts(served, self._write_policy, lambda: self.state.global_step)
            self.reference_sampler = VLLMRollouts(served, self._write_reference, lambda: "reference")
            return
        longest = max(map(len, self._tokens.values())) + sampling.max_new_tokens
        # Under DeepSpeed the weights are views of its buffers and must stay there.
        options: Any = {"longest": longest, "packs_weights": not self.is_deepspeed_enabled}
        self.policy_sampler = LiveSampler(self._ready_policy, tokenizer, sampling, **options)
        self.reference_sampler = LiveSampler(self._ready_reference, tokenizer, sampling, **options)

    def tokens_of(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens, the generation prompt included."""
        return self._tokens[prompt.prompt_id]

    def on_answers(self, model: torch.nn.Module, batch: Batch) -> torch.nn.Module:
        """The model as TRL's loss calls it: on the packed row of the batch, which is taken out of `batch`."""
        ids_NT = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        inputs = batch | {"input_ids": ids_NT}
        called = self.on_shared_rows(model, inputs)
        for name in batch.keys() - inputs.keys():
            del batch[name]
        return cast(torch.nn.Module, called)

    def log_probs(self, batch: Batch) -> torch.Tensor:
        """Log p of each answer's tokens under the policy, at the temperature of the answers; 0 where masked, [N, C]."""
        return self._log_probs_of(self.model, batch)

    def reference_log_probs(self, batch: Batch) -> torch.Tensor:
        """As `log_probs`, under the reference."""
        if self._reference is not None:
            return self._log_probs_of(self._reference, batch)
        with self._without_adapters():
            return self._log_probs_of(self.model, batch)

    @torch.no_grad()
    def _log_probs_of(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        batch = dict(batch)
        called = self.on_answers(model, batch)
        ids_NT = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask_NT = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        width = batch["completion_ids"].size(1)
        log_probs_NC, _, _ = self._get_per_token_logps_and_entropies(called, ids_NT, mask_NT, width)
        return log_probs_NC

    @property
    def _has_adapters(self) -> bool:
        return hasattr(self.model, "peft_config")

    def _without_adapters(self) -> contextlib.AbstractContextManager[None]:
        policy: Any = self.model
        return policy.disable_adapter()

    def _load_reference(self, reference: Reference) -> torch.nn.Module:
        model = load_causal(reference.path, **reference.options)
        add_fused_lm_head(model, temperature=self.temperature)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        return cast(torch.nn.Module, self.accelerator.prepare_model(model, evaluation_mode=True)).eval()

    def _write_policy(self, folder: Path) -> None:
        """Writes the complete policy in vLLM's precision into an empty folder, LoRA's adapter merged.

        All processes call this.
        """
        adapter = folder.with_name(f"{folder.name}-adapter")
        with self._ready_policy() as model:
            if self.stage.is_main and not self._has_adapters:
                dtype, kept = getattr(torch, self._served_dtype), dict[Any, torch.Tensor]()
                weights = model.state_dict()
                for name, tensor in weights.items():
                    place = tensor.data_ptr(), tensor.shape  # tied weights stay one tensor
                    weights[name] = kept[place] = kept[place] if place in kept else tensor.to("cpu", dtype)
                model.save_pretrained(folder, state_dict=weights)
            elif self.stage.is_main:
                policy: Any = self.model
                policy.save_pretrained(adapter)
                assert self._describe_adapter is not None
                self._describe_adapter(policy, adapter)
        if self.stage.is_main and self._has_adapters:
            with outside_zero3():  # only the main process is here
                write_plain(adapter, folder, dtype=self._served_dtype)
            shutil.rmtree(adapter)

    def _write_reference(self, folder: Path) -> None:
        """As `_write_policy`, of the reference."""
        if self._reference is None:
            if self.stage.is_main:
                with outside_zero3():
                    load_causal(self._reference_path).save_pretrained(folder)
            return
        with self._ready_reference() as model:
            if self.stage.is_main:
                model.save_pretrained(folder)

    @contextlib.contextmanager
    def _ready_policy(self) -> Iterator[PreTrainedModel]:
        """The policy without its wrappers; under ZeRO-3 with all of its weights."""
        with self._unwrapped(cast(torch.nn.Module, self.model_wrapped)) as model:
            yield model

    @contextlib.contextmanager
    def _ready_reference(self) -> Iterator[PreTrainedModel]:
        if self._reference is None:
            with self._without_adapters(), self._ready_policy() as model:
                yield model
            return
        with self._unwrapped(self._reference) as model:
            yield model

    @contextlib.contextmanager
    def _unwrapped(self, model: torch.nn.Module) -> Iterator[PreTrainedModel]:
        wrapped: Any = model
        if not is_deepspeed_zero3_enabled():
            yield base_model_of(cast(torch.nn.Module, self.accelerator.unwrap_model(wrapped)))
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TRL reads an attribute by its old name
            with unwrap_model_for_generation(wrapped, self.accelerator) as unwrapped, _own_forward_passes(wrapped):
                yield base_model_of(cast(torch.nn.Module, unwrapped))


@contextlib.contextmanager
def _own_forward_passes(engine: Any) -> Iterator[None]:
    """Lets each process call the gathered model as often as its own prompts need.

    A hook of ZeRO-3 compares a number between the processes at the beginning of every forward pass. TRL's context
    leaves it in place, since there all processes generate in step; here those without a prompt would let the others
    wait for ever.
    """
    offload = getattr(engine.optimizer, "parameter_offload", engine.optimizer)
    hooks, number = offload.module._forward_pre_hooks, offload.fwd_pre_hook.id
    hook = hooks.pop(number)
    try:
        yield
    finally:
        hooks[number] = hook
        hooks.move_to_end(number, last=False)  # it starts a trace that the hooks after it write
