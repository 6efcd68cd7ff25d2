"""Loading and checking models and tokenizers: one place for dtype, pad token and what a model folder must hold."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig, get_quantization_config

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError
from data_schemas.files import digest_text, hash_files
from engine.runtime import timing
from engine.runtime.process import trusts_code

ALIGNMENT = 64  # bytes


@timing.part("load")
def read_tokenizer(path: str, *, revision: str = "main") -> PreTrainedTokenizerBase:
    """The tokenizer as it came. Raises ConfigError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trusts_code())
    except Exception as error:  # of a damaged file the library raises what it comes by
        raise ConfigError(f"{path} has no tokenizer that can be read ({_first_line(error)})") from error


def load_tokenizer(path: str, *, needs_template: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a prepared folder: with a chat template and a pad token that is not the end token."""
    tokenizer = read_tokenizer(path)
    if needs_template:
        way_out = "run stages/prepare_base.py on it first"
        if not tokenizer.chat_template:
            raise ConfigError(f"{path} has no chat template; {way_out}")
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
            raise ConfigError(f"{path} has no pad token of its own (pad == end token); {way_out}")
    return tokenizer


def load_causal(path: str, *, dtype: str = "auto", **options: Any) -> PreTrainedModel:
    """A causal language model; `dtype` is a torch dtype's name or auto (as it was saved)."""
    return _load(AutoModelForCausalLM, path, dtype=dtype, **options)


def load_reward(path: str, *, dtype: str = "auto", **options: Any) -> PreTrainedModel:
    """A sequence classifier with one score: the reward model's form."""
    return _load(AutoModelForSequenceClassification, path, dtype=dtype, num_labels=1, **options)


def read_config(path: str, *, revision: str = "main") -> PretrainedConfig:
    """A model's configuration. Raises ConfigError where there is none that can be read."""
    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trusts_code())
    except (OSError, ValueError, KeyError) as error:
        raise _refusal(path, error) from error


def ordinary_tokens(config: PretrainedConfig, number: int) -> list[int]:
    """Different tokens from the middle of the vocabulary, for trials of a model.

    The first ones are special in many: of a row of them a real model in bf16 says what its rounding makes it say.
    """
    size: int = config.vocab_size
    step = max(1, size // 2 // number)
    tokens = [size // 4 + step * place for place in range(number + 1)]
    return [token for token in tokens if token != config.pad_token_id][:number]


def identity_of(path: str) -> str:
    """What tells a model from others: the fingerprint of the step that made it, else its files; a hub name as it is."""
    folder = Path(path)
    if not path or not folder.is_dir():
        return path
    record = Artifact.read(folder.parent)
    if record is not None and record.fingerprint:
        return f"{record.fingerprint}/{folder.name}"
    # By content: a size and a time of change may be another model's too.
    files = sorted(file for file in folder.glob("*") if file.is_file())
    named = dict(zip((file.name for file in files), hash_files(files), strict=True))
    return digest_text(json.dumps(named))


def is_reward_model(path: str) -> bool:
    """Whether the model has a trained score head already."""
    kinds = AutoConfig.from_pretrained(path, trust_remote_code=trusts_code()).architectures or []
    return any("SequenceClassification" in kind for kind in kinds)


@timing.part("load")
def _load(cls: Any, path: str, *, dtype: str, **options: Any) -> PreTrainedModel:
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ConfigError(f"{path} is not a model folder (no config.json)")
    # Other formats of weights are pickled: opening them runs what is written there.
    safe = {"use_safetensors": True, "trust_remote_code": trusts_code()}
    try:
        dtype = dtype if dtype == "auto" else getattr(torch, dtype)
        model, info = cls.from_pretrained(path, dtype=dtype, output_loading_info=True, **safe, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _refusal(path, error) from error
    except RuntimeError as error:
        if "mismatched_sizes" not in str(error):
            raise
        raise ConfigError(f"{path} cannot be loaded as a model (its weights are not of config.json's sizes)") from error
    missing = [name for name in sorted(info["missing_keys"]) if not name.startswith("score.")]  # the head: made anew
    if missing:
        raise ConfigError(f"{path} is not whole: it misses {len(missing)} tensors, such as {missing[0]}")
    return aligned(model)


def _refusal(path: str, error: Exception) -> ConfigError:
    if "trust_remote_code" in str(error):
        return ConfigError(f"{path} brings code of its own; it is not run unless trust_remote_code: true")
    return ConfigError(f"{path} cannot be loaded as a model ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def aligned(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every weight on a boundary of 64 bytes, in place.

    A file's weights begin wherever its header ends, and on a CPU a matrix product of the same numbers gives other last
    bits at another place: two copies of one model would not say the same.
    """
    for weight in model.parameters():
        if weight.device.type == "cpu" and weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()  # torch's own memory begins on such a boundary
    return model


def path_of(model: ModelConfig) -> str:
    """The model a training stage starts from; ConfigError where none is given."""
    if not model.model_name_or_path:
        raise ConfigError("model_name_or_path is missing: the folder of the model to start from")
    return model.model_name_or_path


def training_options(model: ModelConfig) -> dict[str, Any]:
    """Keyword arguments of from_pretrained that TRL's ModelConfig asks for; ConfigError where none can train."""
    if model.attn_implementation == "flex_attention" and not torch.cuda.is_available():
        raise ConfigError("attn_implementation=flex_attention has no gradients on a CPU; leave it out there")
    options: dict[str, Any] = {"dtype": model.dtype or "float32", "revision": model.model_revision}
    if model.attn_implementation:
        options["attn_implementation"] = model.attn_implementation
    quantization = get_quantization_config(model)
    if quantization is not None:
        options["quantization_config"] = quantization
    return options


def without_launcher() -> dict[str, str]:
    """Our environment for a process that is no rank of ours."""
    of_launcher = ("ACCELERATE_", "TORCHELASTIC")
    of_rank = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {
        name: value for name, value in os.environ.items() if not name.startswith(of_launcher) and name not in of_rank
    }
