"""Adds tokens for another language or domain to a byte-level BPE tokenizer, behind those it has.

The corpus is cut into the tokenizer's own pieces, and byte-pair encoding (arXiv 1508.07909) goes on from there: the new
merges come after all old ones, so a text is first cut as before and its pieces are joined afterwards. Old tokens, the
special ones included, keep their ids. Llama 3 did so with 28,000 tokens for other languages (arXiv 2407.21783, 3.2).
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase

from data_schemas.errors import ConfigError
from engine.runtime import progress
from engine.tokens.contract import backend_json

FIRST_SYMBOL = 0x10000  # the character of token 0 where pieces are merged; no character from here on is white space
SPARE = 1.25  # merges are learnt for this share of the tokens that are asked for: some join to a text that is a token
LEAST_COUNT = 2  # times that two pieces are neighbours in the corpus, to become a token
BATCH = 1000  # texts
Pieces = dict[int, list[int]]  # id of a new token -> ids of the old tokens that its text was cut into


@dataclass(frozen=True)
class Extension:
    tokenizer: PreTrainedTokenizerBase
    pieces: Pieces


@progress.activity("extending the tokenizer")
def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, num_tokens: int) -> Extension:
    """The tokenizer with `num_tokens` more tokens, learnt from the texts. The same texts give the same tokens.

    Raises ConfigError for a tokenizer that is not a byte-level BPE, and for texts with too few repeated pieces.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer  # pyright: ignore[reportAssignmentType] - fast tokenizers have it
    rules = json.loads(backend_json(tokenizer))
    _check_kind(rules, tokenizer.name_or_path)
    model: dict[str, Any] = rules["model"]
    vocabulary: dict[str, int] = model["vocab"]
    # Without its entry here, an added token gets another id when a file with ids after it is loaded.
    vocabulary |= {token["content"]: token["id"] for token in rules["added_tokens"]}
    names = {id: name for name, id in vocabulary.items()}
    merges = _learn_merges(_words(backend, texts, {token["id"] for token in rules["added_tokens"]}), num_tokens)
    next_id, pieces = max(names) + 1, Pieces()
    for left, right in merges:
        if len(pieces) == num_tokens:
            break
        joined = left + right
        text = "".join(names[id] for id in joined)
        model["merges"].append(["".join(names[id] for id in side) for side in (left, right)])
        if text not in vocabulary:
            vocabulary[text] = next_id
            pieces[next_id] = joined
            next_id += 1
    if len(pieces) < num_tokens:
        raise ConfigError(
            f"extend_tokenizer has repeated pieces for {len(pieces)} new tokens, expected num_new_tokens={num_tokens}: "
            "give more texts, or fewer tokens"
        )
    return Extension(with_rules(tokenizer, rules), pieces)


def tokens_per_character(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return sum(map(len, encoded)) / sum(map(len, texts))  # pyright: ignore[reportArgumentType]


def _check_kind(rules: dict[str, Any], name: str) -> None:
    model = rules["model"]
    kind = f"a {model['type']} tokenizer" if model["type"] != "BPE" else "BPE on characters"
    if model["type"] != "BPE" or "ByteLevel" not in json.dumps([rules["pre_tokenizer"], rules["decoder"]]):
        raise ConfigError(
            f"extend_tokenizer: {name} has {kind}, expected byte-level BPE, as Llama 3, Qwen and SmolLM2 have: "
            "leave extend_tokenizer out"
        )


def _words(backend: Tokenizer, texts: Sequence[str], added: set[int]) -> Iterator[str]:
    """Each word of the texts, as one character for each of its pieces. No merge crosses a word's end."""
    for start in range(0, len(texts), BATCH):
        for encoding in backend.encode_batch(list(texts[start : start + BATCH]), add_special_tokens=False):
            yield " ".join(_words_of(encoding, added))


def _words_of(encoding: Encoding, added: set[int]) -> Iterator[str]:
    word, last = "", None
    for id, number in zip(encoding.ids, encoding.word_ids, strict=True):
        if word and (number != last or id in added):
            yield word
            word = ""
        if id not in added:
            word, last = word + chr(FIRST_SYMBOL + id), number
    if word:
        yield word


def _learn_merges(words: Iterator[str], num_tokens: int) -> list[tuple[list[int], list[int]]]:
    """The pairs that byte-pair encoding joins, the most frequent first, each side as the ids of its old pieces."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue] - a setter
    lines = list(words)
    alphabet = len(set("".join(lines)) - {" "})
    size = alphabet + int(num_tokens * SPARE) + 1
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=LEAST_COUNT, show_progress=False)
    bpe.train_from_iterator(lines, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [(_ids(left), _ids(right)) for left, right in merges]


def _ids(symbols: str) -> list[int]:
    return [ord(symbol) - FIRST_SYMBOL for symbol in symbols]


def with_rules(tokenizer: PreTrainedTokenizerBase, rules: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer read back from its files with other rules, so that they are what a later step reads."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for name in ("vocab.json", "merges.txt"):  # of the old rules
            (Path(folder) / name).unlink(missing_ok=True)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(rules, ensure_ascii=False), encoding="utf-8")
        extended = type(tokenizer).from_pretrained(folder)
    extended.name_or_path = tokenizer.name_or_path
    return extended
