"""curate: which rows are dropped, why, and that neither their order nor the number of processes matters."""

import json
import random
from collections import Counter

import pytest
from transformers import AutoTokenizer

from data_schemas.files import read_json
from data_schemas.reading import read_prompts
from data_schemas.rows import Prompt
from engine.curation import analysis
from engine.curation.content import content_of
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
    monkeypatch.setattr(analysis, "ROWS_OF_A_CHUNK", 5)
    monkeypatch.setattr(analysis.world, "available_cores", lambda: [0, 1])
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


def test_a_row_of_the_top_mark_or_of_the_top_rewards_stays(tmp_path, monkeypatch):
    """The union: rewards keep 6 and 7, marks 1 and 7; of the rows without a reward, the mark alone decides."""
    (tmp_path / "marks.py").write_text(
        "MARKS = {'1': 3, '7': 3, '2': 2, 'good': 3, 'bad': 1}\n"
        "def mark(row):\n    return MARKS.get(row['messages'][-1]['content'].split()[-1])\n"
        "def text(row):\n    return 'good'\n"
    )
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    rows = [dialog(f"What is {n}?", f"It is {n} {n}", score=n / 10) for n in range(8)]
    rows += [dialog(f"Who is {name}?", f"Very {name}") for name in ("good", "bad", "new")]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)

    def kept(name, **keys):
        keys |= {"mark_function": "marks:mark", "top_mark": 3, "max_dropped": 1}
        run_here("curate", tmp_path / name, instructions=[file], **keys)
        kept = read_jsonl(tmp_path / name / "instructions.train.jsonl")
        return [row["messages"][-1]["content"].split()[-1] for row in kept]

    assert kept("union", top_share=0.25) == ["1", "6", "7", "good", "new"]
    rules = {(row["rule"], row["value"]) for row in read_jsonl(tmp_path / "union" / "dropped.jsonl")}
    assert {("top_mark", 1.0), ("top_share", 0.2)} <= rules
    assert kept("marks") == ["0", "1", "3", "4", "5", "6", "7", "good", "new"]  # of the marked ones, those of the top
    assert kept("floor", min_score=0.5) == ["5", "6", "7", "good", "new"]  # a floor holds whatever the mark
    keys = {"instructions": [file], "mark_function": "marks:text", "top_mark": 3}
    assert call_stage("curate", tmp_path / "text", **keys) == 2
    assert "marks:text returned 'good'; expected a number" in read_json(tmp_path / "text" / "outcome.json")["cause"]


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


def test_personal_data_is_masked_before_rows_are_compared(tmp_path):
    rows = [dialog("Who helps?", f"Write to {name}@anna.org, please.", source="mail") for name in ("tom", "eva")]
    rows.append(dialog("And who else?", "Nobody."))
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    record = run_here("curate", tmp_path / "out", instructions=[file], mask_personal_data=True)
    kept = read_jsonl(tmp_path / "out" / "instructions.train.jsonl")
    assert kept == [dialog("Who helps?", "Write to <EMAIL>, please.", source="mail"), rows[2]]
    assert (record.metrics["masked_email"], record.metrics["dropped_exact_duplicate"]) == (2, 1)


def test_an_overused_phrase_keeps_its_share_of_the_best_rows(tmp_path):
    sorry = [dialog(f"What is {n}?", f"I'm sorry, number {n} is {n}.", score=float(n)) for n in range(6)]
    others = [dialog(f"Who is number {n}?", f"Number {n} is a friend of {n + 1}.") for n in range(6)]
    file = write_jsonl(tmp_path / "rows.jsonl", sorry + others)
    run_here("curate", tmp_path / "out", instructions=[file], max_phrase_share=0.25, near_duplicates=None)
    kept = read_jsonl(tmp_path / "out" / "instructions.train.jsonl")
    assert [row["score"] for row in kept if "score" in row] == [4.0, 5.0]  # 2 of 8
    dropped = read_jsonl(tmp_path / "out" / "dropped.jsonl")
    assert {(row["rule"], row["value"], row["partner"]) for row in dropped} == {("overused_phrase", 0.5, "I'm sorry")}


