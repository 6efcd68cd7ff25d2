"""Writes variants of prompts beside the prompts themselves (engine/curation/augmentation.py). Needs no torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from data_schemas.errors import DataError
from data_schemas.files import check_regular, writing_atomically
from data_schemas.formats import cannot_open
from data_schemas.rows import Prompt
from data_schemas.synonyms import read_synonyms
from engine.curation.arguments import CurateArguments
from engine.curation.augmentation import Synonyms, variants
from engine.curation.paraphrasing import last_user_text, with_user_text
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
            original = Prompt.model_validate(table.row(index))
            for variant in variants(
                last_user_text(original),
                table.ids[index],
                arguments.num_variants,
                synonyms=synonyms,
                seed=arguments.seed,
            ):
                prompt = with_user_text(original, variant.text)
                file.write(prompt.to_json().encode() + b"\n")
                link = {"prompt_id": prompt.prompt_id, "from": original.prompt_id, "operation": variant.operation}
                linked.write(json.dumps(link).encode() + b"\n")


def read_links(files: Sequence[str]) -> set[str]:
    """The ids of the prompts that these files of links name as variants. Raises DataError for another kind of file."""
    ids: set[str] = set()
    for path in map(Path, files):
        check_regular(path)
        try:
            ids |= {str(json.loads(line)["prompt_id"]) for line in path.read_bytes().splitlines()}
        except OSError as error:
            raise DataError(cannot_open(path, error)) from None
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{path} has no links of variants; expected the variants.jsonl that curate wrote") from None
    return ids
