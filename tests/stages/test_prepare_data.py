"""prepare_data on real rows: splits, rows that are set aside, rows that are refused."""

import json

from pipeline.launch.command_line import ROOT
from tests.loop_recipes import python_by_hand
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
