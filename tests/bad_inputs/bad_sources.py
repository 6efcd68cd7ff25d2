"""Bad paths and mappings of files of rows, and files that are no regular files, given to a recipe and to a stage."""

import os
import sys
from collections.abc import Callable

from commands import data
from tests.bad_inputs.cases import Call, Case, Place

ROW = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
FILES = {
    "qa.csv": "Q,A\nq,a\n",
    "pairs.jsonl": '{"prompt": "a", "chosen": "b", "rejected": "c"}',
    "sets/train.jsonl": ROW,
    "sets/test.jsonl": ROW,
    "mixed/test.jsonl": ROW,
    "mixed/more.jsonl": ROW,
}
PIPE = "is a named pipe, expected a regular file; write its content into a file first"
# A setting of a recipe beside these files, and its error.
SETTINGS: list[tuple[str, str]] = [
    (
        "data.instructions={path: qa.csv, colums: {}}",
        "data: instructions: unknown key 'colums' of a file; did you mean",
    ),
    ("data.instructions={columns: {}}", "data: instructions: path is missing; expected a mapping as in {path:"),
    ("data.instructions=[{path: [qa.csv]}]", "data: instructions: path=['qa.csv']: expected text"),
    ("data.instructions={path: qa.csv, split: 3}", "data: instructions: split=3: expected text"),
    (
        "data.instructions={path: qa.csv, columns: [Q]}",
        "columns=['Q']: expected a mapping, as in {prompt: Q, answer: A}",
    ),
    ("data.instructions={path: qa.csv, share: .nan}", "data: instructions: share=nan: expected a number above 0"),
    (
        "data.instructions={path: qa.csv, columns: {prompt: Q, answer: B}}",
        "data.instructions: HERE/qa.csv has no column 'B', which `columns` gives as answer; it has Q, A",
    ),
    (
        "data.instructions={path: qa.csv, columns: {promt: Q, answer: A}}",
        "HERE/qa.csv: columns={promt: Q}: no format of rows has a column 'promt'; did you mean 'prompt'?",
    ),
    (
        "data.instructions={path: qa.csv, columns: {prompt: Q, zzz: A}}",
        "no format of rows has a column 'zzz'; expected a name as prompt, answer, chosen, rejected, messages or text",
    ),
    (
        "data.instructions={path: qa.csv, columns: {Q: prompt, A: answer}}",
        "HERE/qa.csv has no column 'prompt', which `columns` gives as Q; it has Q, A; the sides are exchanged? "
        "expected {prompt: Q, answer: A}",
    ),
    ("data.instructions=qa.csv", "data.instructions: HERE/qa.csv has the columns Q, A; expected messages | "),
    ("data.preferences={path: pairs.jsonl, share: 2}", "share=2 repeats rows, which only documents and instructions"),
    (
        "data.instructions=sets:dev",
        "HERE/sets has no split 'dev'; its files are of test: test.jsonl, train: train.jsonl",
    ),
    ("data.instructions=mixed", "HERE/mixed has files of several splits (no split: more.jsonl, test: test.jsonl);"),
    ("data.instructions=qa.csv:test", "HERE/qa.csv is a file and has no split 'test'; leave the split out"),
    ("data.instructions={path: qa.csv, revision: v1}", "qa.csv is a path; revision is for data sets of the hub: leave"),
    ("data.instructions=gone:test", "data.instructions='gone' does not exist, neither in HERE nor beside the recipe"),
    (
        "data.instructions=no/*.jsonl",
        "data: instructions: 'no/*.jsonl' matches no file, neither in HERE nor beside the",
    ),
    (
        "data.instructions=$NO_SUCH_ONE/a.jsonl",
        "instructions='$NO_SUCH_ONE/a.jsonl': the environment variable NO_SUCH_ONE is not set",
    ),
    ("base_model=~nosuchuser9/m", "base_model='~nosuchuser9/m': ~nosuchuser9 is no home folder: this machine knows no"),
    ("output_dir=~nosuchuser9/r", "output_dir='~nosuchuser9/r': ~nosuchuser9 is no home folder: this machine knows no"),
    ("data.prompts=~nosuchuser9/p", "data: prompts='~nosuchuser9/p': ~nosuchuser9 is no home folder: this machine"),
    ("base_model=bad-\udcff", "base_model=bad-\\udcff has a name that is not UTF-8; rename the file or the folder"),
    (f"base_model={'x' * 5000}", "is too long for a path: expected at most 255 bytes for each name and 4095 in all"),
]


