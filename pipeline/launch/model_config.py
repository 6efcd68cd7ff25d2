"""What a model's config.json says of its size, checked before any memory is spent on it."""

from pathlib import Path

from data_schemas.errors import DataError
from data_schemas.files import read_json
from data_schemas.limits import Limits, problem_of
from data_schemas.text import shown

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


def check_model_config(folder: Path, *, where: str) -> None:
    """Raises DataError where config.json is no JSON object, or has a size that no model has."""
    config = read_json(folder / "config.json")
    if config is None:
        raise DataError(f"{where}={folder}: config.json is not a JSON object; expected the configuration of a model")
    for name, limits in LIMITS.items():
        value = config.get(name)
        if isinstance(value, int | float) and (expected := problem_of(value, limits)):
            raise DataError(f"{where}={folder}: config.json: {name}={shown(value)}: expected {expected}")
