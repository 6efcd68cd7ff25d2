"""Files of labels that are of no use, and keys of people that contradict each other."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from data_schemas.people import read_labels
from tests.bad_inputs.cases import Call, Case, Place
from tests.data_schemas.test_people import BATCH, label, lines_of
from tests.pipeline.report.page.run_folders import write_run


def of_file(lines: Sequence[str] | bytes, *more: Sequence[str]) -> Callable[[Place], Call]:
    """Files by people in the folder of a step's pages."""

    def make(place: Place) -> Call:
        for number, content in enumerate((lines, *more), 1):
            place.write(f"people/{number}.jsonl", content if isinstance(content, bytes) else "".join(content))
        return place.function(read_labels, Path("people"), BATCH)

    return make


def of_recipe(*settings: str) -> Callable[[Place], Call]:
    return lambda place: place.alignloop("plan", *place.recipe(*settings))


def of_calibrate(damage: Callable[[Path], None], *, answers: int = 2) -> Callable[[Place], Call]:
    def make(place: Place) -> Call:
        damage(write_run(place.folder / "run", answers=answers))
        return place.alignloop("calibrate", "run")

    return make


def cut_rewards(run: Path) -> None:
    (run / "round-1.evaluate_policy-0123abcd" / "proxy_scores.json").write_text("[1.0]")


GOOD = lines_of([label("row-1"), label("row-2", "tie")])
ALONE = ("annotate.annotator_function=null", "annotate.people=[ana]")

CASES = [
    Case(
        "labels: another kind of file", of_file([json.dumps({"prompt": "a"}) + "\n"]), "1.jsonl is not a file of labels"
    ),
    Case(
        "labels: no text", of_file(b"\xff\xfe\x00"), "people/1.jsonl is not a file of labels; expected one that a page"
    ),
    Case("labels: no JSON", of_file(["hello\n"]), "people/1.jsonl is not a file of labels; expected one that a page"),
    Case(
        "labels: empty", of_file([]), "people/1.jsonl is not a file of labels; expected one that a page in this folder"
    ),
    Case("labels: cut in a line", of_file([*GOOD[:2], GOOD[2][:20]]), "1.jsonl was cut off on its way; let 'ana' save"),
    Case("labels: cut between lines", of_file(GOOD[:2]), "people/1.jsonl was cut off on its way; let 'ana' save and"),
    Case("labels: a line is missing", of_file([*GOOD[:1], *GOOD[2:]]), "people/1.jsonl was cut off on its way"),
    Case(
        "labels: of another step",
        of_file(lines_of([], step="round-2.annotate")),
        "1.jsonl has labels for 'round-2.annotate' of the run 'demo', expected round-1.annotate of demo; move it to",
    ),
    Case(
        "labels: of another run", of_file(lines_of([], run="other")), "'round-1.annotate' of the run 'other', expected"
    ),
    Case(
        "labels: outdated", of_file(lines_of([], batch="4567")), "people/1.jsonl is outdated: the rows of round-1.annot"
    ),
    Case(
        "labels: of nobody", of_file(lines_of([], person="eve")), "1.jsonl is by 'eve', expected one of ana, ben; move"
    ),
    Case(
        "labels: doubled", of_file(GOOD, GOOD), "people/2.jsonl and 1.jsonl are both by ana; keep the newer one of them"
    ),
    Case(
        "labels: a row twice", of_file(lines_of([label(), label()])), "1.jsonl, line 3: row row-1 has two labels; use"
    ),
    Case(
        "labels: a row that was not shown",
        of_file(lines_of([label("row-9")])),
        "people/1.jsonl, line 2: the page did not show row 'row-9' so; use the file as it was saved",
    ),
    Case(
        "labels: another verdict",
        of_file(lines_of([label(verdict="both")])),
        "people/1.jsonl, line 2 is not a label (verdict: expected 'one', 'other', 'tie' or 'skipped')",
    ),
    Case(
        "labels: negative time",
        of_file(lines_of([label(seconds=-1)])),
        "line 2 is not a label (seconds: expected 0 or more",
    ),
    Case(
        "labels: a tie with a strength",
        of_file(lines_of([label(verdict="tie", strength="better")])),
        "people/1.jsonl, line 2: tie with strength better; use the file as it was saved",
    ),
    Case(
        "people and a function",
        of_recipe("annotate.people=[ana]"),
        "people and annotator_function are both given; set people_budget, how many comparisons go to people after anno",
    ),
    Case(
        "people who compare three answers",
        of_recipe(*ALONE, "annotate.num_answers=3"),
        "people compare two answers to each prompt; num_answers=3: set 2",
    ),
    Case("budget without people", of_recipe("annotate.people_budget=3"), "people is missing: the names of those who"),
    Case(
        "people of one name", of_recipe("annotate.people=[ana, Ana]"), "people=['ana', 'Ana']: two of the names are the"
    ),
    Case(
        "people whose name is a path", of_recipe("annotate.people=['../ana']"), "people='../ana': expected a name of at"
    ),
    Case(
        "second opinion without people",
        of_recipe("annotate.second_opinion=base"),
        "second_opinion chooses what people compare; set people and people_budget, or leave it out",
    ),
    Case(
        "people who correct an evaluation without a budget",
        of_recipe("evaluate_policy.people=[ana]"),
        "people_budget is missing: how many of the evaluation's comparisons people label, as in 200",
    ),
    Case(
        "people who compare with a baseline that is not there",
        of_recipe(
            "evaluate_policy={judge_function: 'scores:score', people: [a], people_budget: 9, people_against: baseline}"
        ),
        "people_against: baseline needs baseline, the model to compare with; give it",
    ),
    Case(
        "calibrate a run without comparisons",
        of_calibrate(lambda run: None, answers=1),
        "run: no judge, reward model or person has compared answers in a finished step yet",
    ),
    Case(
        "calibrate with damaged rewards",
        of_calibrate(cut_rewards),
        "run/round-1.evaluate_policy-0123abcd is not as its step wrote it (list index out of range); see verify",
    ),
]
