"""JSON texts inside of rows, and how deep rows are nested."""

from data_schemas.errors import WrongValue
from data_schemas.formats import from_json

MAX_DEPTH = 100  # of lists and mappings inside one another: not every JSON parser reads deeper ones back


def parsed(text: str, place: str) -> object:
    """The value of a JSON text in a row. Raises WrongValue where it is not JSON, or too deep."""
    value = from_json(text, place)
    check_depth(value, place)
    return value


def check_depth(value: object, place: str) -> None:
    """Raises WrongValue where there are more than MAX_DEPTH lists and mappings inside one another."""
    if is_too_deep(value):
        raise WrongValue(place, f"lists or mappings more than {MAX_DEPTH} deep", "fewer inside one another")


def is_too_deep(value: object) -> bool:
    """Whether there are more than MAX_DEPTH lists and mappings inside one another."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inside: list[dict | list] = []
        for outer in level:
            for inner in outer.values() if isinstance(outer, dict) else outer:
                if isinstance(inner, (dict, list)):
                    inside.append(inner)
        if not inside:
            return False
        level = inside
    return True
