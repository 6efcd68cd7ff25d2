"""Writes variants of prompts beside the prompts themselves (engine/curation/augmentation.py). Needs no torch."""

import json
from pathlib import Path
from typing import IO, Any

from data_schemas.files import writing_atomically
from data_schemas.rows import Prompt
from data_schemas.synonyms import read_synonyms
from engine.curation.arguments import CurateArguments
from engine.curation.augmentation import Synonyms, variants
from engine.curation.table import Table


def synonyms_of(arguments: CurateArguments) -> Synonyms:
    """The synonyms of all files. Raises DataError for a file that cannot be read."""
    synonyms: dict[str, list[str]] = {}
    for path in arguments.synonyms or []:
        synonyms |= read_synonyms(Path(path))
    return synonyms


def write_variants(
    links: Path, table: Table, arguments: CurateArguments, file: IO[bytes], *, synonyms: Synonyms
) -> None:
    """Adds the variants of every kept prompt's last user message to `file`, and writes to `links` which prompt each is
    from. A variant is in the group of its prompt."""
    with writing_atomically(links) as linked:
        for index in table.kept():
            row = table.row(index)
            place = max(place for place, message in enumerate(row["prompt"]) if message["role"] == "user")
            text = str(row["prompt"][place].get("content") or "")
            for variant in variants(
                text, table.ids[index], arguments.num_variants, synonyms=synonyms, seed=arguments.seed
            ):
                prompt = _with_text(row, place, variant.text)
                file.write(prompt.to_json().encode() + b"\n")
                link = {"prompt_id": prompt.prompt_id, "from": row.get("prompt_id"), "operation": variant.operation}
                linked.write(json.dumps(link).encode() + b"\n")


def _with_text(row: Any, place: int, text: str) -> Prompt:
    messages = [dict(message) for message in row["prompt"]]
    messages[place]["content"] = text
    return Prompt.model_validate(
        {name: value for name, value in row.items() if name != "prompt_id"} | {"prompt": messages}
    )
