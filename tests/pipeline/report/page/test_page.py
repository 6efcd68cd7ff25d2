"""The page of a run: what is in it, what can't get into it, and that it never stops a run."""

import base64
import hashlib
import json
import re
import signal
import time
from html.parser import HTMLParser

import pytest

from data_schemas.locks import lock_folder
from pipeline.report import calibration
from pipeline.report.page import writing
from pipeline.report.page.facts import FactsReader
from pipeline.report.page.lineage import recorded_sources
from pipeline.report.page.writing import PageWriter, write_page
from pipeline.state.summary import read
from tests.chromium import browser, needs_chromium
from tests.patience import PATIENCE
from tests.pipeline.report.page.run_folders import write_run
from tests.pipeline.toy_house import ONE_ROUND

HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)> \x1b[31mred \u202eabc\u202c \x00'


class Page(HTMLParser):
    """The elements of a page, its headings, and the text of each kind of element."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open = ""
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open = tag
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open:
            self.texts[self.open][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.elements if name in attributes]


def page_of(folder) -> tuple[str, Page]:
    content = write_page(folder)[0].read_text(encoding="utf-8")
    return content, Page(content)


def test_the_sections_are_in_order_and_the_verdict_comes_first(tmp_path):
    content, page = page_of(write_run(tmp_path / "toy"))
    assert page.texts["h2"] == [
        "By round",
        "The steps and what they read",
        "Proxy and judge over the distance from the first policy",
        "Loss and accuracy of every training step",
        "Rewards and lengths by policy",
        "How often one policy wins over another",
        "Answers side by side",
        "Rows that were not used",
        "Time",
        "Recipe, versions and machine",
    ]
    verdict = "Best policy: round-1.dpo, with a mean of 0.750 by the judge toy:gold, a gain of 0.500 [0.375, 0.625]"
    assert content.index(verdict) < content.index("<h2>")
    for text in (
        "round-1.dpo-0123abcd/model",  # what to type next
        "The model overfits: the held-out loss was lowest at step 10 (0.5) and rose to 0.75 by step 20.",
        "dpo.beta: 0.1 -&gt; 0.2",
        "<mark>round-1.dpo</mark> says 2",
        "torch</th><td>2.13.0",
    ):
        assert text in content
    # Wins of round-1.dpo over round-0.sft: 1.0 > 0.0, 0.5 = 0.5, 0.0 < 0.25.
    assert '<td class="w5">0.50</td>' in content
    # Rows that were not used: of each of three steps; a count of zero is not listed.
    assert content.count("dropped_too_long</td><td>4") == 2 and "rejected_rows</td><td>2" in content
    assert "dialogs_left_out</td>" not in content.partition('id="dropped"')[2]


def test_the_page_loads_nothing_and_its_policy_permits_only_its_own_style_and_script(tmp_path):
    _, page = page_of(write_run(tmp_path / "toy"))
    assert not [tag for tag, _ in page.elements if tag in ("link", "img", "iframe", "object", "embed", "base", "form")]
    assert not page.attributes("src") and not page.attributes("style") and not page.attributes("onclick")
    assert all(link.startswith(("#", "./")) for link in page.attributes("href"))
    policy = next(value for value in page.attributes("content") if "default-src" in value)
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    assert allowed.pop("default-src") == "'none'"
    for name, tag in (("style-src", "style"), ("script-src", "script")):
        (content,) = page.texts[tag]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed.pop(name) == f"'sha256-{digest}'"
    assert set(allowed.values()) == {"'none'"}


def test_text_of_a_model_is_shown_as_text(tmp_path):
    folder = write_run(tmp_path / "toy", texts={"round-1.dpo": [HOSTILE] * 3})
    for file in folder.glob("*/answers.jsonl"):  # of dialogs: what comes before the last message is hostile too
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row["prompt"].insert(0, {"role": "system", "content": f"earlier {HOSTILE}"})
        file.write_text("\n".join(map(json.dumps, rows)))
    content, page = page_of(folder)
    assert content.count('<p class="earlier">system: earlier &lt;/script&gt;') == 3
    assert [tag for tag, _ in page.elements].count("script") == 1 and not page.attributes("onerror")
    for character in ("\x1b", "\u202e", "\x00"):
        assert character not in content
    shown = "".join(page.texts["mark"])
    assert '</script><script>alert("x")</script>' in shown and "\\x1b[31mred" in shown and "\\u202eabc" in shown


@pytest.mark.parametrize("where", ["name", "step", "warning", "recipe"])
def test_names_from_a_foreign_run_are_shown_as_text(tmp_path, where):
    folder = write_run(tmp_path / "toy")
    summary = json.loads((folder / "summary.json").read_text())
    if where == "name":
        summary["name"] = HOSTILE
    elif where == "step":
        summary["steps"][1]["name"] = HOSTILE
    elif where == "warning":
        summary["steps"][1]["warnings"] = [HOSTILE]
    else:
        summary["recipe"]["content"] = {"name": HOSTILE}
    (folder / "summary.json").write_text(json.dumps(summary))
    content, page = page_of(folder)
    assert [tag for tag, _ in page.elements].count("script") == 1 and not page.attributes("onerror")
    assert not re.search("[\x00\x1b\u202e]", content) and "alert" in content


def test_a_warning_begins_with_the_name_of_its_step_as_it_is(tmp_path):
    folder = write_run(tmp_path / "toy")
    summary = json.loads((folder / "summary.json").read_text())
    summary["steps"][0] |= {"name": "prepare_data", "warnings": ["left out: 2 of 9 dialogs"]}
    (folder / "summary.json").write_text(json.dumps(summary))
    content, page = page_of(folder)
    assert "prepare_data: left out: 2 of 9 dialogs" in content and "Prepare_data" not in content
    assert "1 warning of 1 step" in page.texts["summary"]  # they open below it: the verdict and the table come first


def test_without_samples_no_prompt_and_no_answer_is_in_the_page(tmp_path):
    content, _ = page_of(write_run(tmp_path / "toy", shows_samples=False))
    assert "says 1" not in content and "Name a sound" not in content
    assert "report.samples: false" in content and "Lengths of answers" in content


def test_the_machine_is_named_once_and_the_page_is_printed_in_light_colours(tmp_path):
    content, _ = page_of(write_run(tmp_path / "toy"))
    assert content.count("GiB of memory") == 1
    # Dark colours are for screens only; the phone's layout is for both schemes, and for paper.
    wanted = ["screen and (prefers-color-scheme: dark)", "(max-width: 40rem)", "print"]
    assert re.findall(r"@media ([^{]*) \{", content) == wanted


def test_six_rounds_take_less_than_500_kB(tmp_path):
    texts = {f"round-{number}.dpo": ["word " * 300] * 3 for number in range(1, 7)}
    folder = write_run(tmp_path / "toy", rounds=6, texts=texts)
    for path in folder.glob("*/metrics.jsonl"):
        lines = [{"step": step, "loss": 1 / (step + 1), "eval_loss": 2 / (step + 1)} for step in range(5_000)]
        path.write_text("\n".join(map(json.dumps, lines)))
    content, page = page_of(folder)
    assert len(content.encode()) < 500_000
    assert len([tag for tag, attributes in page.elements if (attributes.get("class") or "") == "training"]) == 7


def test_the_arrows_of_a_finished_step_are_from_its_record_and_of_another_from_the_plan(tmp_path):
    folder = write_run(tmp_path / "toy")
    (folder / "round-1.evaluate_policy-0123abcd" / "artifact.json").unlink()
    _, page = page_of(folder)
    arrows = {(one["data-from"], one["data-to"]) for _, one in page.elements if "data-from" in one}
    assert ("prepare_data", "round-1.dpo") in arrows
    assert ("round-0.evaluate_policy", "round-1.dpo") not in arrows  # in the plan, not in the record
    assert ("round-0.evaluate_policy", "round-1.evaluate_policy") in arrows
    sources = recorded_sources(FactsReader(folder).read(read(folder)))
    assert sources["round-1.dpo"] == ["prepare_data"] and sources["round-1.evaluate_policy"] == []


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("artifact.json", "{", "is not a record"),
        ("answers.jsonl", "{", "answers.jsonl could not be read to its end"),
        ("proxy_scores.json", "x", "could not be read to its end"),
        ("outcome.json", "[", ""),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(tmp_path, file, content, said):
    folder = write_run(tmp_path / "toy")
    (folder / "round-1.evaluate_policy-0123abcd" / file).write_text(content)
    shown, page = page_of(folder)
    assert said in shown and "Loss and accuracy of every training step" in page.texts["h2"]


def test_the_page_is_loaded_again_only_while_the_run_goes_on(tmp_path):
    folder = write_run(tmp_path / "toy", state="running")
    stopped, page = page_of(folder)
    assert "the process that ran it has ended" in stopped and not page.attributes("data-refresh")
    with lock_folder(folder):
        _, page = page_of(folder)
    assert page.attributes("data-refresh") == [str(writing.REFRESH_SECONDS)]


def test_a_page_that_cannot_be_written_is_one_warning_and_no_error(tmp_path, monkeypatch, caplog):
    folder = write_run(tmp_path / "toy")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_atomically", full)
    writer = PageWriter(folder)
    writer.write()
    writer.write()
    assert [record.message for record in caplog.records] == [
        f"{folder / 'report.html'} is not written: OSError: [Errno 28] No space left on device"
    ]


def test_the_calibration_is_the_table_of_the_command(tmp_path):
    folder = write_run(tmp_path / "toy", answers=3)
    content, page = page_of(folder)
    assert "How far judges, reward models and people can be trusted" in page.texts["h2"]
    section = re.search('<section id="calibration">(.*?)</section>', content, re.DOTALL)
    assert section
    rows = [re.findall("<t[hd][^>]*>([^<]*)", row) for row in re.findall("<tr>(.*?)</tr>", section[1])]
    raters = calibration.raters_of(read(folder), folder)
    assert rows == [["rater", "step", *calibration.COLUMNS], *calibration.rows(raters)]
    assert [row[:4] for row in rows[1:]] == [
        ["None", "round-0.evaluate_policy", "9", "-"],
        ["None", "round-1.evaluate_policy", "9", "-"],
        ["reward model", "round-1.evaluate_policy", "9", "0.000"],  # it likes each further answer less
    ]
    assert section[1].count("<dt>") == len(calibration.COLUMNS)
    assert 'href="./round-1.evaluate_policy-0123abcd/artifact.json"' in section[1]


def test_rewards_that_do_not_fit_their_answers_are_named_and_the_rest_is_shown(tmp_path):
    folder = write_run(tmp_path / "toy", answers=2)
    (folder / "round-1.evaluate_policy-0123abcd" / "proxy_scores.json").write_text("[1.0]")
    content, page = page_of(folder)
    assert "round-1.evaluate_policy-0123abcd is not as its step wrote it (list index out of range)" in content
    assert "How far judges, reward models and people can be trusted" in page.texts["h2"]  # round 0 is shown


def test_a_finished_step_is_read_once(tmp_path):
    folder = write_run(tmp_path / "toy")
    reader = FactsReader(folder)
    before = reader.read(read(folder))
    (folder / "round-1.dpo-0123abcd" / "metrics.jsonl").write_text("")
    assert reader.read(read(folder))[3].curves == before[3].curves
    assert FactsReader(folder).read(read(folder))[3].curves != before[3].curves


def test_a_run_writes_its_page_while_it_goes_on_and_when_it_ends(world):
    process = world.start("run", "toy.yaml", *ONE_ROUND, TOY='{"round-1.sft": "hang"}')
    world.hanging()
    deadline = time.monotonic() + PATIENCE
    while "<strong>round-1.sft</strong> is running" not in (world.run_folder / "report.html").read_text():
        assert time.monotonic() < deadline, "the page does not show the running step"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    ended = (world.run_folder / "report.html").read_text()
    assert "data-refresh" not in ended and "interrupted (7 of 10 steps are finished)" in ended

    edited = ("--set", "dpo.beta=0.3")
    code, *_ = world.run(*edited)
    content = (world.run_folder / "report.html").read_text()
    assert code == 0 and "done (10 of 10 steps are finished)" in content
    assert "dpo.beta: (not set) -&gt; 0.3" in content
    world.run(*edited)  # the same recipe again: what differed then is still shown
    assert "dpo.beta: (not set) -&gt; 0.3" in (world.run_folder / "report.html").read_text()


@needs_chromium
def test_a_page_with_long_names_fits_a_phone(tmp_path):
    run = write_run(tmp_path / "run", texts={"round-1.dpo": ["an answer of many words " * 9] * 3})
    summary = json.loads((run / "summary.json").read_text())
    policy = "round-1.a_stage_with_a_name_of_more_than_forty_characters"
    evaluation = next(run.glob("round-1.evaluate_policy-*")) / "artifact.json"
    record = json.loads(evaluation.read_text())
    evaluation.write_text(json.dumps(record | {"keys": record["keys"] | {"policy_step": policy}}))
    for row in summary["rounds"]:
        row["judge"] = "a_package_with_a_long_name.a_module_with_another.and_the_judge_itself:score_of_an_answer"
    (run / "summary.json").write_text(json.dumps(summary))
    page, _ = write_page(run)
    with browser(tmp_path / "browser") as opened:
        opened.open(page)
        opened.picture(tmp_path / "phone.png", width=390, height=800, dark=False)
        assert opened.value("document.documentElement.scrollWidth") == 390
        # An answer takes a phone's width, below its policy and scores; with more room it stands beside them.
        places = """(() => { const [policy, answer] = ["th", "td.text"].map(
            (name) => document.querySelector(`.answer tbody ${name}`).getBoundingClientRect());
            return [answer.top >= policy.bottom, answer.width > 250, answer.left > policy.right] })()"""
        assert opened.value(places) == [True, True, False]
        opened.picture(tmp_path / "desk.png", width=1280, height=800, dark=False)
        assert opened.value(places) == [False, True, True]
        heights = "[...document.querySelectorAll('.answer:first-of-type tr')].map((row) => row.clientHeight)"
        assert max(opened.value(heights)) < 70  # no name is broken letter by letter


@needs_chromium
def test_warnings_are_folded_on_a_screen_and_printed(tmp_path):
    run = write_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    summary["steps"][0]["warnings"] = ["left out: 2 of 9 dialogs"]
    (run / "summary.json").write_text(json.dumps(summary))
    page, _ = write_page(run)
    with browser(tmp_path / "browser") as opened:
        opened.open(page)
        assert opened.value("document.querySelector('#warnings').open") is False
        opened.call("Page.printToPDF")
        opened.wait_until("document.querySelector('#warnings').open")
