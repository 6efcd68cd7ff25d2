"""The rows that all sides get, drawn so that padding costs as much in them as in the complete file.

One step is measured out of the thousands of an epoch. Out of many random draws the one is taken whose padded tokens and
whose own tokens a row are nearest to the file's mean; the report shows both. `grouped` has batches that length-grouped
sampling forms from the complete file, since a few rows would not give any.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_schemas.reading import read_conversations, read_pairs, write_rows
from data_schemas.rows import Conversation, PreferencePair, Prompt

NUM_DRAWS = 400
MEGABATCH = 50  # batches that length-grouped sampling sorts at a time (transformers, get_length_grouped_indices)
MAX_TOKENS = 1024  # tokens: TRL's default max_length, beyond which it truncates


class Item(NamedTuple):
    """Sizes of a row, in tokens."""

    longest: int  # length of its longest sequence
    sequences: int  # how many it has: two for a pair
    own: int  # tokens without padding, with the shared beginning of its sequences counted once


def padded(items: Sequence[Item], batch: int) -> int:
    """Tokens, padding included, of the batches of items in this order; a batch is as wide as its longest sequence."""
    batches = [items[start : start + batch] for start in range(0, len(items), batch)]
    return sum(max(item.longest for item in rows) * sum(item.sequences for item in rows) for rows in batches)


def grouped(items: Sequence[Item], batch: int, generator: random.Random) -> list[list[int]]:
    """The full batches that length-grouped sampling forms, as indices of `items`."""
    order = generator.sample(range(len(items)), len(items))
    size = max(1, min(len(items) // (batch * 4), MEGABATCH)) * batch
    megabatches = [order[start : start + size] for start in range(0, len(order), size)]
    ordered = [index for part in megabatches for index in sorted(part, key=lambda index: -items[index].longest)]
    return [ordered[start : start + batch] for start in range(0, len(ordered) - batch + 1, batch)]


def draw(
    items: Sequence[Item], *, steps: int, batch: int, seed: int, by_length: bool = False
) -> tuple[list[int], dict[str, float]]:
    """Draws `steps` batches.

    Returns the indices of their rows, batch after batch, and the padded and own tokens a row, of these and of all rows.
    """
    generator = random.Random(seed)
    own_of_all = sum(item.own for item in items) / len(items)
    padded_by_order = []
    for _ in range(20):
        order = (
            [index for indices in grouped(items, batch, generator) for index in indices]
            if by_length
            else generator.sample(range(len(items)), len(items) // batch * batch)
        )
        padded_by_order.append(padded([items[index] for index in order], batch) / len(order))
    padded_of_all = sum(padded_by_order) / len(padded_by_order)

    def distance(indices: Sequence[int]) -> float:
        drawn = [items[index] for index in indices]
        return abs(padded(drawn, batch) / len(drawn) / padded_of_all - 1) + abs(
            sum(item.own for item in drawn) / len(drawn) / own_of_all - 1
        )

    draws = []
    for _ in range(NUM_DRAWS):
        if by_length:
            batches = generator.sample(grouped(items, batch, generator), steps)
            draws.append([index for indices in batches for index in indices])
        else:
            draws.append(generator.sample(range(len(items)), steps * batch))
    best = min(draws, key=distance)
    drawn = [items[index] for index in best]
    facts = {
        "rows": len(best),
        "padded": round(padded(drawn, batch) / len(drawn), 1),
        "own": round(sum(item.own for item in drawn) / len(drawn), 1),
        "padded_of_all": round(padded_of_all, 1),
        "own_of_all": round(own_of_all, 1),
    }
    return best, facts


def read_dialogs(path: Path) -> list[Conversation]:
    """The dialogs of a file. For self-instruct's seed tasks, the first instance of each."""
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0]) if path.suffix == ".jsonl" else {}
    if "instances" not in first:
        return read_conversations([path], on_bad_row="set_aside").rows
    tasks = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    dialogs = []
    for task in tasks:
        instance = task["instances"][0]
        question = "\n".join(filter(None, [task["instruction"], instance["input"]]))
        if instance["output"].strip():
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": instance["output"]}]
            dialogs.append(Conversation.model_validate({"messages": turns}))
    return dialogs


