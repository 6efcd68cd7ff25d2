"""The architectures of a grid: the recipe's at other widths, with its head size and its ratio of width to depth."""

from dataclasses import dataclass
from pathlib import Path

from data_schemas.errors import ConfigError
from data_schemas.files import read_json
from data_schemas.stage_keys import Keys, Values
from pipeline.planner.shapes import HEADS, HIDDEN, LAYERS, Shape

FEED_FORWARD, KEY_HEADS = ("intermediate_size", "n_inner"), ("num_key_value_heads",)


@dataclass(frozen=True)
class Size:
    """One architecture of a grid."""

    width: int
    architecture: Keys
    shape: Shape

    @property
    def parameters(self) -> int:
        """All parameters but those of an input embedding that is not the head too: a token uses one row of it."""
        return matrix_parameters(self.shape)

    def flops_per_token(self, block_size: int) -> float:
        """Of training on blocks of so many tokens: a forward pass, and a backward pass of twice as many."""
        return flops_per_token(self.shape, block_size)


def matrix_parameters(shape: Shape) -> int:
    return shape.parameters() - (0 if shape.is_tied else shape.head)


def flops_per_token(shape: Shape, block_size: int) -> float:
    """Operations of training on one token. Attention is that of a block with one document."""
    return 3 * shape.forward(tokens=1, logits=1, visible=(block_size + 1) / 2)


def at_width(architecture: Values, width: int, *, vocabulary: int, where: str) -> Size:
    """The architecture at another width. Heads keep their size, feed-forward layers and depth their ratio to the width.

    Raises ConfigError for an architecture without sizes, and for a width that is no multiple of a head's.
    """
    base = Shape.of({"vocab_size": vocabulary, **architecture})
    if base is None:
        raise ConfigError(f"{where} has no sizes of a decoder; expected hidden_size, num_hidden_layers and so on")
    if width % base.head_size:
        raise ConfigError(
            f"--width {width} is no multiple of {base.head_size}, the size of an attention head in {where}"
        )
    heads = width // base.head_size
    if heads * base.key_heads % base.heads:
        raise ConfigError(
            f"--width {width} has {heads} attention heads, which cannot share key heads as {where} does "
            f"({base.heads} and {base.key_heads}); use a multiple of {base.head_size * base.heads // base.key_heads}"
        )
    sizes = {
        HIDDEN: width,
        LAYERS: max(1, int(base.layers * width / base.hidden + 0.5)),
        HEADS: heads,
        KEY_HEADS: heads * base.key_heads // base.heads,
        FEED_FORWARD: round(base.feed_forward * width / base.hidden),
    }
    scaled = dict(architecture)
    for names, value in sizes.items():
        given = [name for name in names if architecture.get(name) is not None]
        scaled |= dict.fromkeys(given, value)
    shape = Shape.of({"vocab_size": vocabulary, **scaled})
    assert shape is not None
    return Size(width, scaled, shape)


def vocabulary_of(keys: Values, *, where: str) -> int:
    """The tokens of the tokenizer of a pretraining. Raises ConfigError for one that can't be read on this machine."""
    given = keys.get("tokenizer_name_or_path")
    if given is None:
        return int(keys["vocab_size"])
    content = read_json(Path(given) / "tokenizer.json") or {}
    known = (content.get("model") or {}).get("vocab")
    if not known:
        raise ConfigError(f"{where}.tokenizer_name_or_path={given!r}: expected a folder with a tokenizer.json")
    added = {token.get("content") for token in content.get("added_tokens") or []}
    return len(added.union(known if isinstance(known, dict) else [piece for piece, *_ in known]))
