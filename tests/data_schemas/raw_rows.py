"""Rows in the dialects of public data sets, as tests write and read them."""

import json

import pytest

from data_schemas.errors import UserError
from data_schemas.rows import for_template

ADVICE = (
    " (set data.on_bad_row: set_aside in a recipe, or --on_bad_row set_aside of a stage, to skip such rows and keep "
    "them in rejected_rows.jsonl)"
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def lines(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def messages_of(read):
    return [for_template(row.messages) for row in read.rows]


def fails(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


TWO_TURNS = [user("Hi"), assistant("Hello.")]
HH = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: {}"
THREE = [user("a"), assistant("b"), user("c")]
