"""The size that a model's config.json declares, checked before any memory is spent on it. Needs no torch.

A config.json may ask for more memory than any machine has, and a tokenizer may belong to another model.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_schemas.errors import DataError
from data_schemas.files import read_json
from data_schemas.limits import Limits, problem_of
from data_schemas.text import nearest, shown

LAYERS = Limits(minimum=1, maximum=10_000)
WIDTH = Limits(minimum=1, maximum=10_000_000)
LIMITS = {
    "num_hidden_layers": LAYERS,
    "n_layer": LAYERS,
    "num_layers": LAYERS,
    "hidden_size": WIDTH,
    "n_embd": WIDTH,
    "intermediate_size": WIDTH,
    "num_attention_heads": WIDTH,
    "vocab_size": Limits(minimum=1, maximum=100_000_000),
}
LAYER_NAMES, WIDTH_NAMES = ("num_hidden_layers", "n_layer", "num_layers"), ("hidden_size", "n_embd", "d_model")
MAX_PARAMETERS_A_BYTE = 8  # weights of four bits have two; the estimate is a lower bound, and may be rough
LARGEST_TOKENIZER = 64 * 2**20  # bytes of a tokenizer.json that is read for its number of tokens


def check_model_config(folder: Path, *, where: str = "") -> None:
    """Raises DataError where config.json is no JSON object, has a size that no model has, describes a much larger model
    than the folder's weights, or names a type of model that transformers does not know."""
    config = read_json(folder / "config.json")
    if config is None:
        raise DataError(f"{_named(folder, where)}: config.json is not a JSON object; expected a model's configuration")
    place = f"{_named(folder, where)}: config.json"
    check_sizes(config, place=place)
    _check_against_weights(config, folder, place=place)
    _check_type(config, place=place)


def check_sizes(config: Mapping[str, Any], *, place: str) -> None:
    """Raises DataError where a number of a model's configuration is beyond what any model has."""
    for one in (config, *_inner(config)):
        for name, limits in LIMITS.items():
            value = one.get(name)
            if isinstance(value, int | float) and (expected := problem_of(value, limits)):
                raise DataError(f"{place}: {name}={shown(value)}: expected {expected}")


def check_fits(config: Mapping[str, Any], memory: int, *, place: str) -> None:
    """Raises DataError where the weights of a new model, in float32, have more bytes than the machine's memory."""
    check_sizes(config, place=place)
    least = 4 * least_parameters(config)
    if least > memory:
        raise DataError(
            f"{place}: the weights of such a model have at least {least:.1e} bytes, and this machine's memory has "
            f"{memory:.1e}; lower its sizes"
        )


def least_parameters(config: Mapping[str, Any]) -> int:
    """A lower bound of the parameters: embeddings, and one square matrix a layer. 0 where the sizes are not known."""
    config = next((one for one in (config, *_inner(config)) if _number(one, WIDTH_NAMES)), config)
    width, layers = _number(config, WIDTH_NAMES), _number(config, LAYER_NAMES)
    return width * (_number(config, ("vocab_size",)) + layers * width)


def _check_against_weights(config: Mapping[str, Any], folder: Path, *, place: str) -> None:
    # An adapter says nothing of its size: its base, which config.json describes, is elsewhere.
    weights = [path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_")]
    num_bytes = sum(path.stat().st_size for path in weights)
    least = least_parameters(config)
    if num_bytes and least > MAX_PARAMETERS_A_BYTE * num_bytes:
        raise DataError(
            f"{place} describes a model of at least {least:.1e} parameters, but the weights beside it have "
            f"{num_bytes:.1e} bytes; restore the config.json that was saved with these weights"
        )


def _check_type(config: Mapping[str, Any], *, place: str) -> None:
    """The type must be one of transformers', unless the model brings its own code, which is another rule's matter."""
    kind = config.get("model_type")
    if config.get("auto_map"):
        return
    if not isinstance(kind, str) or not kind:
        raise DataError(f"{place} has no model_type; expected the type of its architecture, as llama")
    found = importlib.util.find_spec("transformers")
    models = Path(found.origin).parent / "models" if found and found.origin else None
    if models is None or (models / kind.replace("-", "_")).is_dir():
        return
    # A few types have no folder. The lists are searched as text: importing transformers takes a second.
    lists = [path.read_text(encoding="utf-8", errors="replace") for path in (models / "auto").glob("*.py")]
    if not any(f'"{kind}"' in text for text in lists):
        hint = nearest(kind, sorted(path.name for path in models.iterdir() if path.is_dir()))
        raise DataError(
            f"{place}: model_type={shown(kind)} is no type of model that the installed transformers knows{hint}"
            f"{'' if hint else '; use a model of a known type, or a newer transformers'}"
        )


def check_tokenizer_size(folder: Path, *, where: str = "") -> None:
    """Raises DataError where the tokenizer's vocabulary, without added tokens, has more entries than the embeddings.

    Such a tokenizer is that of another model. For tokens that were added, prepare_base adds rows.
    """
    config, path = read_json(folder / "config.json") or {}, folder / "tokenizer.json"
    num_rows = next((rows for one in (config, *_inner(config)) if (rows := _number(one, ("vocab_size",)))), 0)
    if not num_rows or not path.is_file() or path.stat().st_size > LARGEST_TOKENIZER:
        return
    try:
        vocabulary = json.loads(path.read_bytes())["model"]["vocab"]
        num_tokens = len(vocabulary)
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        return  # whoever loads it reports why it can't be read
    if num_tokens > num_rows:
        raise DataError(
            f"{_named(folder, where)}: the tokenizer has {num_tokens} tokens, and config.json says that the embeddings "
            f"have vocab_size={num_rows} rows; expected a row for each token: use the tokenizer of this model"
        )


def _named(folder: Path, where: str) -> str:
    """The folder, after the key that gives it where that is known."""
    return f"{where}={folder}" if where else str(folder)


def _inner(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The configuration of the text model inside one of several kinds of input."""
    return [inner for inner in [config.get("text_config")] if isinstance(inner, Mapping)]


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    found = (config.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), 0)
