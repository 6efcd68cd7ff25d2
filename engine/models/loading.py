"""Loads models and tokenizers for every stage: precision, safetensors only, pad token, and what a folder must hold.

A folder or hub name that can't be loaded is a DataError of one line; a key that forbids loading is a ConfigError.
"""

import contextlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import deepspeed as deepspeed_integration
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from trl import ModelConfig, get_quantization_config

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError, DataError, UserError
from data_schemas.files import digest_text, hash_files, space_hint
from data_schemas.model_sizes import check_model_config, check_tokenizer_size
from engine.models.adapters import BASE, Adapter, AdapterBase, UnsupportedAdapter, is_adapter
from engine.models.merged_in_memory import merge_into
from engine.runtime import progress, timing
from engine.runtime.process import trusts_code

ALIGNMENT = 64  # bytes
# Attention of a training stage on a GPU where attn_implementation is left out; None: transformers' choice, which is
# SDPA where the architecture has it. The row of docs/benchmarks-gpu.md that measures best belongs here.
GPU_ATTENTION: str | None = None
PREPARE_FIRST = "give it as base_model of a recipe, which prepares it, or run stages/prepare_base.py on it first"
REWARD_PAD = (
    "plain transformers reads a reward model's score at the last token that is not the pad token, here before the end "
    "of the answer: use one with a separate pad token, as alignloop trains them"
)
QUANTIZED_UNDER_ZERO3 = "ZeRO-3 cannot divide quantized weights among processes"
ModelOptions = dict[str, Any]  # keyword arguments of from_pretrained
LoadingInfo = Mapping[str, Collection[object]]  # "missing_keys", "unexpected_keys", … -> the tensors' names
ModelClass = type[AutoModel | AutoModelForCausalLM | AutoModelForSequenceClassification]
ModelType = TypeVar("ModelType", bound=nn.Module)


@timing.part("load")
@progress.activity("loading the tokenizer")
def read_tokenizer(path: str, *, revision: str = "main") -> PreTrainedTokenizerBase:
    """The unchanged tokenizer of a folder or hub name. Raises DataError where it can't be read."""
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trusts_code())
    except Exception as error:  # the library raises many types for a damaged file
        if space_hint(error):  # of the cache that a hub name is downloaded to
            raise
        raise DataError(f"{path} has no tokenizer that can be read ({_first_line(error)})") from error


