"""The token contract: what two stages must have in common so that they read a text as the same tokens.

The contract is the tokenizer, the chat template and the special tokens. It is recorded with every model, and with rows
that contain a policy's answers. Before a training stage trains it compares the contracts of its inputs with its own.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError
from data_schemas.files import digest_record
from data_schemas.sources import Source, SourceValue
from engine.tokens.reward_template import plain_template

NUM_CONTEXT_CHARACTERS = 30  # shown on both sides of the first difference between two templates
CALL_STATE = ("padding", "truncation")  # tokenizer.json keeps how the tokenizer was last called


def backend_json(tokenizer: PreTrainedTokenizerBase) -> str:
    """The vocabulary and rules of a fast tokenizer as the text of its tokenizer.json."""
    backend: Tokenizer = tokenizer.backend_tokenizer  # pyright: ignore[reportAssignmentType] - fast tokenizers have it
    return backend.to_str()


def contract_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The hash of the tokenizer's vocabulary and rules, the text of its chat template, its special tokens by name."""
    rules = {name: rule for name, rule in json.loads(backend_json(tokenizer)).items() if name not in CALL_STATE}
    digest = digest_record(rules)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return {"tokenizer": digest, "chat_template": plain_template(str(tokenizer.chat_template or ""))} | special


def check_inputs(tokenizer: PreTrainedTokenizerBase, model: str, inputs: Mapping[str, Sequence[SourceValue]]) -> None:
    """Raises ConfigError naming an input whose contract is not the model's, and the differences.

    `inputs`: key -> files or folders. An input without a record (a user's own rows, a hub name) is not checked.
    """
    expected = contract_of(tokenizer)
    for key, sources in inputs.items():
        for path in (Source.of(source).path for source in sources):
            record = Artifact.read(Path(path).parent) if Path(path).exists() else None
            if record is not None and record.contract and record.contract != expected:
                raise ConfigError(
                    f"{key} {path} was made with another contract than {model}: "
                    f"{'; '.join(contract_differences(record.contract, expected))}. "
                    "Use a model and rows of one family, or set other_contract: true to train on them all the same"
                )


def contract_differences(one: Mapping[str, str], other: Mapping[str, str]) -> Iterator[str]:
    """A few words on each entry that differs; for a template, the text around the first difference."""
    for name in sorted(one.keys() | other.keys()):
        first, second = one.get(name, ""), other.get(name, "")
        if first == second:
            continue
        if name == "tokenizer":
            yield f"tokenizer {first[:8]} and {second[:8]}"
        elif name == "chat_template":
            at = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), -1)
            at = at if at >= 0 else min(len(first), len(second))
            context = slice(max(0, at - NUM_CONTEXT_CHARACTERS), at + NUM_CONTEXT_CHARACTERS)
            yield f"chat_template from character {at}: {first[context]!r} and {second[context]!r}"
        else:
            yield f"{name} {first!r} and {second!r}"