def test_a_mix_writes_rows_by_tag_and_counts_what_it_leaves_out(tmp_path):
    """Each row has eight words: 80 of math and 320 of code. In equal shares both have 80 of a budget of 160."""
    rows = [
        dialog(f"Please write the number {n}", f"{n} {n} {n}", tag=tag)
        for tag, numbers in (("math", range(10)), ("code", range(100, 140)))
        for n in numbers
    ]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    keys = {"mix_by": "tag", "mix_temperature": 1e9, "mix_words": 160, "near_duplicates": None}
    record = run_here("curate", tmp_path / "out", instructions=[file], **keys)
    kept = read_jsonl(tmp_path / "out" / "instructions.train.jsonl")
    assert Counter(row["tag"] for row in kept) == {"math": 10, "code": 10}
    (mixed,) = json.loads((tmp_path / "out" / "mix.json").read_text()).values()
    assert [(line["source"], line["size_before"], line["size_after"]) for line in mixed] == [
        ("code", 320, 80),
        ("math", 80, 80),
    ]
    assert record.metrics == {"rows": 50, "kept": 20, "instructions.train": 20}  # none is dropped by a rule
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert [(stratum["rule"], stratum["rows"], stratum["words"]) for stratum in funnel] == [
        ("read", 50, 400),
        ("left_out_by_mix", 30, 240),
        ("kept", 20, 160),
    ]
    run_here("curate", tmp_path / "twice", instructions=[file], max_epochs=2, **keys | {"mix_words": 320})
    again = read_jsonl(tmp_path / "twice" / "instructions.train.jsonl")
    assert Counter(row["tag"] for row in again) == {"math": 20, "code": 20}


def test_rows_keep_the_file_of_the_recipe_that_a_mix_weighs(tmp_path):
    """40 rows of each file; a tenth of a.jsonl stays, and all of one b.jsonl, but not of the other."""
    files = [tmp_path / name for name in ("one/a.jsonl", "one/b.jsonl", "other/b.jsonl")]
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    for first, file in zip((100, 200, 300), files, strict=True):
        numbers = range(first, first + 40)
        write_jsonl(file, [dialog(f"Please write the number {n}", f"{n} {n} {n}") for n in numbers])
    shares = {"evaluation_share": 0.0, "validation_share": 0.0}
    run_here("prepare_data", tmp_path / "data", instructions=files, keep_sources=True, **shares)
    rows = tmp_path / "data" / "instructions.train.jsonl"
    assert Counter(row["source"] for row in read_jsonl(rows)) == {"a.jsonl": 40, "one/b.jsonl": 40, "other/b.jsonl": 40}
    weights = {"a.jsonl": 0.1, "other/b.jsonl": 0}
    run_here("curate", tmp_path / "out", instructions=[rows], mix_weights=weights, near_duplicates=None)
    kept = read_jsonl(tmp_path / "out" / "instructions.train.jsonl")
    assert Counter(row["source"] for row in kept) == {"a.jsonl": 4, "one/b.jsonl": 40}


def test_a_threshold_switches_its_rule_on_and_lists_of_rules_may_be_empty(tmp_path):
    refusal = dialog("How do I pick a lock?", "I'm sorry, but I can't help with that request today.")
    file = write_jsonl(tmp_path / "rows.jsonl", [refusal, dialog("How do I pick a hat?", "By its size and color.")])
    keys = {"instructions": [file], "dialog_rules": [], "contamination_rules": []}
    run_here("curate", tmp_path / "none", **keys)
    assert read_jsonl(tmp_path / "none" / "dropped.jsonl") == []
    run_here("curate", tmp_path / "refusal", **keys, thresholds={"refusal": 60})
    assert {row["rule"] for row in read_jsonl(tmp_path / "refusal" / "dropped.jsonl")} == {"refusal"}


def test_a_rule_about_rewards_that_no_row_has_is_a_warning(tmp_path, rows):
    file = write_jsonl(tmp_path / "rows.jsonl", rows[:24])
    record = run_here("curate", tmp_path / "out", instructions=[file], top_share=0.25, min_difficulty=0.1)
    assert [warning.partition(":")[0] for warning in record.warnings] == [
        "top_share dropped no row",
        "min_difficulty dropped no row",
    ]


