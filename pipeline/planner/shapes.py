"""The sizes of a model by its configuration, without torch: parameters, arithmetic and the cache of keys and values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The sizes of models that shipped recipes name, for a machine that can't reach the hub: from their config.json.
_LLAMA_3 = {"model_type": "llama", "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}
KNOWN: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B": {
        **_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32
    },
    "meta-llama/Llama-3.1-70B": {
        **_LLAMA_3, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64
    },
}  # fmt: skip
HIDDEN, LAYERS = ("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer")
HEADS = ("num_attention_heads", "n_head")
NOT_GATED = ("gpt2", "gpt_neox", "gpt_neo", "opt", "bloom", "phi", "falcon")  # two matrices in a feed-forward layer


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer decoder."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    is_tied: bool = False
    is_gated: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape | None":
        """The shape of a config.json; None where it does not have the sizes of a decoder."""
        inner = config.get("text_config")
        config = inner if isinstance(inner, Mapping) else config
        hidden, layers, heads = (_number(config, *names) for names in (HIDDEN, LAYERS, HEADS))
        vocabulary = _number(config, "vocab_size")
        if not (hidden and layers and heads and vocabulary):
            return None
        return cls(
            hidden=hidden,
            layers=layers,
            heads=heads,
            key_heads=_number(config, "num_key_value_heads") or heads,
            head_size=_number(config, "head_dim") or max(1, hidden // heads),
            feed_forward=_number(config, "intermediate_size", "n_inner") or 4 * hidden,
            vocabulary=vocabulary,
            is_tied=bool(config.get("tie_word_embeddings", False)),
            is_gated=config.get("model_type") not in NOT_GATED,
        )

    @property
    def layer_matrices(self) -> int:
        """Weights in the matrix products of one layer."""
        attention = self.hidden * self.head_size * 2 * (self.heads + self.key_heads)
        return attention + (3 if self.is_gated else 2) * self.hidden * self.feed_forward

    @property
    def head(self) -> int:
        """Weights of the head, which are as many as those of the embeddings."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of a layer, with its two norms."""
        return self.layer_matrices + 2 * self.hidden

    def parameters(self, *, has_head: bool = True) -> int:
        """All parameters. A reward model has a score head of one row in place of the vocabulary's."""
        head = (0 if self.is_tied else self.head) if has_head else self.hidden
        return self.head + self.layers * self.layer + self.hidden + head

    @property
    def largest_layer(self) -> int:
        """Parameters that ZeRO-3 gathers for one module: a layer, or the embeddings."""
        return max(self.layer, self.head)

    def cache(self, tokens: float, *, width: int) -> float:
        """Bytes of the keys and values of so many tokens, of `width` bytes each."""
        return tokens * 2 * self.layers * self.key_heads * self.head_size * width

    def forward(self, *, tokens: float, logits: float, visible: float) -> float:
        """Floating point operations of a forward pass: `logits` positions have logits, and `visible` is the number of
        pairs of a token and one that it attends to. A backward pass takes twice as many."""
        products = 2 * self.layers * self.layer_matrices * tokens + 2 * self.head * logits
        return products + 4 * self.layers * self.heads * self.head_size * visible

    def adapters(self, rank: int, targets: Sequence[str] | None, *, dora: bool = False) -> int:
        """Parameters of LoRA's adapters on the matrices with these names, or on all where none is known. None: the
        query and value projections, PEFT's choice for Llama. DoRA adds a length for each output."""
        query, key = self.heads * self.head_size, self.key_heads * self.head_size
        sizes = {"q_proj": (self.hidden, query), "k_proj": (self.hidden, key), "v_proj": (self.hidden, key)}
        sizes |= {"o_proj": (query, self.hidden), "up_proj": (self.hidden, self.feed_forward)}
        sizes |= {"down_proj": (self.feed_forward, self.hidden)}
        sizes |= {"gate_proj": (self.hidden, self.feed_forward)} if self.is_gated else {}
        chosen = [size for name, size in sizes.items() if name in (targets or ("q_proj", "v_proj"))]
        return self.layers * sum(rank * (i + o) + (o if dora else 0) for i, o in chosen or sizes.values())


def _number(config: Mapping[str, Any], *names: str) -> int:
    """The first of these keys that is a whole number; 0 where none is."""
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0), 0)
