"""`alignloop data`: what it prints, its exit codes, and that what it says to write into a recipe works."""

import json
import os
import shlex
import subprocess
import sys

import pytest
import yaml

from data_schemas.reading import read_conversations, read_pairs
from tests.loop_recipes import COMMAND
from tests.patience import PATIENCE
from tests.test_imports import ROOT


def data(folder, *words, columns=80):
    return subprocess.run(
        [COMMAND, "data", *words],
        cwd=folder,
        env=os.environ | {"COLUMNS": str(columns)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture
def files(tmp_path):
    (tmp_path / "qa.csv").write_text("Q,A,topic\nWhat is 2+2?,4,math\nWhat is 2+2?,4,math\nHow?,\x1b[2Jso,x\nWhy?,,x\n")
    pairs = [{"prompt": f"Привет {n}", "chosen": "longer answer", "rejected": "no"} for n in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return tmp_path


@pytest.mark.parametrize("columns", [80, 120])
def test_files_are_described_and_the_block_for_the_recipe_reads_them(files, columns):
    done = data(files, "qa.csv", "pairs.jsonl", columns=columns)
    assert done.returncode == 0 and not done.stderr
    out = done.stdout
    assert "\x1b" not in out and "\\x1b[2Jso" in out
    report = out[: out.index("for the recipe")]
    assert max(map(len, report.splitlines())) <= columns
    for line in (
        "format      .csv; 4 rows",
        "columns     Q, A, topic",
        "read as     instructions, by the columns prompt + answer (4)",
        "guessed     Q is prompt, A is answer; ",
        "rows        3 valid, 1 with a problem",
        "duplicates  1 (texts equal to those of an earlier row)",
        "dialogs     2 different first user messages",
        "ignored     columns topic",
        "1 row: answer: found empty text, expected text (qa.csv:5)",
        "row 1 (qa.csv:2)\nuser: What is 2+2?\nassistant: 4\n",
        "scripts     Latin 70%, Cyrillic 30%",
        "chosen: assistant: longer answer\nrejected: assistant: no\n",
    ):
        assert line in out, line
    block = yaml.safe_load(out[out.index("data:\n") :])["data"]
    assert block == {
        "instructions": [{"path": "qa.csv", "columns": {"prompt": "Q", "answer": "A"}}],
        "preferences": ["pairs.jsonl"],
        "on_bad_row": "set_aside",
    }
    given = block["instructions"][0] | {"path": str(files / "qa.csv")}
    assert len(read_conversations(given, on_bad_row="set_aside").rows) == 3
    assert len(read_pairs(files / "pairs.jsonl").rows) == 3


def test_with_a_model_lengths_are_in_tokens_and_rows_in_its_template(files, tiny_model, tiny_base):
    done = data(files, "qa.csv", "--model", str(tiny_model), columns=120)
    assert done.returncode == 0, done.stderr
    assert "row in the template   tokens" in done.stdout
    assert "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>" in done.stdout
    done = data(files, "qa.csv", "--model", str(tiny_base), columns=120)
    assert done.returncode == 0, done.stderr
    assert "row 1 (qa.csv:2)\nthe model has no chat template; prepare_base can set one" in done.stdout
    assert "in the template" not in done.stdout and "tokens" in done.stdout


def test_a_file_that_cannot_be_read_is_exit_code_two_and_the_others_are_shown(files):
    os.mkfifo(files / "pipe.jsonl")
    done = data(files, "gone.jsonl", "pipe.jsonl", "{path: qa.csv, colums: {}}", "pairs.jsonl")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: gone.jsonl does not exist (nor is it a hub name, owner/name)",
        "error: pipe.jsonl is a named pipe, expected a regular file; write its content into a file first",
        "error: {path: qa.csv, colums: {}}: unknown key 'colums' of a file; did you mean 'columns'?",
    ]
    assert "  preferences:\n    - pairs.jsonl" in done.stdout


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.csv", "prompt,completion\n"), ("a.json", "[]")])
def test_a_source_without_a_row_is_exit_code_two(files, name, content):
    (files / name).write_text(content)
    done = data(files, name)
    assert done.returncode == 2
    assert done.stderr == f"error: {name} has no rows\n"


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.jsonl", '{"prompt": "é"}'.encode("latin-1"), "line: found byte 0xe9 at 13, expected UTF-8 (a.jsonl:1)"),
        ("a.csv", b"prompt,answer\na,b,c\n", "row: found 3 cells, expected 2, as in the first line (a.csv:2)"),
    ],
)
def test_a_source_without_a_readable_row_is_exit_code_two_with_the_cause(files, name, content, cause):
    (files / name).write_bytes(content)
    done = data(files, name)
    assert done.returncode == 2
    assert done.stderr == f"error: {name} has no valid row: 1 row: {cause}\n"
    assert "no known format" not in done.stdout