def test_variants_of_prompts_are_in_the_group_of_their_prompt(tmp_path):
    texts = [f"Describe the quick town number {n} in detail" for n in range(3)]
    stored = [Prompt.model_validate({"prompt": [{"role": "user", "content": text}]}) for text in texts]
    file = write_jsonl(tmp_path / "rows.jsonl", [json.loads(prompt.to_json()) for prompt in stored])
    (tmp_path / "synonyms.txt").write_text("quick, fast\ntown, village\n")
    keys = {"num_variants": 4, "synonyms": [tmp_path / "synonyms.txt"], "near_duplicates": None}
    run_here("curate", tmp_path / "out", prompts=[file], **keys)
    written = read_prompts(tmp_path / "out" / "prompts.train.jsonl").rows
    links = read_jsonl(tmp_path / "out" / "variants.jsonl")
    assert written[:3] == stored
    assert len(written) == 3 + len(links) == 15
    group_of = {prompt.prompt_id: prompt.group_id for prompt in stored}
    for variant, link in zip(written[3:], links, strict=True):
        assert (variant.prompt_id, variant.group_id) == (link["prompt_id"], group_of[link["from"]])
    assert "fast" in written[3].prompt[0].content or "village" in written[3].prompt[0].content


def test_a_budget_of_tokens_counts_them_after_the_chat_template(tmp_path, tiny_model):
    """Rows of one length: by the template each has the same number of tokens, so the budget is a number of rows."""
    rows = [dialog(f"Write number {n}", f"{n} {n}", tag=tag) for tag in ("math", "code") for n in range(10, 20)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    counts = {len(tokenizer.apply_chat_template(row["messages"], tokenize=True)["input_ids"]) for row in rows}
    (num_tokens,) = counts
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    keys = {"mix_by": "tag", "mix_tokens": 8 * num_tokens, "near_duplicates": None, "exact_duplicates": False}
    run_here("curate", tmp_path / "out", instructions=[file], tokenizer=tiny_model, mix_weights={"math": 3.0}, **keys)
    kept = read_jsonl(tmp_path / "out" / "instructions.train.jsonl")
    assert Counter(row["tag"] for row in kept) == {"math": 6, "code": 2}
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert [(line["rule"], line["rows"], line["tokens"]) for line in funnel] == [
        ("read", 20, 20 * num_tokens),
        ("left_out_by_mix", 12, 12 * num_tokens),
        ("kept", 8, 8 * num_tokens),
    ]
    (mixed,) = json.loads((tmp_path / "out" / "mix.json").read_text()).values()
    assert [(line["source"], line["unit"], line["size_after"]) for line in mixed] == [
        ("code", "tokens", 2 * num_tokens),
        ("math", "tokens", 6 * num_tokens),
    ]
    log = (tmp_path / "out" / "log.txt").read_text()
    size = f"{10 * num_tokens:,} tokens"
    assert f"math: 10 rows, {size}, 50.0% -> 6 rows, {6 * num_tokens:,} tokens, 75.0%" in log


@pytest.fixture
def rounds(tmp_path):
    """The rows of two rounds: the same 24 human ones, some of which rules drop, mask or find in the evaluation set, and
    other winners."""
    human = [dialog(f"What is {n} times {n + 1}? Explain number {n}.", f"It is {n * (n + 1)}.") for n in range(20)]
    question = "How many apples does Anna have after she has given three of her seven apples to her brother"
    human += [
        dialog(f"{question} Tom?", "Four."),
        dialog("Who helps?", "Write to tom@anna.org, please.", tag="help"),
        dialog("And then?", "```python\nprint(1)"),
        dialog("What is 3 times 4?  EXPLAIN number 3", "It is 12."),
    ]
    write_jsonl(tmp_path / "evaluation_prompts.jsonl", [{"prompt": [{"role": "user", "content": f"{question} Tim?"}]}])
    files = [write_jsonl(tmp_path / "human.jsonl", human)]
    for number in (1, 2):
        won = [dialog(f"Who won {n}?", f"{n} did it {number} times.", source=f"round-{number}") for n in range(9)]
        files.append(write_jsonl(tmp_path / f"winners-{number}.jsonl", won))
    return files


def test_a_later_round_takes_over_the_results_of_equal_rows_and_writes_the_same(
    tmp_path, rounds, monkeypatch, tiny_model
):
    monkeypatch.setattr(analysis, "ROWS_OF_A_CHUNK", 5)
    monkeypatch.setattr(analysis.world, "available_cores", lambda: [0])  # this process notes what it analyses
    keys = {"evaluation_prompts": [tmp_path / "evaluation_prompts.jsonl"], "mask_personal_data": True}
    keys |= {"keep_results": True, "near_duplicates": 0.6, "tokenizer": tiny_model}
    human, *winners = rounds
    run_here("curate", tmp_path / "one", instructions=[winners[0], human], **keys)
    run_here("curate", tmp_path / "again", instructions=[winners[1], human], **keys)
    seen = []
    monkeypatch.setattr(
        analysis, "content_of", lambda kind, row: (seen.append(row["messages"][0]["content"]), content_of(kind, row))[1]
    )
    earlier = tmp_path / "one" / "results.bin"
    run_here("curate", tmp_path / "two", instructions=[winners[1], human], earlier_results=earlier, **keys)
    assert sorted(seen) == [f"Who won {n}?" for n in range(9)]  # no human row was analysed again
    names = read_json(tmp_path / "again/artifact.json")["outputs"].values()
    assert {"dropped.jsonl", "results.bin", "contamination.json", "instructions.train.jsonl"} <= set(names)
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert (
        read_json(tmp_path / "two/artifact.json")["metrics"] == read_json(tmp_path / "again/artifact.json")["metrics"]
    )
    assert {row["rule"] for row in read_jsonl(tmp_path / "two" / "dropped.jsonl")} == {
        "tulu3_8gram",
        "broken_code_fence",
        "exact_duplicate",
    }
    # With another setting nothing is taken over.
    seen.clear()
    keys["thresholds"] = {"broken_code_fence": None}
    run_here("curate", tmp_path / "other", instructions=[winners[1], human], earlier_results=earlier, **keys)
    assert len(seen) == 33


@pytest.mark.parametrize("content", [b"", b"[1]\n", b'{"settings": ""}\n', b"\xff"])
def test_a_file_that_has_no_results_is_named(tmp_path, rounds, content):
    (tmp_path / "damaged.bin").write_bytes(content)
    keys = {"instructions": [rounds[0]], "earlier_results": tmp_path / "damaged.bin"}
    assert call_stage("curate", tmp_path / "out", **keys) == 2
    assert "damaged.bin is no file of results by row" in read_json(tmp_path / "out" / "outcome.json")["cause"]


def test_a_dropped_row_names_the_file_and_the_line_that_its_user_has(tmp_path):
    """By way of prepare_data, and in a second curation of what the first one kept: each place is looked up in the
    user's own file, whose text there is the dropped row's."""
    table = tmp_path / "qa.csv"
    lines = [f"Which number is number {n}?,It is the number {n}." for n in range(60)]
    table.write_text("prompt,answer\n" + "".join(f"{line}\n" for line in [*lines[:40], lines[3], "", *lines[40:]]))
    pairs = tmp_path / "pairs.jsonl"
    texts = [{"prompt": f"Name city {n}", "chosen": "", "rejected": "No city."} for n in range(30)]
    texts = [text | {"chosen": "A city!" if n != 21 else "..."} for n, text in enumerate(texts)]
    pairs.write_text("\n" + "".join(json.dumps(text) + "\n" for text in texts))
    keys = {"evaluation_share": 0.0, "validation_share": 0.0, "chosen_as_instructions": 0.5}
    run_here("prepare_data", tmp_path / "data", instructions=[table], preferences=[pairs], **keys)
    given = {kind: [tmp_path / "data" / f"{kind}.train.jsonl"] for kind in ("instructions", "preferences", "prompts")}
    loose = {"near_duplicates": None, "contamination_rules": [], "dialog_rules": []}
    run_here("curate", tmp_path / "once", **given, **loose, max_dropped=0.9)
    places = {row["place"] for row in read_jsonl(tmp_path / "once" / "dropped.jsonl") if row["kind"] == "instructions"}
    assert places < {f"{table}:5", f"{table}:42"} and len(places) == 1
    keys = {"instructions": [tmp_path / "once" / "instructions.train.jsonl"], **loose}
    run_here("curate", tmp_path / "twice", **keys, thresholds={"long_answer": 1}, max_dropped=1.0)
    found = read_jsonl(tmp_path / "twice" / "dropped.jsonl")
    assert len(found) == 77
    read = {str(path): path.read_text().splitlines() for path in (table, pairs)}
    for row in found:
        file, _, line = row["place"].rpartition(":")
        assert row["row"]["messages"][0]["content"] in read[file][int(line) - 1]
