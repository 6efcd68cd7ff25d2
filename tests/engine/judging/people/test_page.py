"""A person's page in headless Chromium: keys are pressed, a file is saved, hostile text stays text."""

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_schemas.errors import WaitingForPeople
from data_schemas.people import FOLDER, Batch, read_labels
from data_schemas.rows import Message, Prompt
from engine.judging.people.asking import PeopleRow, ask_people
from tests.chromium import Browser, browser, needs_chromium
from tests.toy_prompts import PROMPTS

HOSTILE = (
    '</script><script>alert("x")</script><img src=x onerror=alert(1)>\x1b[31mred \u202eabc\u202c %JS% %BATCH% \u2028'
)
ROWS = [PeopleRow(prompt, f"one to {place}", f"other to {place}") for place, prompt in enumerate(PROMPTS[:4])]


def write_pages(folder: Path, rows: list[PeopleRow], people: tuple[str, ...] = ("ana",)) -> Batch:
    stage: Any = SimpleNamespace(folder=folder, values={"run_group": "demo", "step": "annotate"}, is_main=True)
    with pytest.raises(WaitingForPeople):
        ask_people(stage, rows, people, overlap=0.5, seed=3)
    batch = Batch.read(folder / FOLDER)
    assert batch is not None
    return batch


def labels_of(folder: Path, batch: Batch, file: Path) -> list:
    (folder / FOLDER / file.name).write_bytes(file.read_bytes())
    return read_labels(folder / FOLDER, batch)["ana"]


@contextlib.contextmanager
def opened(folder: Path, person: str = "ana") -> Iterator[Browser]:
    with browser(folder / "browser") as page:
        page.open(folder / FOLDER / f"{person}.html")
        yield page


def test_the_page_loads_nothing_and_its_policy_permits_only_its_own_style_and_script(tmp_path):
    write_pages(tmp_path, [PeopleRow(PROMPTS[0], HOSTILE, "%CSS%")])
    content = (tmp_path / FOLDER / "ana.html").read_text()
    assert content.isascii() and not re.search(r"""\b(src|href|on\w+)\s*=\s*["']""", content)
    policy = re.search('Content-Security-Policy" content="([^"]*)"', content)
    assert policy is not None and policy[1].startswith("default-src 'none'; base-uri 'none'; form-action 'none'; ")
    for name in ("style", "script"):
        digest = base64.b64encode(
            hashlib.sha256(re.findall(f"(?s)<{name}>(.*?)</{name}>", content)[-1].encode()).digest()
        )
        assert f"{name}-src 'sha256-{digest.decode()}'" in policy[1]
    assert content.count("<script") == content.count("</script") == 2
    rows = json.loads(re.findall('(?s)type="application/json">(.*?)</script>', content)[0])["rows"]
    assert sorted(rows[0]["answers"]) == ["%CSS%", HOSTILE]


@needs_chromium
def test_keys_label_every_row_and_the_saved_file_says_what_was_pressed(tmp_path):
    batch = write_pages(tmp_path, ROWS)
    shown = batch.people["ana"]
    with opened(tmp_path) as page:
        assert page.value("document.getElementById('help').hidden") is False
        page.press("?")
        page.press("1")  # A is significantly better
        page.press("s")
        page.press("u")  # not skipped after all
        page.press("e8")  # B is better, and could be better still
        editor = page.value("document.getElementById('text').value")
        page.insert(" and more")
        page.press_key("Enter", ctrl=True)
        page.press("e3")
        page.press_key("Escape")  # the same row again, without an edit
        page.press("e")
        page.press("5")
        assert page.value("document.getElementById('count').textContent") == "3 of 4 done"
        page.press("s")
        assert page.value("document.getElementById('done').hidden") is False
        page.press("3")  # there is no row left
        page.press("d")
        labels = labels_of(tmp_path, batch, page.saved("ana.labels.jsonl"))
        assert page.value("document.getElementById('count').textContent") == "4 of 4 done, 1 skipped, saved"
        assert page.problems() == []
    assert [one.row for one in labels] == [one.row for one in shown]
    assert [one.first for one in labels] == [one.first for one in shown]
    second = {"one": "other", "other": "one"}
    assert [(one.verdict, one.strength) for one in labels] == [
        (shown[0].first, "significantly_better"),
        (second[shown[1].first], "better"),
        ("tie", None),
        ("skipped", None),
    ]
    texts = {row.id: {"one": row.one, "other": row.other} for row in ROWS}
    assert editor == texts[shown[1].row][second[shown[1].first]]
    assert [one.edited for one in labels] == [None, f"{editor} and more", None, None]
    assert all(one.seconds >= 0 for one in labels)


@needs_chromium
def test_a_closed_page_goes_on_where_it_was_and_another_persons_does_not(tmp_path):
    write_pages(tmp_path, ROWS, ("ana", "ben"))
    with opened(tmp_path) as page:
        page.press("95")
        page.open(tmp_path / FOLDER / "ben.html")
        assert page.value("document.getElementById('bar').value") == 0
        page.open(tmp_path / FOLDER / "ana.html")
        assert page.value("document.getElementById('bar').value") == 2
        page.press("u")
        page.open(tmp_path / FOLDER / "ana.html")
        assert page.value("document.getElementById('bar').value") == 1


@needs_chromium
def test_hostile_text_is_shown_as_text_and_the_system_message_is_not(tmp_path):
    messages = [Message(role="system", content="secret"), Message(role="user", content=HOSTILE)]
    write_pages(tmp_path, [PeopleRow(Prompt(prompt=messages), HOSTILE, "no")])
    with opened(tmp_path) as page:
        for place in ("request", "answers"):
            text = page.value(f"document.getElementById('{place}').textContent")
            assert '</script><script>alert("x")</script><img src=x onerror=alert(1)>' in text and "%JS% %BATCH%" in text
            assert "\\x1b[31mred \\u202eabc\\u202c" in text and not {"\x1b", "\u202e"} & set(text)
        assert page.value("document.querySelectorAll('main img, main script').length") == 0
        assert "secret" not in page.value("document.documentElement.outerHTML")
        assert page.problems() == []


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_page(tmp_path, width):
    write_pages(tmp_path, [PeopleRow(PROMPTS[0], "long" * 500, "x = 1\n" * 200)])
    with opened(tmp_path) as page:
        page.picture(tmp_path / "page.png", width=width, height=800)
        scroll, client = (page.value(f"document.documentElement.{name}Width") for name in ("scroll", "client"))
        assert scroll == client <= width  # the rest is the scroll bar
        bottom = page.value("document.querySelector('footer').getBoundingClientRect().bottom")
        assert bottom <= 800  # the keys are in sight, however long the answers are
