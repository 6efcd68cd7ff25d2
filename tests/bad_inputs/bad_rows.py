"""Bad rows and bad files of rows, given to prepare_data and to a recipe."""

import errno
import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_schemas.sources import lines_of
from tests.bad_inputs.cases import Call, Case, Place

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
GOOD: dict[str, Any] = {
    "documents": {"text": "a"},
    "instructions": {"messages": [USER, ANSWER]},
    "prompts": {"prompt": "q"},
    "preferences": {"prompt": "q", "chosen": "a", "rejected": "b"},
}


def hh(answer: str, question: str = "q") -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def sharegpt(speaker: Any, value: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "q"}, {"from": speaker, "value": value}]}


def dialog(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


def calling(call: Any) -> dict[str, Any]:
    return dialog(USER, {"role": "assistant", "tool_calls": [call]}, ANSWER)


def pair(**columns: Any) -> dict[str, Any]:
    return GOOD["preferences"] | columns


NO_ANSWER = ("found an answer without a last assistant message", "expected one that ends with it")
TWICE = "found two identical answers, expected two different answers"
SYSTEM = {"role": "system", "content": "s"}
# A zstd frame of `{"text": "a"}` with a checksum, as the zstd program writes it.
ZSTD = bytes.fromhex("28b52ffd240e7100007b2274657874223a202261227d0afc0c4858")
# kind, a row after a valid one, the error after file and line
ROWS: list[tuple[str, Any, str]] = [
    ("documents", {"text": 3}, "text: found 3, expected text"),
    ("documents", {"text": " \n"}, "text: found empty text, expected text"),
    ("documents", {"text": None}, "text: found nothing, expected a value"),
    ("documents", [1, 2], "row: found a list of 2, expected a mapping of columns to values"),
    ("documents", {"txt": "a"}, "columns: found txt, expected text"),
    ("documents", {}, "columns: found none, expected text"),
    ("documents", '{"text": "a\n', """line: found '{"text": "a' (Unterminated string starting at character 10)"""),
    ("documents", '{"text": "\\ud83d"}\n', "line: found half a character (\\ud83d), expected whole characters"),
    ("documents", "[" * 100_000 + "\n", "line: found '[[["),
    ("documents", f'{{"text": {"1" * 5000}}}\n', 'line: found \'{"text":'),
    ("documents", '{"text": "a", "text": "b"}\n', "line: found the key 'text' twice in one mapping, expected each key"),
    ("instructions", dialog(), "messages: found no messages, expected at least one"),
    ("instructions", {"messages": 3}, "messages: found 3, expected a list of messages"),
    ("instructions", {"messages": "[1"}, "messages: found '[1' (Expecting ',' delimiter at character 3), expected"),
    ("instructions", dialog("hi"), "messages.0: found 'hi', expected a message: role and content, or from and value"),
    ("instructions", dialog({"role": "user", "content": " "}, ANSWER), "messages.0: found an empty message, expected"),
    ("instructions", dialog({"role": "user", "content": [{"type": "image"}]}, ANSWER), "messages.0.content.0: found a"),
    (
        "instructions",
        dialog(USER | {"images": ["a.png"]}, ANSWER),
        "messages.0.images: found a list of 1, expected none",
    ),
    (
        "instructions",
        dialog(USER, {"role": "assistant", "content": [{"type": "text", "text": "a", "weight": 0}]}),
        "messages.1.content.0: found a part that is not trained, expected none: a turn is trained in full, or not at",
    ),
    ("instructions", dialog(USER, ANSWER | {"refusal": "no"}), "messages.1.refusal: found 'no', expected none: a"),
    ("instructions", dialog(USER, ANSWER | {"mask": 1}), "messages.1.mask: found 1, expected true (not trained) or"),
    ("instructions", calling({"function": "f"}), "messages.1.tool_calls.0.function: found 'f', expected a function"),
    ("instructions", calling({"arguments": {}}), "messages.1.tool_calls.0.name: found nothing, expected the name of"),
    ("instructions", calling({"name": "f", "arguments": 5}), "messages.1.tool_calls.0.arguments: found 5, expected a"),
    (
        "instructions",
        calling({"name": "f", "arguments": {"a": 1}, "parameters": {"a": 2}}),
        "messages.1.tool_calls.0.parameters: found a mapping with a, expected none beside arguments",
    ),
    (
        "instructions",
        dialog(USER, ANSWER | {"function_call": {"name": "f"}, "tool_calls": [{"name": "f"}]}),
        "messages.1.function_call: found a mapping with name, expected none beside tool_calls",
    ),
    ("instructions", dialog(SYSTEM, USER, ANSWER) | {"system": "t"}, "system: found 't', expected the dialog's own"),
    (
        "instructions",
        {"question": "q", "answer": "a", "system": "s", "system_prompt": "t"},
        "system, system_prompt: found two different system messages, expected one",
    ),
    (
        "instructions",
        {"question": [USER], "answer": "a", "context": "c"},
        "context: found 'c', expected none beside a dialog in question",
    ),
    (
        "instructions",
        {"instruction": "q", "output": "a", "input": "b", "context": "c"},
        "input, context: found two different texts, expected one",
    ),
    (
        "preferences",
        pair(chosen=[ANSWER, USER, ANSWER], rejected="c"),
        "chosen, rejected: found answers of several turns, which differ from message 1 on, expected answers that",
    ),
    ("instructions", dialog(USER, ANSWER | {"weight": 0.5}), "messages.1.weight: found 0.5, expected 0 or 1, false or"),
    ("instructions", dialog(USER, ANSWER | {"weight": 0}), "messages: found a dialog in which no turn is trained"),
    (
        "instructions",
        dialog(USER | {"train": True}, ANSWER),
        "messages.0.train: found true in a turn of 'user', expect",
    ),
    (
        "instructions",
        dialog(USER, ANSWER | {"train_detail": [1]}),
        "messages.1.train_detail: found a list of 1, expect",
    ),
    (
        "instructions",
        dialog(USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "3"}]}, ANSWER),
        "messages.1.tool_calls.0.arguments: found '3', expected the JSON text of a mapping",
    ),
    (
        "instructions",
        dialog(ANSWER, USER, ANSWER),
        "messages: found a first message from 'assistant', expected one from",
    ),
    ("instructions", dialog(USER, ANSWER) | {"label": 0}, "label: found 0, expected true or false (KTO); rename the"),
    ("instructions", {"prompt": "q", "completion": "a", "label": "b"}, "label: found 'b', expected true for a good"),
    ("instructions", {"question": "q", "answers": []}, "answers: found no answer, expected at least one"),
    (
        "documents",
        '{"text": "a", "b": ' + "[" * 100 + "]" * 100 + "}\n",
        "row: found lists or mappings more than 100 deep, expected fewer inside one another",
    ),
    (
        "instructions",
        dialog(
            USER,
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": ' + "[" * 100 + "]" * 100 + "}"}]},
        ),
        "messages.1.tool_calls.0.arguments: found lists or mappings more than 100 deep, expected fewer",
    ),
    ("prompts", {"turns": ["q", 3]}, "turns: found a list of 2, expected a list of texts, one for each turn"),
    (
        "prompts",
        {"turns": ["q"], "reference": ["a", "b"]},
        "reference: found a list of 2, expected one answer for each",
    ),
    (
        "preferences",
        pair(chosen_rating=1, rejected_rating=2),
        "chosen_rating, rejected_rating: found 1 for chosen and 2",
    ),
    ("preferences", pair(chosen_rating="a"), "chosen_rating: found 'a', expected a number"),
    ("preferences", pair(chosen_rating=[1]), "chosen_rating: found a list of 1, expected a finite number"),
    ("preferences", pair(rating=[1]), "rating: found a list of 1, expected two numbers, of chosen and of rejected"),
    (
        "preferences",
        pair(chosen=[ANSWER | {"weight": 0}]),
        "chosen: found an answer with a turn that is not trained, expected answers that are compared in full",
    ),
    ("instructions", dialog({"role": "critic", "content": "q"}), "messages.0.role: found 'critic', expected 'system',"),
    ("instructions", dialog({"content": "q"}, ANSWER), "messages.0.role: found nothing, expected a value"),
    ("instructions", dialog(USER), "messages: found a last message from 'user', expected one from 'assistant'"),
    ("instructions", dialog(ANSWER), "messages: found no user message, expected at least one"),
    ("instructions", dialog(USER, SYSTEM, ANSWER), "messages: found a system message after the first message"),
    ("instructions", dialog(USER, {"role": "assistant", "tool_calls": 3}), "messages.1.tool_calls: found 3, expected"),
    ("instructions", dialog(USER, ANSWER) | {"tools": "{"}, "tools: found '{' (Expecting property name enclosed in"),
    ("instructions", dialog(USER, ANSWER) | {"tools": ["f"]}, "tools.0: found 'f', expected a mapping"),
    ("instructions", dialog(USER, ANSWER) | {"difficulty": "hard"}, "difficulty: found 'hard', expected a number"),
    (
        "instructions",
        json.dumps(dialog(USER, ANSWER))[:-1] + ', "difficulty": NaN}\n',
        "difficulty: found nan, expected a finite number",
    ),
    ("instructions", sharegpt("critic", "a"), "conversations.1.from: found 'critic', expected one of human, user,"),
    ("instructions", sharegpt(["gpt"], "a"), "conversations.1.from: found a list of 1, expected one of human, user,"),
    ("instructions", sharegpt("gpt", 3), "conversations.1.value: found 3, expected text"),
    ("instructions", sharegpt("function_call", "[1]"), "conversations.1.value: found 1, expected a function call with"),
    ("instructions", sharegpt("gpt", "a") | {"system": 3}, "system: found 3, expected text"),
    ("instructions", {"instruction": "q", "output": True}, "output: found True, expected text"),
    ("instructions", {"instruction": " ", "output": "a"}, "instruction: found empty text, expected text"),
    ("instructions", {"instruction": "q", "output": "a", "history": [["b"]]}, "history.0: found a list of 1, expected"),
    ("instructions", {"instruction": "q", "output": "a", "history": 3}, "history: found 3, expected a list of turns"),
    ("prompts", {"prompt": ""}, "prompt: found empty text, expected text"),
    (
        "prompts",
        {"prompt": [ANSWER]},
        "prompt: found a last message from 'assistant', expected one from 'user'",
    ),
    ("preferences", pair(chosen=""), "chosen: found empty text, expected text"),
    ("preferences", pair(chosen=[]), " ".join(["chosen:", ", ".join(NO_ANSWER)])),
    ("preferences", pair(rejected=[]), " ".join(["rejected:", ", ".join(NO_ANSWER)])),
    ("preferences", pair(rejected="a"), f"chosen, rejected: {TWICE}"),
    ("preferences", pair(chosen=[USER, USER, ANSWER]), "chosen: found a dialog that begins with 'user', expected the"),
    ("preferences", pair(strength="huge"), "strength: found 'huge', expected 'significantly_better', 'better',"),
    ("preferences", pair(disagreement=-0.5), "disagreement: found -0.5, expected 0 or more"),
    ("preferences", pair(disagreement=2), "disagreement: found 2, expected 1 or less"),
    ("preferences", json.dumps(pair())[:-1] + ', "chosen_score": NaN}\n', "chosen_score: found nan, expected a finite"),
    ("preferences", json.dumps(pair())[:-1] + ', "rejected_score": Infinity}\n', "rejected_score: found inf, expected"),
    ("preferences", pair(between=3), "between: found 3, expected a list of answers"),
    ("preferences", pair(between=["a"]), "ranking: found two identical answers, expected different answers"),
    ("preferences", {"prompt": "q", "ranked": ["a"]}, "ranked: found a list of 1, expected a list of at least two"),
    ("preferences", {"prompt": "q", "ranked": ["a", "b", "b", "c"]}, "ranking: found two identical answers, expected"),
    ("preferences", {"prompt": "q", "responses": ["a"], "scores": [1, 2]}, "scores: found a list of 2, expected a"),
    ("preferences", {"prompt": "q", "responses": ["a", "b"], "scores": [1, "2"]}, "scores: found '2', expected finite"),
    ("preferences", {"prompt": "q", "responses": ["a", "b"], "scores": [1, 10**400]}, "scores: found 1000000000"),
    ("preferences", {"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}, "scores: found 1 different scores,"),
    ("preferences", {"turns": []}, "turns: found a list of 0, expected a list of turns with prompt, chosen and"),
    ("preferences", {"turns": [{"prompt": "q"}]}, "turns.0: found a mapping with prompt, expected a turn with prompt,"),
    ("preferences", {"chosen": hh("a"), "rejected": hh("b", "p")}, "chosen, rejected: found two different prompts"),
    ("preferences", {"chosen": "a", "rejected": hh("b")}, "chosen: found 'a', expected a dialog of '\\n\\nHuman: …"),
    ("preferences", {"chosen": [], "rejected": []}, "prompt: found no messages, expected at least one"),
]


def of_row(kind: str, row: Any, says: str) -> Case:
    def make(place: Place) -> Call:
        place.write("rows.jsonl", [GOOD[kind], row])
        return place.stage("prepare_data", **{kind: ["rows.jsonl"]})

    return Case(f"{kind} row {says[:60]}", make, f"rows.jsonl:2: {says}")


# name of a file of documents, its content, the error
FILES: list[tuple[str, bytes, str]] = [
    ("none.jsonl", b"", "none.jsonl has no rows"),
    ("header.csv", b"text\n", "header.csv has no rows"),
    ("none.json", b" ", "none.json has no rows"),
    ("blank.txt", b"\n \n", "blank.txt has no rows"),
    ("pairs.jsonl", json.dumps(GOOD["preferences"]).encode(), "pairs.jsonl has the columns prompt, chosen, rejected;"),
    ("null.jsonl", b'{"text": null}', "null.jsonl:1: text: found nothing, expected a value"),
    ("bytes.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "bytes.jsonl:2: line: found byte 0xe9 at 11, expected UTF-8"),
    ("bytes.csv", b"text\na\ncaf\xe9\n", "bytes.csv:3: found byte 0xe9, expected UTF-8 text"),
    ("quote.csv", b'text\n"a"b\n', "quote.csv:2 is not CSV"),
    ("cells.csv", b"text,id\na,1\nb\n", "cells.csv:3: row: found 1 cells, expected 2, as in the first line"),
    (
        "twice.csv",
        b"text,text\na,b\n",
        "twice.csv has two columns 'text', expected different names; rename one of them",
    ),
    ("keys.json", b'[{"text": "a", "text": "b"}]', "keys.json:1: row: found the key 'text' twice in one mapping,"),
    ("lists.json", b'{"a": [], "a": []}', "lists.json holds the key 'a' twice in one mapping, expected each key once"),
    ("cut.json", b"[1,", "cut.json is not JSON (Expecting value: line 1 column 4 (char 3))"),
    (
        "open.json",
        b'[{"text": "a',
        "open.json is not JSON (Unterminated string starting at: line 1 column 11",
    ),
    ("extra_key.json", b'{"text": "a"} x', "extra_key.json is not JSON (Extra data: line 1 column 15 (char 14))"),
    ("extra.json", b'[{"text": "a"}]\n x', "extra.json is not JSON (Extra data: line 2 column 2 (char 17))"),
    (
        "comma.json",
        b'[{"text": "a"}\n{}]',
        "comma.json is not JSON (Expecting ',' delimiter: line 2 column 1",
    ),
    (
        "name.json",
        b'{"a": [], 3: 4}',
        "name.json is not JSON (Expecting property name enclosed in double",
    ),
    ("colon.json", b'{"a" []}', "colon.json is not JSON (Expecting ':' delimiter: line 1 column 6 (char 5))"),
    ("deep.json", b"[" * 100_000, "deep.json is not JSON (maximum recursion depth exceeded"),
    (
        "long_number.json",
        b'[{"text": ' + b"9" * 5000 + b"}]",
        'long_number.json:1: row: found \'{"text": 999999',
    ),
    (
        "utf16.jsonl",
        '{"text": "a"}'.encode("utf-16"),
        "utf16.jsonl is UTF-16 text, expected text in UTF-8; save it as UTF-8",
    ),
    (
        "twice.jsonl.gz",
        gzip.compress(gzip.compress(b'{"text": "a"}')),
        "twice.jsonl.gz decompressed is a gzip file, expected text in UTF-8; decompress it twice",
    ),
    ("return.csv", b"text,id\na\rb,1\n", "return.csv:2 is not CSV (a carriage return in a cell without quotes)"),
    (
        "nested.json",
        b'[[{"text": "a"}]]',
        "nested.json:1: row: found a list of 1, expected a mapping of columns",
    ),
    ("bytes.json", b'[{"text": "a"},\n{"text": "\xe9"}]', "bytes.json:2: found byte 0xe9, expected UTF-8 text"),
    ("bytes.txt", b"a\n\nb\xc3", "bytes.txt:3: found byte 0xc3, expected UTF-8 text"),
    ("bytes.tsv", b"text\na\xff\n", "bytes.tsv:2: found byte 0xff, expected UTF-8 text"),
    ("more.csv", b"text,id\na,1\nb,2,3\n", "more.csv:3: row: found 3 cells, expected 2, as in the first line"),
    (
        "cut.tsv",
        b'text\tid\n"a"\t1\n"b\t2\n',
        "cut.tsv:3 is not CSV (unexpected end of data); if quotes are part of its",
    ),
    ("more.tsv", b"text\tid\na\t1\t2\n", "more.tsv:2: row: found 3 cells, expected 2, as in the first line"),
    ("cut.csv", b'text\na\n"b\nc', "cut.csv:3 is not CSV (unexpected end of data)"),
    ("cut.csv.gz", gzip.compress(b"text\na\n", mtime=0)[:-9], "cut.csv.gz is not a complete gzip file"),
    ("two.json", b'{"a": [], "b": []}', "two.json holds a mapping with a, b, expected a list of rows, or an object"),
    ("three.json", b"3", "three.json holds 3, expected a list of rows"),
    ("half.json", b'[{"text": "\\udfff"}]', "half.json:1: line: found half a character (\\udfff), expected whole"),
    ("cut.jsonl.gz", gzip.compress(b'{"text": "a"}', mtime=0)[:-9], "cut.jsonl.gz is not a complete gzip file"),
    ("plain.jsonl.gz", b'{"text": "a"}', "plain.jsonl.gz is not a complete gzip file (Not a gzipped file"),
    ("cut.parquet", b"PAR1", "cut.parquet is not a Parquet file"),
    ("cut.arrow", b"ARROW1", "cut.arrow is not an Arrow file"),
    ("plain.jsonl.zst", b'{"text": "a"}', "plain.jsonl.zst is not a complete zstd file; compress or copy it again"),
    ("head.jsonl.zst", ZSTD[:5], "head.jsonl.zst is not a complete zstd file; compress or copy it again"),
    ("block.jsonl.zst", ZSTD[:6] + b"\xff" * 20, "block.jsonl.zst is not a complete zstd file; compress or copy it"),
    ("sum.jsonl.zst", ZSTD[:-4] + bytes(4), "sum.jsonl.zst is not a zstd file (ZSTD decompress failed"),
    (
        "saved/state.json",
        b'{"_data_files": [{"filename": "x.arrow"}]}',
        "saved is not complete: state.json lists x.arrow",
    ),
    ("table.xlsx", b"PK", "table.xlsx has no known format; expected one of .jsonl, .json, .csv, .tsv, .txt, .parquet"),
    ("folder/README.md", b"", "folder is a folder without data; expected .jsonl,"),
    ("folder.jsonl/x", b"", "folder.jsonl is a folder without data; expected .jsonl,"),
]


def of_file(name: str, content: bytes, says: str) -> Case:
    def make(place: Place) -> Call:
        place.write(name, content)
        return place.stage("prepare_data", documents=[name.partition("/")[0]])

    return Case(f"file {name}", make, says)


def of_recipe(name: str, content: bytes, says: str, kind: str = "instructions") -> Case:
    """The same rows, named by a recipe, before anything is launched."""

    def make(place: Place) -> Call:
        words = place.recipe(f"data.{kind}={name}")
        place.write(name, content)
        return place.alignloop("plan", *words)

    return Case(f"planned file {name} of {kind}", make, says)


def absent(place: Place) -> Call:
    return place.stage("prepare_data", documents=["gone.jsonl"])


def from_the_hub(place: Place) -> Call:
    import datasets

    def load_dataset(name: str, *, split: str) -> Any:
        raise ConnectionError("no\nnetwork")

    place.patch.setattr(datasets, "load_dataset", load_dataset)
    return place.stage("prepare_data", documents=["owner/name"])


class Broken(io.FileIO):
    """A file on a disk that fails."""

    def read(self, *_: Any) -> bytes:
        raise OSError(5, "Input/output error")


def unreadable(name: str) -> Callable[[Place], Call]:
    """A file that may not be opened, or with the ending .csv one whose disk fails."""

    def make(place: Place) -> Call:
        def open_file(path: Path, *arguments: Any, **keywords: Any) -> Any:
            if path.name != name:
                return own(path, *arguments, **keywords)
            if path.suffix == ".csv":
                return Broken(path)
            raise PermissionError(13, "Permission denied", str(path))

        own = Path.open
        place.write(name, [GOOD["documents"]])
        call = place.stage("prepare_data", documents=[name])

        def patched() -> int:
            with place.patch.context() as patch:
                patch.setattr(Path, "open", open_file)  # root may read every file
                return call()

        return patched

    return make


def with_shares(**shares: float) -> Any:
    def make(place: Place) -> Call:
        place.write("rows.jsonl", [GOOD["instructions"]])
        return place.stage("prepare_data", instructions=["rows.jsonl"], **shares)

    return make


def made_by(function: str, **arguments: Any) -> Any:
    def make(place: Place) -> Call:
        place.write(
            "makers.py", "def make(folder, *, seed, num_rows=1):\n    raise ValueError('no\\nrows')\nthree = [3]\n"
        )
        place.write("broken.py", "def make(folder:\n")
        place.write("needs.py", "import no_such_library\n\ndef make(folder): ...\n")
        place.write("parts/__init__.py", "")
        place.write("parts/maker.py", "from .broken import rows\n\ndef make(folder): ...\n")
        place.write("parts/broken.py", "rows = (\n")
        return place.stage("prepare_data", make_data=function, make_data_arguments=arguments or None)

    return make


def all_set_aside(kind: str, *rows: Any) -> Any:
    """Rows that say themselves that they are not to be trained, whatever on_bad_row is."""

    def make(place: Place) -> Call:
        place.write("rows.jsonl", list(rows))
        return place.stage("prepare_data", **{kind: ["rows.jsonl"]})

    return make


def full_temporary_folder(place: Place) -> Call:
    """Labelled answers are written there until all answers to a prompt have been read."""

    def full(*, dir: Path | None = None) -> Any:
        if dir is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return temporary_file(dir=dir)

    temporary_file = tempfile.TemporaryFile
    place.patch.setattr(tempfile, "TemporaryFile", full)
    place.write("rows.jsonl", [{"prompt": "q", "completion": text, "label": text == "a"} for text in "ab"])
    return place.stage("prepare_data", preferences=["rows.jsonl"])


def one_first_message(place: Place) -> Call:
    place.write("rows.jsonl", [dialog(USER, ANSWER | {"content": text}) for text in "abc"])
    return place.stage("prepare_data", instructions=["rows.jsonl"])


def set_aside_alone(place: Place) -> Call:
    place.write("rows.jsonl", [{"messages": []}])
    return place.stage("prepare_data", instructions=["rows.jsonl"], on_bad_row="set_aside")


def growing_file(place: Place) -> Call:
    """Another program appends to the file after its lines were counted."""
    path = place.write("growing.jsonl", [{"text": "a"}])
    lines = lines_of(path)
    place.write("growing.jsonl", [{"text": "a"}, {"text": "b"}])
    return place.function(lambda: list(lines))


def deleted_table(place: Place) -> Call:
    """Another program deletes a file between two loops over it, each of which opens it."""
    import pyarrow.parquet

    path = place.write("deleted.parquet", b"")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    lines = lines_of(path)
    path.unlink()
    return place.function(lambda: list(lines))


CASES = [
    Case("a table that is deleted while it is read", deleted_table, "HERE/deleted.parquet does not exist"),
    Case(
        "a file that grows while it is read",
        growing_file,
        "HERE/growing.jsonl changed while it was read; run again once it is complete",
    ),
    *(of_row(*row) for row in ROWS),
    *(of_file(*file) for file in FILES),
    of_recipe("none.jsonl", b"", "data.instructions: HERE/none.jsonl has no rows"),
    of_recipe("rows.jsonl", b'{"text": "a"}', "data.instructions: HERE/rows.jsonl has the columns text; expected"),
    of_recipe("cut.jsonl.gz", b"\x1f\x8b", "data.preferences: HERE/cut.jsonl.gz is not a complete gzip", "preferences"),
    of_recipe("cut.json", b"[", "data.prompts: HERE/cut.json is not JSON", "prompts"),
    Case("file that is not there", absent, "gone.jsonl does not exist (nor is it a hub name, owner/name)"),
    Case(
        "hub that does not answer",
        from_the_hub,
        "owner/name: no such path, and not available from the hub (no network)",
    ),
    Case("file that may not be read", unreadable("rows.jsonl"), "rows.jsonl cannot be read (Permission denied)"),
    Case("file on a disk that fails", unreadable("rows.csv"), "rows.csv cannot be read (Input/output error)"),
    Case("share over 1", with_shares(evaluation_share=1.5), "evaluation_share=1.5: expected a number 0 or"),
    Case("share that is no number", with_shares(judge_share=float("nan")), "judge_share=nan: expected a number"),
    Case(
        "shares that leave nothing",
        with_shares(evaluation_share=0.5, judge_share=0.5),
        "evaluation_share=0.5 + judge_share=0.5 + validation_share=0.05 leave nothing to train on; expected a sum",
    ),
    Case(
        "no evaluation prompt",
        with_shares(evaluation_share=0.0001),
        "no evaluation prompt is left: give evaluation_prompts, or a larger evaluation_share",
    ),
    Case(
        "rows that are all set aside",
        set_aside_alone,
        "all 1 rows are set aside; the first: rows.jsonl:1: messages:",
    ),
    Case(
        "rows of weight 0",
        all_set_aside("instructions", GOOD["instructions"] | {"weight": 0}),
        "all 1 rows are set aside; the first: rows.jsonl:1: weight: found 0, expected a row that is to be trained",
    ),
    Case(
        "bad answers only",
        all_set_aside("instructions", {"prompt": "q", "completion": "a", "label": False}),
        "all 1 rows are set aside; the first: rows.jsonl:1: label: found a bad answer, expected a good one",
    ),
    Case(
        "labels without a pair",
        all_set_aside("preferences", {"prompt": "q", "completion": "a", "label": True}),
        "all 1 rows are set aside; the first: rows.jsonl:1: label: found only good answers to this prompt",
    ),
    Case(
        "labels and a full temporary folder",
        full_temporary_folder,
        "rows can't be written into this folder: [Errno 28] No space left on device",
    ),
    Case(
        "one first user message",
        one_first_message,
        "all 3 dialogs have the same first user message ('q'), so they are on one side of the split, and the other",
    ),
    Case(
        "nothing to read",
        lambda place: place.stage("prepare_data"),
        "prepare_data has nothing to read: give make_data, documents, instructions or preferences",
    ),
    Case(
        "function without a name",
        made_by("makers"),
        "'makers' is no function: expected module:function",
    ),
    Case("function of no module", made_by("nowhere:make"), "'nowhere:make': no module 'nowhere' beside the recipe ("),
    Case(
        "function of a module that needs another",
        made_by("needs:make"),
        "needs:make: HERE/needs.py cannot be imported: No module named",
    ),
    Case(
        "function of no name",
        made_by(".x:make"),
        "'.x:make' is no function: expected module:function",
    ),
    Case("sibling that is not Python", made_by("parts.maker:make"), "parts.maker:make: HERE/parts/broken.py:1 is not"),
    Case("module that is not Python", made_by("broken:make"), "broken:make: HERE/broken.py:1 is not Python: '(' was"),
    Case(
        "module without the function", made_by("makers:gone"), "makers:gone: HERE/makers.py defines no function 'gone'"
    ),
    Case("name of no function", made_by("makers:three"), "makers:three: 'three' in HERE/makers.py is not a function"),
    Case("maker that refuses", made_by("makers:make"), "makers:make: no rows"),
    Case(
        "argument that no maker has",
        made_by("makers:make", num_row=3),
        "makers:make: got an unexpected keyword argument 'num_row'",
    ),
    Case(
        "toy world without such a half",
        made_by("toy_world.make:make", evaluation_half="both"),
        "toy_world.make:make: evaluation_half='both' is neither 'report' nor 'tune'",
    ),
    Case(
        "more prompts than the toy world has",
        made_by("toy_world.make:make", num_prompts=10**6, num_documents=1),
        "toy_world.make:make: num_prompts=1000000, but the toy world has ",
    ),
]
