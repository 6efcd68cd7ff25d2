"""How many tokens rows have: a sample of a step's rows, tokenized as the step does it.

Where the tokenizer can't be read, four characters count as a token.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data_schemas.cost_request import RowFiles, RowLengths, RowSample
from data_schemas.rows import Conversation, Document, Message, PreferencePair, Prompt
from engine.tokens.template import encode_prompt
from stages import reward_model, sft

MAX_SAMPLES = 2000
CHARACTERS_A_TOKEN, TOKENS_A_TURN = 4, 4  # without a tokenizer


def row_lengths(asked: RowFiles, tokenizer: PreTrainedTokenizerBase | None, problem: str = "") -> RowLengths:
    """The number of rows of the files, and the tokens of at most MAX_SAMPLES of them. Without a tokenizer, `problem`
    says why."""
    lines = [line for file in asked["files"] for line in Path(file).read_bytes().splitlines() if line.strip()]
    step = max(1, -(-len(lines) // MAX_SAMPLES))
    chosen = lines[::step]
    samples = [sample for line in chosen for sample in _samples(asked["kind"], line, tokenizer)]
    count = round(len(lines) * len(samples) / max(1, len(chosen)))
    return {"count": count, "samples": samples, "problem": problem}


def _samples(kind: str, line: bytes, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[RowSample]:
    if kind == "documents":
        text = Document.model_validate_json(line).text
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"]) if tokenizer else _rough(text)
        yield _one(length + 1, length + 1)  # with the end token after each text
    elif kind == "conversations":
        row = Conversation.model_validate_json(line)
        if tokenizer is None:
            trained = sum(_of_turn(turn) for turn in row.messages if turn.role == "assistant")
            yield _one(sum(map(_of_turn, row.messages)), trained)
            return
        encode, _ = sft.encoder(tokenizer, sft.SFTArguments(train_data=[]))
        for dialog in encode(row):
            for ids, flags in zip(dialog.sequences, dialog.trained, strict=True):
                yield _one(len(ids), sum(flags))
    elif kind == "prompts":
        prompt = Prompt.model_validate_json(line)
        length = sum(map(_of_turn, prompt.prompt))
        if tokenizer is not None:
            length = len(encode_prompt(tokenizer, prompt.prompt, tools=prompt.tools))
        yield _one(length, 0)
    else:
        yield _of_pair(PreferencePair.model_validate_json(line), tokenizer)


def _of_pair(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase | None) -> RowSample:
    """The answers of a pair or ranking, which share their prompt and the words that they begin with."""
    if tokenizer is None:
        branches = [sum(map(_of_turn, answer)) for answer in pair.ranking]
        return {"shared": sum(map(_of_turn, pair.prompt)), "branches": branches, "trained": sum(branches)}
    encode, _ = reward_model.encoder(tokenizer, reward_model.RewardModelArguments(train_data=[]))
    sequences = [ids for row in encode(pair) for ids in row.sequences]
    shared = common_beginning(sequences)
    branches = [len(ids) - shared for ids in sequences]
    return {"shared": shared, "branches": branches, "trained": sum(branches)}


def _one(length: int, trained: int) -> RowSample:
    return {"shared": 0, "branches": [length], "trained": trained}


def _of_turn(turn: Message) -> int:
    return _rough(turn.content) + TOKENS_A_TURN


def _rough(text: str) -> int:
    return -(-len(text) // CHARACTERS_A_TOKEN)


def common_beginning(sequences: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all sequences begin with."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda tokens: len(set(tokens)) == 1, columns))
