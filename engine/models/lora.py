"""LoRA adapters (arXiv 2106.09685) at the beginning and the end of a training stage.

A stage starts from a complete model and trains a new adapter on it, or it continues the adapter of a step with
`at_end: keep`. A policy that is its own reference is that model without its adapter in the first case; in the second
it is the model with the adapter as it was.
"""

import copy
import dataclasses
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config

from data_schemas.errors import ConfigError
from data_schemas.stage_keys import Keys
from engine.models.adapters import AdapterBase, Quantization, is_adapter
from engine.models.loading import ModelOptions, check_base, identity_of, load_causal, path_of, training_options
from engine.models.new_tokens import names_of_embeddings, untrained_tokens

if TYPE_CHECKING:
    from peft import PeftConfig

# The keys with which an adapter can be continued: those of its form, and those of the precision of its base.
FORM = (
    "lora_r",
    "lora_alpha",
    "lora_target_modules",
    "lora_target_parameters",
    "lora_modules_to_save",
    "use_rslora",
    "use_dora",
)
PRECISION = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")
QUANTISED = ("Params4bit", "Int8Params")  # the classes of bitsandbytes' weights
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapters:
    """What a trainer needs to know of the adapters that it trains."""

    config: "PeftConfig | None"  # None: all weights are trained
    continued: Path | None = None  # the folder with the adapter that training starts from; None: a new one


def continued_adapter(model: ModelConfig) -> Path | None:
    """The folder of the adapter that a policy's training continues; None where it trains a new one, or all weights.

    Raises ConfigError where a kept adapter on a quantised base would have to be merged to go on with these keys.
    """
    folder = Path(path_of(model))
    if not model.use_peft or not is_adapter(folder):
        return None
    given, kept = keys_of(model), AdapterBase.read(folder).keys
    changed = [f"{name} {kept.get(name)} -> {value}" for name, value in given.items() if value != kept.get(name)]
    if not changed:
        return folder
    if model.load_in_4bit or model.load_in_8bit:
        raise ConfigError(
            f"{folder} holds an adapter, and on a quantized base it can only be continued with the keys it was trained "
            f"with ({', '.join(changed)}): set them back, or at_end: merge in the step that trains it"
        )
    log.info("the adapter of %s is merged in memory, and a new one is trained: %s", folder, ", ".join(changed))
    return None


def keys_of(model: ModelConfig) -> Keys:
    """The keys of FORM and PRECISION, by name."""
    return {name: getattr(model, name) for name in (*FORM, *PRECISION)}


def load_policy(model: ModelConfig, **given: Any) -> PreTrainedModel:
    """The model that the adapters are added to, or whose weights are trained; `given` goes to from_pretrained."""
    path, options = path_of(model), training_options(model) | given
    if folder := continued_adapter(model):
        base = AdapterBase.read(folder)
        check_base(folder, base)
        path, options = base.resolved(folder), options | {"revision": base.revision}
    return load_causal(path, **options)


def reference_options(path: str, options: ModelOptions) -> ModelOptions:
    """`options` of the policy for a reference at `path`: one with an adapter is merged in memory, so not quantised."""
    if not is_adapter(path):
        return options
    return {name: value for name, value in options.items() if name != "quantization_config"}


def adapters_of(
    model: ModelConfig,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_reward_model: bool = False,
) -> Adapters:
    """The adapters to train on `policy`; none without use_peft.

    A reward model's score head is trained in full. The rows of template tokens that are new to the base are trained
    too (new_tokens.py), unless the keys train their matrix anyway. Tied embeddings stay tied.
    """
    if not model.use_peft:
        return Adapters(None)
    if not is_reward_model and model.model_name_or_path and (folder := continued_adapter(model)):
        from peft import PeftConfig

        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = False
        config.lora_dropout = model.lora_dropout  # pyright: ignore[reportAttributeAccessIssue]
        log.info("the adapter of %s is continued", folder)
        return Adapters(config, folder)
    return Adapters(_new_config(model, policy, tokenizer, is_reward_model=is_reward_model))


