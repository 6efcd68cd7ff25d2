"""curate: which rows are dropped, why, and that neither their order nor the number of processes matters."""

import json
import random

import pytest

from data_schemas.files import read_json
from engine.curation import table
from tests.stage_runs import call_stage, run_here
from tests.toy_rows import read_jsonl, write_jsonl

LONG = " ".join(f"word{number}" for number in range(60))
FUNCTIONS = """
def short(row):
    return "one word" if " " not in row["messages"][-1]["content"] else None
def broken(row):
    raise ValueError("no such column")
def number(row):
    return 3
"""


def dialog(question: str, answer: str, **fields):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **fields}


@pytest.fixture
def rows():
    """24 different dialogs, an exact duplicate of one, and a near duplicate of another with a better score."""
    different = [dialog(f"What is {n} times {n + 1}? Explain number {n}.", f"It is {n * (n + 1)}.") for n in range(24)]
    copy = dialog("what is 3 times 4?  EXPLAIN number 3", "It is 12.")
    long = dialog("Write a long text.", LONG, score=0.1)
    better = dialog("Write a long text.", f"{LONG} indeed", score=0.9)
    return [*different, copy, long, better]


def dropped_of(folder):
    return {(row["rule"], row["row"]["messages"][-1]["content"][-12:]) for row in read_jsonl(folder / "dropped.jsonl")}


def test_of_duplicates_the_best_row_stays_and_the_dropped_one_names_it(tmp_path, rows):
    record = run_here("curate", tmp_path / "out", instructions=[write_jsonl(tmp_path / "rows.jsonl", rows)])
    kept, dropped = (read_jsonl(tmp_path / "out" / f"{name}.jsonl") for name in ("instructions.train", "dropped"))
    assert len(kept) == 25
    assert [row for row in kept if row.get("score")] == [rows[-1]]
    near = next(row for row in dropped if row["rule"] == "near_duplicate")
    assert near["row"] == rows[-2]
    # 62 and 63 shared 5-grams of the question's 4 words and the answer's 60 or 61
    assert near["value"] == pytest.approx(60 / 61)
    assert (near["threshold"], near["place"]) == (0.8, f"{tmp_path}/rows.jsonl:26")
    exact = next(row for row in dropped if row["rule"] == "exact_duplicate")
    assert exact["partner"] in {row["row_id"] for row in dropped} ^ {exact["partner"]}
    assert record.metrics == {
        "rows": 27,
        "kept": 25,
        "instructions.train": 25,
        "dropped_exact_duplicate": 1,
        "dropped_near_duplicate": 1,
    }


def test_the_kept_rows_depend_neither_on_the_order_nor_on_the_processes(tmp_path, rows, monkeypatch):
    run_here("curate", tmp_path / "one", instructions=[write_jsonl(tmp_path / "rows.jsonl", rows)])
    random.Random(1).shuffle(rows)
    files = [write_jsonl(tmp_path / f"{part}.jsonl", rows[part::2]) for part in (0, 1)]
    monkeypatch.setattr(table, "ROWS_OF_A_CHUNK", 5)
    monkeypatch.setattr(table.world, "available_cores", lambda: [0, 1])
    run_here("curate", tmp_path / "two", instructions=files)
    one, two = (
        sorted((tmp_path / name / "instructions.train.jsonl").read_text().splitlines()) for name in ("one", "two")
    )
    assert one == two
    assert dropped_of(tmp_path / "one") == dropped_of(tmp_path / "two")
    assert (
        read_json(tmp_path / "one" / "artifact.json")["metrics"]
        == read_json(tmp_path / "two" / "artifact.json")["metrics"]
    )


def test_pairs_of_one_prompt_stay_and_equal_ones_go(tmp_path):
    def pair(chosen, rejected):
        answers = {"chosen": chosen, "rejected": rejected}
        content = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
        return {"prompt": [{"role": "user", "content": LONG}], **content}

    pairs = [pair("Yes.", "No."), pair("No.", "Yes."), pair("Yes.", "Perhaps."), pair("yes", "no")]
    run_here("curate", tmp_path / "out", preferences=[write_jsonl(tmp_path / "pairs.jsonl", pairs)])
    assert len(read_jsonl(tmp_path / "out" / "preferences.train.jsonl")) == 3


def test_a_rule_of_ones_own_drops_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / "own_rules.py").write_text(FUNCTIONS)
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    given = [dialog("Is it?", "Yes."), dialog("Is it so?", "It is not.")]
    file = write_jsonl(tmp_path / "rows.jsonl", given)
    run_here("curate", tmp_path / "out", instructions=[file], row_rules=["own_rules:short"])
    (dropped,) = read_jsonl(tmp_path / "out" / "dropped.jsonl")
    assert (dropped["rule"], dropped["value"], dropped["row"]) == ("short", "one word", given[0])
    assert (tmp_path / "out" / "instructions.train.jsonl").read_text() == json.dumps(given[1]) + "\n"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("broken", "own_rules:broken raised ValueError: no such column, on FILE:1"),
        ("number", "own_rules:number returned 3; expected a reason as text, or None"),
    ],
)
def test_a_rule_that_fails_is_one_line_with_the_row(tmp_path, monkeypatch, rule, message):
    (tmp_path / "own_rules.py").write_text(FUNCTIONS)
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    file = write_jsonl(tmp_path / "rows.jsonl", [dialog("Is it?", "Yes.")])
    assert call_stage("curate", tmp_path / "out", instructions=[file], row_rules=[f"own_rules:{rule}"]) == 2
    cause = read_json(tmp_path / "out" / "outcome.json")["cause"]
    assert message.replace("FILE", str(file)) in cause


