"""Synonyms from a user's text file; read without torch before any launch, and by curation."""

from pathlib import Path

from data_schemas.errors import DataError
from data_schemas.files import check_regular
from data_schemas.formats import cannot_open


def read_synonyms(path: Path) -> dict[str, list[str]]:
    """Synonyms by word, from a file with words or phrases of one meaning in each line, separated by commas.

    Raises DataError for a line with a single one, for a file without any, and for one that cannot be read as text.
    """
    check_regular(path)
    synonyms: dict[str, list[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(cannot_open(path, error)) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        words = [word.strip() for word in line.split(",") if word.strip()]
        if len(words) == 1:
            raise DataError(f"{path}:{number}: only {words[0]!r}, expected words of one meaning, separated by commas")
        for word in words:
            known = synonyms.setdefault(word.lower(), [])
            known.extend(other for other in words if other != word and other not in known)
    if not any(synonyms.values()):
        raise DataError(f"{path} has no synonyms; expected lines with words of one meaning, separated by commas")
    return synonyms