def _new_config(
    model: ModelConfig, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, is_reward_model: bool
) -> "PeftConfig":
    model = dataclasses.replace(model, lora_task_type="SEQ_CLS" if is_reward_model else "CAUSAL_LM")
    if is_reward_model:
        model.lora_modules_to_save = sorted({"score", *(model.lora_modules_to_save or [])})
    config: Any = get_peft_config(model)
    if isinstance(config.target_modules, str) and re.fullmatch(r"[\w.]+", config.target_modules):
        # TRL makes text of a list of one name, and PEFT would read text as an expression for the whole path.
        config.target_modules = {config.target_modules}
    matrices = names_of_embeddings(policy)
    trained = {*(model.lora_modules_to_save or []), *_names(model.lora_target_modules)}
    tokens = untrained_tokens(policy, tokenizer)
    indices = {name: tokens for name in matrices if name not in trained}
    if tokens and indices:
        names = ", ".join(map(str, tokenizer.convert_ids_to_tokens(tokens)))
        log.info("new to the base model: %s; their rows of %s are trained too", names, " and ".join(indices))
        config.trainable_token_indices = indices
    is_tied = len(matrices) == 1 and policy.get_output_embeddings() is not None
    config.ensure_weight_tying = is_tied and bool(tokens or trained & {*matrices, "lm_head"})
    return config


def _names(targets: list[str] | str | None) -> list[str]:
    return [targets] if isinstance(targets, str) else list(targets or [])


def start_adapters(model: Any, continued: Path | None) -> None:
    """Gives a trainer's new adapters the weights of the one that is continued, in place.

    On a quantised base TRL rounds adapters, heads and rows of new tokens to bfloat16, which loses small updates and
    changes what is continued. Here they have the precision they have on any other base: adapters float32, whose inputs
    PEFT casts, and heads and rows that of the model.
    """
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        dtype = model.get_input_embeddings().weight.dtype
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.data = weight.data.to(torch.float32 if ".lora_" in name else dtype)
    if continued is not None:
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(continued), device="cpu"))


def precision_source(path: str) -> str:
    """The model whose precision the saved one gets: `path`, or the complete model below its adapters."""
    while is_adapter(path):
        path = AdapterBase.read(Path(path)).resolved(Path(path))
    return path


def describe_adapter(policy: Any, model: ModelConfig, folder: Path, *, continued: Path | None) -> None:
    """Adds to a folder with PEFT's two files what the adapter was trained on, and the complete model's configuration.

    `policy` is the trained model of PEFT; `continued` is the folder of the adapter that its training continued.
    """
    path, revision = path_of(model), model.model_revision
    if continued is not None:
        before = AdapterBase.read(continued)
        path, revision = before.resolved(continued), before.revision
    complete = policy.get_base_model()
    identity = identity_of(path)
    if Path(path).is_dir():
        path = os.path.relpath(Path(path).resolve(), folder.resolve())
    dtype = model.dtype if model.dtype not in (None, "auto") else str(complete.dtype).removeprefix("torch.")
    AdapterBase(path, revision, identity, str(dtype), keys_of(model), _quantization_of(complete, model)).write(folder)
    config = copy.deepcopy(complete.config)
    config.architectures = [type(complete).__name__]
    for name in ("quantization_config", "_pre_quantization_dtype"):
        vars(config).pop(name, None)
    config.save_pretrained(folder)
    if getattr(complete, "generation_config", None) is not None and complete.can_generate():
        complete.generation_config.save_pretrained(folder)


def _quantization_of(complete: PreTrainedModel, model: ModelConfig) -> Quantization | None:
    modules = [
        name.removesuffix(".base_layer")
        for name, module in complete.named_modules()
        if type(dict(module.named_parameters(recurse=False)).get("weight")).__name__ in QUANTISED
    ]
    if not modules:
        return None
    kind = model.bnb_4bit_quant_type if model.load_in_4bit else "int8"
    return Quantization(kind, model.load_in_4bit and model.use_bnb_nested_quant, modules)