def test_more_drops_than_allowed_stop_with_the_funnel(tmp_path, rows):
    file = write_jsonl(tmp_path / "rows.jsonl", [rows[0]] * 5 + rows[1:3])
    assert call_stage("curate", tmp_path / "out", instructions=[file]) == 2
    assert (
        "4 of 7 rows of instructions are dropped (exact_duplicate 4), more than max_dropped=0.5"
        in read_json(tmp_path / "out" / "outcome.json")["cause"]
    )
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert [(stratum["rule"], stratum["rows"]) for stratum in funnel] == [
        ("read", 7),
        ("exact_duplicate", 4),
        ("kept", 3),
    ]
    assert len(read_jsonl(tmp_path / "out" / "dropped.jsonl")) == 4
    run_here("curate", tmp_path / "more", instructions=[file], max_dropped=0.6)


@pytest.mark.parametrize("line", ["[1]", '{"text": "a"}', '{"messages": [{"content": "a"}]}', '{"messages": 3}', "{"])
def test_a_line_that_is_no_stored_row_is_named(tmp_path, rows, line):
    file = write_jsonl(tmp_path / "rows.jsonl", rows[:2])
    file.write_text(file.read_text() + line + "\n")
    assert call_stage("curate", tmp_path / "out", instructions=[file]) == 2
    assert f"{file}:3 is not a stored row of instructions" in read_json(tmp_path / "out" / "outcome.json")["cause"]


def test_quality_and_difficulty_drop_rows_that_have_them(tmp_path):
    """Eight rewards 0.0, 0.1, ...: the top quartile are two. A human row has no reward, and stays."""
    scored = [dialog(f"What is {n}?", f"It is {n} {n}.", score=n / 10, difficulty=n / 100) for n in range(8)]
    file = write_jsonl(tmp_path / "rows.jsonl", [*scored, dialog("Who are you?", "A person.")])

    def kept(name, **keys):
        run_here("curate", tmp_path / name, instructions=[file], max_dropped=1, **keys)
        return [row.get("score") for row in read_jsonl(tmp_path / name / "instructions.train.jsonl")]

    assert kept("quartile", top_share=0.25) == [0.6, 0.7, None]
    assert kept("score", min_score=0.5) == [0.5, 0.6, 0.7, None]
    assert kept("both", min_score=0.65, top_share=0.5) == [0.7, None]
    assert kept("difficulty", min_difficulty=0.07) == [0.7, None]
    dropped = read_jsonl(tmp_path / "both" / "dropped.jsonl")
    assert {(row["rule"], row["threshold"]) for row in dropped} == {("min_score", 0.65)}


def test_a_row_with_an_evaluation_prompt_is_dropped_and_reported_by_set(tmp_path):
    question = "How many apples does Anna have after she has given three of her seven apples to her brother Tom today"
    rows = [
        dialog(f"{question}?", "Four."),
        dialog(f"Please: {question}, and why?", "4."),
        dialog("Who is Anna?", "Me."),
    ]
    (tmp_path / "arithmetic.csv").write_text(f"question,answer\n{question},4\n")
    evaluation = write_jsonl(tmp_path / "evaluation_prompts.jsonl", [{"prompt": [{"role": "user", "content": "Who?"}]}])
    given = {"evaluation_prompts": [evaluation], "decontaminate_against": [tmp_path / "arithmetic.csv"]}
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    run_here("curate", tmp_path / "out", instructions=[file], near_duplicates=None, max_dropped=1, **given)
    dropped = {row["rule"]: row["row"] for row in read_jsonl(tmp_path / "out" / "dropped.jsonl")}
    assert dropped == {"llama3_exact_prompt": rows[0], "tulu3_8gram": rows[1]}
    report = json.loads((tmp_path / "out" / "contamination.json").read_text())
    assert {name: (of_set["num_prompts"], of_set["num_contaminated"]) for name, of_set in report.items()} == {
        "evaluation_prompts": (1, 0),
        "arithmetic": (1, 1),
    }


def test_paraphrases_go_and_the_pairs_near_the_threshold_are_shown(tmp_path, rows, tiny_base):
    """With a threshold below all cosines every cluster keeps its best row."""
    file = write_jsonl(tmp_path / "rows.jsonl", rows[:24])
    keys = {"embedding_model": tiny_base, "near_duplicates": None, "max_dropped": 1}
    run_here("curate", tmp_path / "out", instructions=[file], semantic_duplicates=0.01, **keys)
    kept, dropped = (read_jsonl(tmp_path / "out" / f"{name}.jsonl") for name in ("instructions.train", "dropped"))
    assert 1 <= len(kept) <= 4  # of 4 = sqrt(24) clusters
    assert {row["rule"] for row in dropped} == {"semantic_duplicate"}
    pairs = read_jsonl(tmp_path / "out" / "semantic_pairs.jsonl")
    assert [pair["cosine"] for pair in pairs] == sorted(pair["cosine"] for pair in pairs)
    assert all(pair["dropped"] and pair["text"] != pair["kept_text"] for pair in pairs)
