"""Fills the templates of the pages.

A page loads nothing: its style and script are inside, and its content security policy permits only these two, by hash.
Everything that comes from models, rows and files is escaped, control characters included.
"""

import base64
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup

from data_schemas.text import printable
from pipeline.report.page.answers import SideBySide, marked_words, mean
from pipeline.report.rounds import number

LEFT_OUT = "The recipe leaves prompts and answers out (report.samples: false)."
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"


def fill(template: str, context: Mapping[str, object]) -> str:
    """A page, from the name of its template and what it shows."""
    css, js = _asset("report.css"), _asset("report.js")
    return (
        _environment()
        .get_template(template)
        .render(
            {"refresh": None, **context},
            css=Markup(css),
            js=Markup(js),
            policy=f"{POLICY}; style-src {_hash(css)}; script-src {_hash(js)}",
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_visible,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _visible(value: object) -> object:
    """A text with its control characters escaped. Runs on every expression of a template, before its escaping."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else printable(value)


@functools.cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def shown_answers(one: SideBySide) -> Mapping[str, object]:
    """A prompt with the answers of every policy, and the words that the first policy's answer lacks."""
    first = one.answers[0][1].text
    change = one.change or 0.0
    return {
        "earlier": one.earlier,
        "prompt": one.prompt,
        "change": _change(one),
        "kind": "up" if change > 0 else "down" if change < 0 else "same",
        "answers": [
            {
                "policy": policy,
                "judge": number(mean(answers.scores[:1])),
                "proxy": number(mean(answers.proxies[:1])),
                "pieces": marked_words(answers.text, first),
                "ended": answers.ended,
            }
            for policy, answers in one.answers
        ],
    }


def _change(one: SideBySide) -> str:
    """`+0.35 from the first policy to the last, in the mean of 4 answers`; empty where the answers are not scored."""
    if one.change is None:
        return ""
    count = len(one.answers[-1][1].scores)
    means = f", in the mean of {count} answers" if count > 1 else ""
    return f"{one.change:+.2f} from the first policy to the last{means}"