def shared_length(chosen: Sequence[int], rejected: Sequence[int]) -> int:
    """Number of tokens that both begin with; at least one token of each is left out of it."""
    limit = min(len(chosen), len(rejected)) - 1
    return next((index for index in range(limit) if chosen[index] != rejected[index]), limit)


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Writes all rows into the job's folder. Returns their sizes, for the report."""
    from engine.models.loading import load_tokenizer
    from engine.tokens.template import encode_dialog, encode_prompt
    from stages import dpo

    folder, batch = Path(job["folder"]), job["batch"]
    tokenizer = load_tokenizer(job["base"])
    encode, _ = dpo.encoder(tokenizer, dpo.DPOArguments(train_data=[], mask_formatting=False))
    pairs: list[PreferencePair] = []
    tokens: list[tuple[list[int], list[int]]] = []
    for row in read_pairs([job["pairs"]], on_bad_row="set_aside").rows:
        row = row.model_copy(update={"strength": None})
        (encoded,) = encode(row)
        both = (encoded.prompt_ids + encoded.chosen_ids, encoded.prompt_ids + encoded.rejected_ids)
        if max(map(len, both)) <= MAX_TOKENS:
            pairs.append(row)
            tokens.append(both)
    items = []
    for chosen, rejected in tokens:
        shared = shared_length(chosen, rejected)
        items.append(Item(max(len(chosen), len(rejected)), 2, len(chosen) + len(rejected) - shared))
    facts: dict[str, dict[str, float]] = {}
    drawn_groups: set[str] = set()
    for name, by_length in (("pairs", False), ("grouped", True)):
        indices, facts[name] = draw(items, steps=job["steps"], batch=batch, seed=1, by_length=by_length)
        write_rows(folder / f"{name}.jsonl", [pairs[index] for index in indices])
        drawn_groups |= {pairs[index].group_id for index in indices}
    rest = sorted(
        (index for index, row in enumerate(pairs) if row.group_id not in drawn_groups),
        key=lambda index: (items[index].longest, index),
    )
    write_rows(folder / "held_out.jsonl", [pairs[index] for index in rest[:2]])

    chosen_dialogs = [Conversation(messages=[*row.prompt, *row.chosen]) for row in pairs]
    dialogs = [*chosen_dialogs, *(row for path in job["instructions"] for row in read_dialogs(Path(path)))]
    lengths = [len(encode_dialog(tokenizer, row.messages).ids) for row in dialogs]
    kept = [index for index, length in enumerate(lengths) if length <= MAX_TOKENS]
    dialogs, lengths = [dialogs[index] for index in kept], [lengths[index] for index in kept]
    indices, facts["dialogs"] = draw(
        [Item(length, 1, length) for length in lengths], steps=job["steps"], batch=batch, seed=1
    )
    write_rows(folder / "dialogs.jsonl", [dialogs[index] for index in indices])
    drawn_groups = {dialogs[index].group_id for index in indices}
    others = sorted(
        (length, index) for index, length in enumerate(lengths) if dialogs[index].group_id not in drawn_groups
    )
    write_rows(folder / "held_out_dialogs.jsonl", [dialogs[index] for _, index in others[:2]])

    unique = {prompt.prompt_id: prompt for prompt in (Prompt(prompt=row.prompt) for row in pairs)}
    prompts = random.Random(1).sample(
        sorted(unique.values(), key=lambda row: row.prompt_id), min(job["prompts"], len(unique))
    )
    write_rows(folder / "prompts.jsonl", prompts)
    ids = [encode_prompt(tokenizer, prompt.prompt) for prompt in prompts]
    (folder / "prompt_ids.json").write_text(json.dumps(ids))
    facts["prompts"] = {"rows": len(ids), "mean": round(sum(map(len, ids)) / len(ids), 1)}
    return facts


def write_random_pairs(path: Path, *, length: int, number: int) -> None:
    """Writes `number` pairs of random words, of different lengths up to about `length` words a sequence.

    The prompt has most of the words.
    """
    generator = random.Random(length)
    words = "river sea stone light house road field rain wind fire tree bird night day hand voice".split()

    def text(count: int) -> str:
        return " ".join(generator.choice(words) for _ in range(max(2, count)))

    rows = []
    for index in range(number):
        size = generator.uniform(0.5, 1.0) * length
        answers = [f"{side} {text(int(size * generator.uniform(0.1, 0.4)))}" for side in ("yes", "no")]
        fields = {"prompt": [{"role": "user", "content": f"{index} {text(int(size * 0.6))}"}]}
        fields |= {
            side: [{"role": "assistant", "content": answer}]
            for side, answer in zip(("chosen", "rejected"), answers, strict=True)
        }
        rows.append(PreferencePair.model_validate(fields))
    write_rows(path, rows)