def test_an_evaluation_set_that_cannot_be_read_is_refused_before_the_report(files):
    (files / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    done = data(files, "qa.csv", "--evaluation", "latin.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("found byte 0xe9 at 13, expected UTF-8 (correct or remove the row)\n")


def test_columns_of_no_kind_are_a_report_with_what_is_expected(files):
    (files / "odd.jsonl").write_text('{"x1": 1}\n')
    done = data(files, "odd.jsonl")
    assert done.returncode == 0
    assert "read as       nothing" in done.stdout and "for the recipe" not in done.stdout
    assert "documents     text\n" in "\n".join(line.rstrip() for line in done.stdout.splitlines())


def test_columns_of_no_kind_give_a_command_that_a_shell_can_run(files):
    (files / "$fragen.csv").write_text("Frage,Antwort,Quelle: x\nWann?,Um 9.,web\n")
    (files / "fragen.csv").write_text("Frage,Antwort,Quelle\nWann?,Um 9.,web\n")
    for name in ("fragen.csv", "$fragen.csv"):
        (line,) = [line for line in data(files, name).stdout.splitlines() if line.startswith("alignloop data ")]
        (given,) = shlex.split(line)[2:]
        assert yaml.safe_load(given) == {"path": name, "columns": {"prompt": "Frage", "answer": "Antwort"}}
        assert "read as     instructions, by the columns prompt + answer (1)" in data(files, given).stdout
    assert line != 'alignloop data "{path: $fragen.csv, columns: {prompt: Frage, answer: Antwort}}"'
    (files / "one.csv").write_text("Absatz\nHallo\n")
    assert data(files, "one.csv").stdout.endswith('\nalignloop data "{path: one.csv, columns: {text: Absatz}}"\n')


def test_without_a_model_nothing_heavy_is_imported(files):
    program = (
        "import sys, runpy; sys.argv = ['data.py', 'pairs.jsonl']\n"
        "try: runpy.run_path(r'%s', run_name='__main__')\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    ) % (ROOT / "commands" / "data.py")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=files,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_it_shows_what_curation_would_drop_and_which_evaluation_prompts_the_rows_contain(tmp_path):
    long = " ".join(f"word{number}" for number in range(40))
    answers = ["Yes.", "yes", long, f"{long} too", "N/A"]
    rows = [{"prompt": "Is the question that people ask here the right one?", "response": text} for text in answers]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "asked.txt").write_text("Is the question that people ask here the right one\nWho?\n")
    done = data(tmp_path, "rows.jsonl", columns=120)
    shown = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if len(line.split()) > 4}
    assert [shown.get(rule) for rule in ("exact_duplicate", "near_duplicate", "empty_answer")] == ["1", "1", "1"]
    assert "line 5: Is the question" in done.stdout
    report = done.stdout[: done.stdout.index("row 1 (")]
    assert "what `curate: {}` would drop (nothing is dropped now)" in report and "gopher" not in report
    (limits,) = [line.split()[1:4] for line in report.splitlines() if "near_duplicate" in line]
    assert limits[0] == "1" and float(limits[1]) > 0.8 and limits[2] == "0.8"
    done = data(tmp_path, "rows.jsonl", "--evaluation", "asked.txt", columns=120)
    overlap = "asked: 1 of its 2 prompts are in these rows (1 completely), 1 share an 8-gram; longest span 10 words"
    assert overlap in " ".join(done.stdout.split())
    done = data(tmp_path, "rows.jsonl", "--evaluation", "gone.txt")
    assert (done.returncode, done.stderr) == (2, "error: gone.txt does not exist (nor is it a hub name, owner/name)\n")


def test_rules_that_a_recipe_has_to_ask_for_are_in_a_table_of_their_own(tmp_path):
    """A short text that is there twice: by default only its copy is dropped, and by a rule for the web both."""
    (tmp_path / "texts.txt").write_text("Bern opens at 9.\n\nBern opens at 9.\n")
    report = data(tmp_path, "texts.txt", columns=120).stdout
    first, second = report.split(
        "what document_rules or dialog_rules of `curate` would drop if a recipe asked for them"
    )
    shown = [[line.split()[:4] for line in part.splitlines() if "line " in line] for part in (first, second)]
    assert shown == [[["exact_duplicate", "1", "1", "1"]], [["gopher_min_words", "2", "4", "50"]]]
