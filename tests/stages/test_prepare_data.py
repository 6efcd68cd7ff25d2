"""prepare_data on real rows: splits, rows that are set aside, rows that are refused."""

import json
from collections import Counter

import yaml

from pipeline.launch.command_line import ROOT
from tests.loop_recipes import python_by_hand
from tests.stage_runs import run_here
from tests.toy_rows import read_jsonl


def test_real_pairs_are_split_with_their_bad_rows_set_aside_or_refused(test_data, tmp_path):
    pairs = test_data / "hh_rlhf" / "harmless.jsonl.gz"
    words = (
        f"{ROOT}/stages/prepare_data.py",
        "--preferences",
        str(pairs),
        "--chosen_as_instructions",
        "0.3",
        "--report_to",
        "none",
        "--output_dir",
    )
    refused = python_by_hand(*words, "refused", cwd=tmp_path)
    assert refused.returncode == 2
    outcome = json.loads((tmp_path / "refused" / "outcome.json").read_text())
    assert (outcome["state"], outcome["kind"]) == ("failed", "config")
    assert f"{pairs}:164: chosen" in outcome["cause"]
    assert not (tmp_path / "refused" / "artifact.json").exists()

    done = python_by_hand(*words, "aside", "--on_bad_row", "set_aside", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rejected = read_jsonl(tmp_path / "aside" / "rejected_rows.jsonl")
    # Four rows of two different prompts, four with an empty chosen answer.
    assert sorted(row["line"] for row in rejected) == [164, 362, 763, 807, 993, 1242, 1356, 1525]
    held_out = {row["group_id"] for row in read_jsonl(tmp_path / "aside" / "evaluation_prompts.jsonl")}
    assert 100 < len(held_out) <= 300
    for name in (
        "instructions.train",
        "instructions.validation",
        "preferences.train",
        "preferences.validation",
        "prompts.train",
        "prompts.validation",
    ):
        rows = read_jsonl(tmp_path / "aside" / f"{name}.jsonl")
        assert rows
        assert not held_out & {row["group_id"] for row in rows}


def test_columns_shares_and_splits_by_file_and_copies_are_trained_on_only(tmp_path):
    """A share of 2 writes every training row twice; equal rows of a file, and held-out rows, are not multiplied."""
    (tmp_path / "qa.csv").write_text("Q,A\n" + "".join(f"question {n},answer {n}\n" for n in range(200)))
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        texts = [{"text": f"{split} text {n}"} for n in [*range(100), 0]]
        (tmp_path / "set" / f"{split}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    config = {
        "instructions": [{"path": "qa.csv", "columns": {"prompt": "Q", "answer": "A"}, "share": 2}],
        "documents": [{"path": "set", "share": 3}],
        "evaluation_share": 0.1,
        "validation_share": 0.2,
        "report_to": "none",
        "output_dir": "out",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = python_by_hand(f"{ROOT}/stages/prepare_data.py", "--config", "config.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("only the split train is read, not test") == 1

    def counts(name):
        return Counter((tmp_path / "out" / f"{name}.jsonl").read_text().splitlines())

    train, held_out = counts("instructions.train"), counts("instructions.validation")
    assert set(train.values()) == {2} and set(held_out.values()) == {1}
    assert len(train) + len(held_out) + len(counts("evaluation_prompts")) == 200 and len(held_out) > 20
    train, held_out = counts("documents.train"), counts("documents.validation")
    assert set(train.values()) == {3} and set(held_out.values()) == {1} and len(train) + len(held_out) == 100
    assert not any("test text" in line for line in train | held_out)
    recorded = json.loads((tmp_path / "out" / "artifact.json").read_text())["inputs"]
    assert recorded["instructions"] == 'qa.csv {"columns": {"answer": "A", "prompt": "Q"}, "share": 2.0}'


def test_a_mapping_can_be_given_on_the_command_line(tmp_path):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"q": f"question {n}"}) + "\n" for n in range(50)))
    words = (f"{ROOT}/stages/prepare_data.py", "--prompts", "{path: p.jsonl, columns: {prompt: q}}", "--report_to")
    done = python_by_hand(*words, "none", "--output_dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(read_jsonl(tmp_path / "out" / "prompts.train.jsonl")) > 30


def test_documents_that_repeat_another_one_are_written_once_and_counted(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\ntwo\none\nthree\none\n")
    record = run_here("prepare_data", tmp_path / "out", documents=[path], validation_share=0.0, evaluation_share=0.0)
    written = [
        json.loads(line)["text"] for line in (tmp_path / "out" / "documents.train.jsonl").read_text().splitlines()
    ]
    assert written == ["one", "two", "three"]
    assert record.metrics["repeated_documents_left_out"] == 2
