"""What two stages must agree on to read a text in the same way: tokenizer, chat template, special tokens.

It stands in the record of every model, and of rows that a policy's answers are in. A training stage compares it with
those of its inputs before it trains.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError
from data_schemas.files import digest_record

AROUND = 30  # characters that are shown on both sides of a difference


def contract_of(tokenizer: Any) -> dict[str, str]:
    """The hash of the tokenizer's vocabulary and rules, its template as it stands, and its special tokens by name."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("padding", "truncation"):  # what was done last, not what it is
        rules.pop(name, None)
    digest = digest_record(rules)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return {"tokenizer": digest, "chat_template": str(tokenizer.chat_template or "")} | special


def check_inputs(tokenizer: Any, model: str, inputs: Mapping[str, Sequence[str]]) -> None:
    """Raises ConfigError for an input that was made under another contract than the model's, and shows where.

    `inputs`: key -> files or folders. Those without a record (people's rows, hub names) have none to differ from.
    """
    mine = contract_of(tokenizer)
    for key, paths in inputs.items():
        for path in paths:
            record = Artifact.read(Path(path).parent) if Path(path).exists() else None
            if record is not None and record.contract and record.contract != mine:
                raise ConfigError(
                    f"{key} {path} was made with another contract than {model}: "
                    f"{'; '.join(contract_differences(record.contract, mine))}. "
                    "Take a model and rows of one family, or set "
                    "other_contract: true to train on them all the same"
                )


def contract_differences(one: Mapping[str, str], other: Mapping[str, str]) -> Iterator[str]:
    """What differs, a few words each; of a template the first place."""
    for name in sorted(one.keys() | other.keys()):
        first, second = one.get(name, ""), other.get(name, "")
        if first == second:
            continue
        if name == "tokenizer":
            yield f"tokenizer {first[:8]} and {second[:8]}"
        elif name == "chat_template":
            at = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), -1)
            at = at if at >= 0 else min(len(first), len(second))
            place = slice(max(0, at - AROUND), at + AROUND)
            yield f"chat_template from character {at}: {first[place]!r} and {second[place]!r}"
        else:
            yield f"{name} {first!r} and {second!r}"