def load_tokenizer(path: str, *, needs_template: bool = True, needs_pad: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder that prepare_base wrote.

    Raises DataError where it lacks a chat template, unless `needs_template` is false, or then a pad token other than
    the end token, unless `needs_pad` is.
    """
    tokenizer = read_tokenizer(path)
    if Path(path).is_dir():
        check_tokenizer_size(Path(path))
    if needs_template and not tokenizer.chat_template:
        raise DataError(f"{path} has no chat template; {PREPARE_FIRST}")
    if needs_template and needs_pad and tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        remedy = REWARD_PAD if is_reward_model(path) else PREPARE_FIRST
        raise DataError(f"{path} has no pad token, or uses its end token as one; {remedy}")
    return tokenizer


def load_causal(path: str, *, dtype: str = "auto", **options: Any) -> PreTrainedModel:
    """A causal language model. `dtype` is a torch dtype's name, or auto for the one it was saved in.

    `options` are keyword arguments of from_pretrained. Raises DataError where the model can't be loaded completely.
    """
    return _load(AutoModelForCausalLM, path, dtype=dtype, options=options)


def load_encoder(path: str, *, dtype: str = "auto") -> PreTrainedModel:
    """The layers of a model without a head, of whatever kind it is; raises as `load_causal` does."""
    return _load(AutoModel, path, dtype=dtype, options={})


def load_reward(path: str, *, dtype: str = "auto", **options: Any) -> PreTrainedModel:
    """A reward model: a sequence classifier with one score. The head is newly initialised where the folder has none."""
    return _load(AutoModelForSequenceClassification, path, dtype=dtype, options={"num_labels": 1, **options})


def read_config(path: str, *, revision: str = "main") -> PretrainedConfig:
    """A model's configuration. Raises DataError where it can't be read."""
    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trusts_code())
    except (OSError, ValueError, KeyError) as error:
        if space_hint(error):
            raise
        raise _refusal(path, error) from error


def ordinary_tokens(config: PretrainedConfig, number: int) -> list[int]:
    """`number` different token ids from the middle of the vocabulary, as input for a trial run of a model.

    The first ids of a vocabulary are often special tokens, for which the output of a real model in bf16 is mostly
    rounding.
    """
    size: int = config.vocab_size
    step = max(1, size // 2 // number)
    tokens = [size // 4 + step * index for index in range(number + 1)]
    return [token for token in tokens if token != config.pad_token_id][:number]


def identity_of(path: str) -> str:
    """A text that identifies a model's weights: the fingerprint of the step that wrote it, else the hash of its files.

    A hub name is returned unchanged.
    """
    folder = Path(path)
    if not path or not folder.is_dir():
        return path
    record = Artifact.read(folder.parent)
    if record is not None and record.fingerprint:
        return f"{record.fingerprint}/{folder.name}"
    # By content, since another model may have files of the same sizes and modification times.
    files = sorted(file for file in folder.glob("*") if file.is_file())
    hashes = dict(zip((file.name for file in files), hash_files(files), strict=True))
    return digest_text(json.dumps(hashes))


def name_of(path: str) -> str:
    """A model's name in rows and on a terminal: that of the step that wrote it, else of its folder, or its hub name."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    record = Artifact.read(folder.absolute().parent)
    return record.step if record is not None and record.step else folder.absolute().name


def is_reward_model(path: str) -> bool:
    """Whether the model already has a trained score head. Raises DataError where its configuration can't be read."""
    return any("SequenceClassification" in name for name in read_config(path).architectures or [])


def check_is_policy(path: str) -> None:
    """Raises DataError for a reward model: without its own head, the model would generate noise."""
    if is_reward_model(path):
        raise DataError(f"{path} is a reward model, expected a policy; `alignloop score` takes reward models")


def check_is_reward_model(path: str) -> None:
    """Raises DataError for a model without a score head: a new one would give random scores."""
    if not is_reward_model(path):
        raise DataError(f"{path} is not a reward model, expected the model of a step reward_model, or a run with one")


def load_with_info(cls: ModelClass, path: str | Path, **options: Any) -> tuple[PreTrainedModel, LoadingInfo]:
    """transformers' from_pretrained, and which tensors it found missing, unexpected or of another shape."""
    # Other formats of weights are pickled, and opening a pickle runs the code in it.
    loaded = cls.from_pretrained(
        path, output_loading_info=True, use_safetensors=True, trust_remote_code=trusts_code(), **options
    )
    model, info = cast("tuple[PreTrainedModel, LoadingInfo]", loaded)
    for module in model.modules() if "quantization_config" in options else ():
        # On a CPU with AVX512-BF16 bitsandbytes repacks a 4-bit matrix when it is first evaluated. This fails for a
        # matrix that is narrower than a block of 64, and it rounds differently from every other CPU.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return model, info


@timing.part("load")
@progress.activity("loading the model")
def _load(
    cls: ModelClass,
    path: str,
    *,
    dtype: str,
    options: ModelOptions,
) -> PreTrainedModel:
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise DataError(f"{path} is not a model folder (no config.json)")
        check_model_config(Path(path))
    if is_adapter(path):
        return _load_with_adapter(cls, Path(path), dtype=dtype, options=options)
    try:
        torch_dtype = dtype if dtype == "auto" else getattr(torch, dtype)
        model, info = load_with_info(cls, path, dtype=torch_dtype, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if space_hint(error):
            raise
        raise _refusal(path, error) from error
    except RuntimeError as error:
        if "mismatched_sizes" not in str(error):
            raise
        raise DataError(f"{path} cannot be loaded as a model (its weights do not have config.json's sizes)") from error
    # A base model has no score head; it is newly initialised.
    missing = [name for name in sorted(map(str, info["missing_keys"])) if not name.startswith("score.")]
    if missing:
        raise DataError(f"{path} is not complete: it lacks {len(missing)} tensors, such as {missing[0]}")
    return aligned(model)


def _load_with_adapter(cls: ModelClass, folder: Path, *, dtype: str, options: ModelOptions) -> PreTrainedModel:
    """The base of the folder's adapter, with the adapter merged into it in memory."""
    if "quantization_config" in options:
        raise ConfigError(
            f"{folder} holds an adapter, which cannot be quantized: leave load_in_4bit and load_in_8bit out, or train "
            "it with at_end: merge"
        )
    base = AdapterBase.read(folder)
    check_base(folder, base)
    try:
        adapter = Adapter.read(folder)
    except UnsupportedAdapter as part:
        raise DataError(
            f"{folder} holds an adapter that cannot be merged in memory, because of its {part}; train it with "
            "at_end: merge"
        ) from None
    config = options.get("config") or read_config(str(folder))
    config.num_labels = options.get("num_labels", config.num_labels)
    own = {**options, "config": config, "revision": base.revision}
    own.pop("num_labels", None)
    model = _load(cls, base.resolved(folder), dtype=dtype, options=own)
    merge_into(model, adapter)
    return model


def check_base(folder: Path, base: AdapterBase) -> None:
    """Raises DataError where the model that the folder's adapter was trained on is missing, or is another one now."""
    path = base.resolved(folder)
    if Path(path).is_dir() and identity_of(path) != base.identity:
        raise DataError(
            f"{path} is not the model that the adapter in {folder} was trained on, as {BASE} records it; "
            "run the step again that trains the adapter"
        )
    if not Path(path).is_dir() and (path.startswith(".") or Path(path).is_absolute()):
        raise DataError(f"{folder} holds an adapter, and the model that it was trained on is missing: {path}")


def _refusal(path: str, error: Exception) -> UserError:
    if "trust_remote_code" in str(error):
        return ConfigError(f"{path} contains its own code, which is run only with trust_remote_code: true")
    return DataError(f"{path} cannot be loaded as a model ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def aligned(model: ModelType) -> ModelType:
    """Moves every CPU weight to an address that is a multiple of 64 bytes, in place; returns the model.

    safetensors maps a file into memory, where the weights start wherever its header ends. On a CPU the last bits of a
    matrix product depend on the alignment, so two copies of one model would give different outputs.
    """
    for weight in model.parameters():
        if weight.device.type == "cpu" and weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()  # torch allocates on such a boundary
    return model


def path_of(model: ModelConfig) -> str:
    """The model that a training stage starts from. Raises ConfigError where none is given."""
    if not model.model_name_or_path:
        raise ConfigError("model_name_or_path is missing: the folder of the model to start from")
    return model.model_name_or_path


def training_options(model: ModelConfig) -> ModelOptions:
    """Keyword arguments of from_pretrained for TRL's ModelConfig. Raises ConfigError where they can't train here."""
    if model.attn_implementation == "flex_attention" and not torch.cuda.is_available():
        raise ConfigError("attn_implementation=flex_attention has no gradients on a CPU; leave the key out there")
    options: ModelOptions = {"dtype": model.dtype or "float32", "revision": model.model_revision}
    attention = model.attn_implementation or (GPU_ATTENTION if torch.cuda.is_available() else None)
    if attention:
        options["attn_implementation"] = attention
    quantization = get_quantization_config(model)
    if quantization is not None:
        if is_deepspeed_zero3_enabled():
            raise ConfigError(f"{QUANTIZED_UNDER_ZERO3}; use profile zero2, or leave load_in_4bit and load_in_8bit out")
        options["quantization_config"] = quantization
    return options


@contextlib.contextmanager
def outside_zero3() -> Iterator[None]:
    """Inside, this process loads and constructs complete models. Under ZeRO-3 each of them would be divided among
    the processes, and a process that is alone in it would wait for the others forever."""
    reference = deepspeed_integration._hf_deepspeed_config_weak_ref
    deepspeed = None if reference is None else reference()
    if deepspeed is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(deepspeed)


def without_launcher() -> dict[str, str]:
    """The environment variables for a subprocess that must not join this process's group of ranks."""
    launcher_prefixes = ("ACCELERATE_", "TORCHELASTIC")
    rank_names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(launcher_prefixes) and name not in rank_names
    }
