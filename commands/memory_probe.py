"""The memory of a training step, measured on tensors without content, on no device.

The stage's own trainer computes the loss of its own collator's batch: shared rows, chunked logits, LoRA and activation
checkpointing are those of the stage. The model has the recipe's sizes and one or two layers. Its weights are fake
tensors (torch's FakeTensorMode), which have shapes and no memory, while the few thousand token ids are real, since
shapes depend on them. commands/live_memory.py counts what lives at the same time.

Memory grows linearly with the layers, so the difference of two layers and one gives that of all. That is so within
one phase of a step only: the gradient of large embeddings, or what an optimizer that is not fused holds beside the
moments, may be more than the activations of two layers and less than those of all. So forward and backward pass, the
backward pass of the embeddings, and the optimizer's step are continued each by itself, and the largest counts.

The second optimizer step is measured, when the moments exist. Activations are what lives beside weights, moments and
gradients: a step with several micro-batches has all gradients when its activations are at their peak.
"""

import copy
import logging
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from commands.live_memory import (
    Content,
    FourBitLinear,
    LiveMemory,
    Peak,
    fake_mode_of,
    quantise,
    without_content,
)
from commands.probed_trainer import config_of, recorded_heads, short, token_row, trainer_of
from data_schemas.cost_request import Probe, ProbeAnswer, RowSample
from data_schemas.stage_keys import with_defaults
from engine.models.miniature import small_model
from stages import pretrain

PROBED_LAYERS = (1, 2)


def measure(probe: Probe) -> ProbeAnswer:
    """The memory of a training step for all layers; with a `problem` where the stage can't be run without content."""
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="alignloop-probe-") as scratch:
            bench = Bench.of(probe, Path(scratch))
            found = _extrapolated(bench, probe)
    except Exception as error:  # a library may refuse tensors without content in any way
        logging.getLogger(__name__).debug("probe", exc_info=True)
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        found = {"peak": 0.0, "activations": 0.0, "logits": 0.0, "parameters": 0, "trainable": 0, "problem": problem}
    return {**found, "seconds": round(time.monotonic() - started, 2)}  # pyright: ignore[reportReturnType]


def _extrapolated(bench: "Bench", probe: Probe) -> dict[str, Any]:
    """One and two layers, continued to all layers."""
    layers = probe["layers"]
    few = [count for count in PROBED_LAYERS if count <= layers]
    runs = [bench.run(count) for count in few]
    phases = list(zip(*(run.activations for run in runs), strict=True))
    activations, of_largest = max((_continued(phase, few, layers), phase) for phase in phases)
    constant = _continued(of_largest, few, 0)
    parameters, trainable = (
        _continued([getattr(run, name) for run in runs], few, layers) for name in ("parameters", "trainable")
    )
    states = _continued([run.states for run in runs], few, layers)
    peak = states + activations
    if not probe["accumulates"]:
        # Within a phase the peak is at its start, with all activations and no gradients, or after it. It is convex in
        # the number of layers, so the larger of both continuations is right, except where they meet.
        without_gradients = _continued([run.states - run.gradients for run in runs], few, layers)
        peaks = [[peak.bytes for peak in phase] for phase in zip(*(run.peaks for run in runs), strict=True)]
        with_some = max(_continued(phase, few, layers) for phase in peaks)
        peak = min(peak, max(without_gradients + activations, with_some))
    return {
        "peak": peak,
        "activations": activations,
        "logits": max(0.0, min(constant, activations)),
        "parameters": round(parameters),
        "trainable": round(trainable),
        "problem": "",
    }


def _continued(values: Sequence[float], layers: Sequence[int], all_layers: int) -> float:
    """The straight line through the values at the last two numbers of layers, at `all_layers`."""
    if len(values) == 1:
        return float(values[0])
    slope = (values[-1] - values[-2]) / (layers[-1] - layers[-2])
    return values[-1] + slope * (all_layers - layers[-1])


@dataclass(frozen=True)
class Run:
    """Bytes of a run with few layers. `states` are weights, gradients and moments; `activations` is all else."""

    peaks: list[Peak]  # of each phase
    parameters: float  # numbers, not bytes
    trainable: float
    weights: float
    gradients: float

    @property
    def states(self) -> float:
        return self.weights + 3 * self.gradients  # Adam's moments have the sizes of the gradients

    @property
    def activations(self) -> list[float]:
        """Of each phase."""
        kept = self.states - self.gradients
        return [max(0.0, peak.beside_gradients - kept) for peak in self.peaks]


