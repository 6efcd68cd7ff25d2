"""A person's page: one file that loads nothing, works by keys only, and saves a file to send back.

Its content security policy permits only its own style and script, by hash. The rows are in it as JSON in which no
character can end the element, and the script shows them as text.
"""

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_schemas.people import FORMAT, Batch

POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"


def page_of(batch: Batch, person: str, rows: Sequence[Mapping[str, object]], rubric: str) -> str:
    """The HTML of a person's page. `rows` are in the order in which they are shown."""
    content = {"format": FORMAT, "run": batch.run, "step": batch.step, "batch": batch.batch, "person": person}
    data = json.dumps(content | {"rubric": rubric, "rows": list(rows)})  # ASCII: every other character is an escape
    css, js = _asset("page.css"), _asset("page.js")
    parts = {
        "%POLICY%": f"{POLICY}; style-src {_hash(css)}; script-src {_hash(js)}",
        "%CSS%": css,
        "%BATCH%": data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        "%JS%": js,
    }
    page = _asset("page.html")
    for mark, text in parts.items():
        before, _, after = page.rpartition(mark)  # the last one: the rows may hold a mark as text
        page = before + text + after
    return page


@functools.cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
