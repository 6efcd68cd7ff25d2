"""The rows that both sides get, drawn so that padding costs in them what it costs in the whole file.

One step is measured, of thousands that an epoch would have. Of many random draws the one is taken whose padded and
whose own tokens are nearest to the file's mean; how near stands in the report. `grouped` are batches as
length-grouped sampling makes them of the whole file: of a few rows alone it could make none.
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
LONGEST = 1024  # tokens: TRL's default max_length, from which on it would cut


class Item(NamedTuple):
    """A row, in tokens."""

    longest: int  # of its sequences
    sequences: int
    own: int  # tokens without padding, what its sequences begin with counted once


def padded(items: Sequence[Item], batch: int) -> int:
    """Tokens of the batches that the items make in this order, each as wide as its longest sequence."""
    batches = [items[start : start + batch] for start in range(0, len(items), batch)]
    return sum(max(item.longest for item in each) * sum(item.sequences for item in each) for each in batches)


def grouped(items: Sequence[Item], batch: int, drawn: random.Random) -> list[list[int]]:
    """The whole batches that length-grouped sampling makes, as places in `items`."""
    order = drawn.sample(range(len(items)), len(items))
    size = max(1, min(len(items) // (batch * 4), MEGABATCH)) * batch
    mixed = [order[start : start + size] for start in range(0, len(order), size)]
    ordered = [place for part in mixed for place in sorted(part, key=lambda place: -items[place].longest)]
    return [ordered[start : start + batch] for start in range(0, len(ordered) - batch + 1, batch)]


def draw(items: Sequence[Item], *, steps: int, batch: int, seed: int, by_length: bool = False) -> tuple[list[int], Any]:
    """Places of `steps` batches one after the other, and padded and own tokens a row: of these, and of all rows."""
    drawn = random.Random(seed)
    own = sum(item.own for item in items) / len(items)
    wholes = []
    for _ in range(20):
        order = (
            [place for each in grouped(items, batch, drawn) for place in each]
            if by_length
            else drawn.sample(range(len(items)), len(items) // batch * batch)
        )
        wholes.append(padded([items[place] for place in order], batch) / len(order))
    whole = sum(wholes) / len(wholes)

    def distance(places: Sequence[int]) -> float:
        mine = [items[place] for place in places]
        return abs(padded(mine, batch) / len(mine) / whole - 1) + abs(
            sum(item.own for item in mine) / len(mine) / own - 1
        )

    draws = []
    for _ in range(NUM_DRAWS):
        if by_length:
            draws.append([place for each in drawn.sample(grouped(items, batch, drawn), steps) for place in each])
        else:
            draws.append(drawn.sample(range(len(items)), steps * batch))
    best = min(draws, key=distance)
    mine = [items[place] for place in best]
    facts = {
        "rows": len(best),
        "padded": round(padded(mine, batch) / len(mine), 1),
        "own": round(sum(item.own for item in mine) / len(mine), 1),
        "padded_of_all": round(whole, 1),
        "own_of_all": round(own, 1),
    }
    return best, facts


def instructions(path: Path) -> list[Conversation]:
    """The rows of a file; of self-instruct's seed tasks their first instance."""
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0]) if path.suffix == ".jsonl" else {}
    if "instances" not in first:
        return read_conversations([path], on_bad_row="set_aside").rows
    tasks = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = []
    for task in tasks:
        instance = task["instances"][0]
        asked = "\n".join(filter(None, [task["instruction"], instance["input"]]))
        if instance["output"].strip():
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": instance["output"]}]
            found.append(Conversation.model_validate({"messages": turns}))
    return found


def shared_length(chosen: Sequence[int], rejected: Sequence[int]) -> int:
    """Tokens that both begin with; each has one more at least."""
    limit = min(len(chosen), len(rejected)) - 1
    return next((at for at in range(limit) if chosen[at] != rejected[at]), limit)


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Writes all rows into the job's folder; what the report says of them."""
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
        encoded = encode(row)
        both = tuple(encoded["prompt_ids"] + encoded[f"{side}_ids"] for side in ("chosen", "rejected"))
        if max(map(len, both)) <= LONGEST:
            pairs.append(row)
            tokens.append((both[0], both[1]))
    items = []
    for chosen, rejected in tokens:
        shared = shared_length(chosen, rejected)
        items.append(Item(max(len(chosen), len(rejected)), 2, len(chosen) + len(rejected) - shared))
    facts: dict[str, Any] = {}
    taken: set[str] = set()
    for name, by_length in (("pairs", False), ("grouped", True)):
        places, facts[name] = draw(items, steps=job["steps"], batch=batch, seed=1, by_length=by_length)
        write_rows(folder / f"{name}.jsonl", [pairs[place] for place in places])
        taken |= {pairs[place].group_id for place in places}
    rest = sorted(
        (place for place, row in enumerate(pairs) if row.group_id not in taken),
        key=lambda place: (items[place].longest, place),
    )
    write_rows(folder / "held_out.jsonl", [pairs[place] for place in rest[:2]])

    chosen_dialogs = [Conversation(messages=[*row.prompt, *row.chosen]) for row in pairs]
    dialogs = [*chosen_dialogs, *(row for path in job["instructions"] for row in instructions(Path(path)))]
    lengths = [len(encode_dialog(tokenizer, row.messages).ids) for row in dialogs]
    kept = [place for place, length in enumerate(lengths) if length <= LONGEST]
    dialogs, lengths = [dialogs[place] for place in kept], [lengths[place] for place in kept]
    places, facts["dialogs"] = draw(
        [Item(length, 1, length) for length in lengths], steps=job["steps"], batch=batch, seed=1
    )
    write_rows(folder / "dialogs.jsonl", [dialogs[place] for place in places])
    of_sample = {dialogs[place].group_id for place in places}
    others = sorted((length, place) for place, length in enumerate(lengths) if dialogs[place].group_id not in of_sample)
    write_rows(folder / "held_out_dialogs.jsonl", [dialogs[place] for _, place in others[:2]])

    asked = {prompt.prompt_id: prompt for prompt in (Prompt(prompt=row.prompt) for row in pairs)}
    prompts = random.Random(1).sample(
        sorted(asked.values(), key=lambda row: row.prompt_id), min(job["prompts"], len(asked))
    )
    write_rows(folder / "prompts.jsonl", prompts)
    ids = [encode_prompt(tokenizer, prompt.prompt) for prompt in prompts]
    (folder / "prompt_ids.json").write_text(json.dumps(ids))
    facts["prompts"] = {"rows": len(ids), "mean": round(sum(map(len, ids)) / len(ids), 1)}
    return facts


def random_pairs(folder: Path, *, length: int, number: int) -> None:
    """Pairs of made words, some `length` words a sequence and not two of one length, most of it the prompt's."""
    drawn = random.Random(length)
    words = "river sea stone light house road field rain wind fire tree bird night day hand voice".split()

    def text(count: int) -> str:
        return " ".join(drawn.choice(words) for _ in range(max(2, count)))

    rows = []
    for place in range(number):
        size = drawn.uniform(0.5, 1.0) * length
        answers = [f"{side} {text(int(size * drawn.uniform(0.1, 0.4)))}" for side in ("yes", "no")]
        fields = {"prompt": [{"role": "user", "content": f"{place} {text(int(size * 0.6))}"}]}
        fields |= {
            side: [{"role": "assistant", "content": answer}]
            for side, answer in zip(("chosen", "rejected"), answers, strict=True)
        }
        rows.append(PreferencePair.model_validate(fields))
    write_rows(folder, rows)