def of_setting(setting: str, says: str) -> Case:
    def make(place: Place) -> Call:
        words = place.recipe(setting)
        for name, content in FILES.items():
            place.write(name, content)
        place.patch.delenv("NO_SUCH_ONE", raising=False)
        return place.alignloop("plan", *words)

    return Case(f"source {setting[:80]!a}", make, says)


def pipe(name: str, *settings: str, command: str = "plan") -> Callable[[Place], Call]:
    """A named pipe in place of a file of a recipe."""

    def make(place: Place) -> Call:
        words = place.recipe(*settings)
        path = place.folder / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        return place.alignloop(command, *words)

    return make


def pipe_of_stage(key: str) -> Callable[[Place], Call]:
    def make(place: Place) -> Call:
        os.mkfifo(place.folder / "pipe.jsonl")
        return place.stage("prepare_data", **{key: ["pipe.jsonl"]})

    return make


def config_that_is_a_pipe(place: Place) -> Call:
    os.mkfifo(place.folder / "pipe.yaml")
    return place.stage_by_hand("prepare_data", "--config", "pipe.yaml")


def summary_that_is_a_pipe(place: Place) -> Call:
    (place.folder / "run").mkdir()
    os.mkfifo(place.folder / "run" / "summary.json")
    return place.alignloop("status", "run")


def folder_not_in_utf8(place: Place) -> Call:
    words = place.recipe()
    folder = place.folder / "bad-\udcff"
    folder.mkdir()
    place.patch.chdir(folder)
    return place.alignloop("plan", f"../{words[0]}")


def file_not_in_utf8(place: Place) -> Call:
    place.write("rows/a\udcfe.jsonl", ROW)
    return place.alignloop("plan", *place.recipe("data.instructions=rows"))


def repeated_pairs(place: Place) -> Call:
    place.write("pairs.jsonl", FILES["pairs.jsonl"])
    return place.stage("prepare_data", preferences=[{"path": "pairs.jsonl", "share": 2}])


def unknown_name_of_stage(place: Place) -> Call:
    place.write("qa.csv", FILES["qa.csv"])
    return place.stage("prepare_data", instructions=[{"path": "qa.csv", "columns": {"promt": "Q", "answer": "A"}}])


def unknown_name_of_data(place: Place) -> Call:
    place.write("qa.csv", FILES["qa.csv"])
    place.patch.setattr(sys, "argv", ["data", "{path: qa.csv, columns: {promt: Q, answer: A}}"])
    return data.main


def mapping_by_hand(place: Place) -> Call:
    return place.stage_by_hand("prepare_data", "--prompts", "{path: ]", "--output_dir", "out")


CASES = [
    *(of_setting(*setting) for setting in SETTINGS),
    Case("name of a column, to a stage", unknown_name_of_stage, "a column 'promt'; did you mean 'prompt'?"),
    Case("name of a column, to data", unknown_name_of_data, "a column 'promt'; did you mean 'prompt'?"),
    Case("recipe that is a pipe", pipe("toy.yaml"), f"toy.yaml {PIPE}"),
    Case("rows that are a pipe", pipe("chats.jsonl"), f"data.instructions: HERE/chats.jsonl {PIPE}"),
    Case("template that is a pipe", pipe("t.jinja", "prepare_base.chat_template=t.jinja"), f"HERE/t.jinja {PIPE}"),
    Case("model's config that is a pipe", pipe("base/config.json"), f"base/config.json {PIPE}"),
    Case("model that is a pipe", pipe("model", "base_model=model"), f"HERE/model {PIPE}"),
    Case("rows of a stage that are a pipe", pipe_of_stage("documents"), f"pipe.jsonl {PIPE}"),
    Case("config that is a pipe", config_that_is_a_pipe, f"pipe.yaml {PIPE}"),
    Case("summary that is a pipe", summary_that_is_a_pipe, f"run/summary.json {PIPE}"),
    Case(
        "folder that is not UTF-8", folder_not_in_utf8, "bad-\\udcff has a name that is not UTF-8; rename the file or"
    ),
    Case("file that is not UTF-8", file_not_in_utf8, "rows/a\\udcfe.jsonl has a name that is not UTF-8; rename the"),
    Case("repeated pairs of a stage", repeated_pairs, "pairs.jsonl: share=2 repeats rows, which only documents and"),
    Case("mapping that is not YAML", mapping_by_hand, "--prompts {path: ]: not YAML, as in [a, b] or {path: a}"),
]