@dataclass(frozen=True)
class Bench:
    """The stage's trainer on a small real model, whose loss is called with models of the recipe's sizes."""

    trainer: Any
    collator: Callable[[list[dict[str, list]]], dict[str, torch.Tensor]]
    heads: list[Callable[[PreTrainedModel], object]]  # what replaced the head of the trainer's model
    probe: Probe

    @classmethod
    def of(cls, probe: Probe, scratch: Path) -> "Bench":
        """Builds the trainer, and tries the loss once on the real model: it then knows what the architecture supports.

        Raises what the stage raises.
        """
        tokenizer = pretrain.train_tokenizer(["some words to read"], vocab_size=300, special_tokens=[])
        config = config_of(probe, layers=min(2, probe["layers"]))
        config.vocab_size = len(tokenizer)
        config.eos_token_id = config.pad_token_id = config.bos_token_id = None
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        small_model(config).save_pretrained(scratch / "model")
        tokenizer.save_pretrained(scratch / "model")
        with recorded_heads() as heads:
            trainer = trainer_of(probe, tokenizer, scratch)
        bench = cls(trainer, trainer.data_collator, heads, probe)
        trainer.model.train()
        bench.loss(trainer.model, short(probe))
        return bench

    def loss(self, model: torch.nn.Module, rows: Sequence[RowSample]) -> torch.Tensor:
        """The stage's loss of a batch of these rows."""
        columns = [token_row(self.probe["stage"], row).columns() for row in rows]
        inputs: dict[str, torch.Tensor] = self.collator(columns)
        if self.probe["stage"] == "dpo":
            inputs |= {f"ref_{side}_logps": torch.zeros(len(rows)) for side in ("chosen", "rejected")}
        is_autocast = self.probe["precision"] == "autocast"
        with torch.autocast("cpu", torch.bfloat16) if is_autocast else nullcontext():
            return self.trainer.compute_loss(model, inputs, num_items_in_batch=torch.tensor(1))

    def run(self, layers: int) -> Run:
        """An optimizer step with one micro-batch of a model with so many layers, after the first such step."""
        model = without_content(lambda: self.model(layers))
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        memory = LiveMemory(trained)
        memory.add(*model.parameters(), *model.buffers())
        with memory, Content(fake_mode_of(model)):
            optimizer = torch.optim.AdamW(trained, foreach=False)
            for weight in trained:
                weight.grad = torch.zeros_like(weight)
            optimizer.step()  # allocates the moments
            optimizer.zero_grad()
            memory.set_apart_backward_of(model.get_input_embeddings())
            memory.restart()
            self.loss(model, self.probe["micro_batch"]).backward()
            memory.next_phase()
            if not self.is_fused:  # torch would run a fused step on real tensors of the same sizes
                optimizer.step()
        return Run(
            peaks=memory.peaks,
            parameters=_num_parameters(model),
            trainable=sum(weight.numel() for weight in trained),
            weights=_bytes_of([*model.parameters(), *_scales_of(model)]),
            gradients=_bytes_of(trained),
        )

    @property
    def is_fused(self) -> bool:
        """Whether the optimizer changes weights in place; else it holds two more tensors of the size of a weight."""
        return "fused" in with_defaults(self.probe["stage"], self.probe["keys"])["optim"]

    def model(self, layers: int) -> PreTrainedModel:
        """The recipe's model with fewer layers, with the adapters and the head of the trainer's.

        On the device that is the default where it is called.
        """
        config, keys = config_of(self.probe, layers=layers), self.probe["keys"]
        dtype = torch.bfloat16 if self.probe["precision"] == "bfloat16" else torch.float32
        if self.probe["stage"] == "reward_model":
            config.num_labels = 1
            config.pad_token_id = 0
            model: Any = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        if keys.get("load_in_4bit"):
            quantise(model, dtype=dtype, nested=bool(keys.get("use_bnb_nested_quant")))
        small = self.trainer.model
        if hasattr(small, "peft_config"):
            from peft import get_peft_model

            adapters = copy.deepcopy(small.peft_config["default"])
            # PEFT lists the matrices of the small model by their full names; here they are those of every layer.
            adapters.target_modules = {name.rpartition(".")[2] for name in adapters.target_modules}
            model = get_peft_model(model, adapters)
        for add in self.heads[:1]:
            add(model.get_base_model() if hasattr(model, "get_base_model") else model)
        if self.trainer.args.gradient_checkpointing:
            model.gradient_checkpointing_enable(self.trainer.args.gradient_checkpointing_kwargs)
            model.enable_input_require_grads() if hasattr(small, "peft_config") else None
        return model.train()


def _num_parameters(model: torch.nn.Module) -> int:
    """Those of a layer of four bits are counted as if it were not."""
    packed = [module for module in model.modules() if isinstance(module, FourBitLinear)]
    others = sum(weight.numel() for weight in model.parameters()) - sum(layer.weight.numel() for layer in packed)
    return others + sum(math.prod(layer.shape_OI) for layer in packed)


def _bytes_of(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _scales_of(model: torch.nn.Module) -> list[torch.Tensor]:
    return [scales for module in model.modules() if isinstance(module, FourBitLinear) for scales in module.buffers()]
