"""prepare_data: what is left out or set aside is reported, and rows with one first user message are split."""

from tests.stage_runs import run_here
from tests.toy_rows import read_jsonl, write_jsonl


def dialog(*texts, system=None):
    roles = ("user", "assistant")
    turns = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns]}


def test_a_short_evaluation_prompt_leaves_nothing_out_and_a_long_one_is_reported(tmp_path):
    rows = [dialog(f"Question {number} about a town?", "Yes.", "Continue.", "More.") for number in range(30)]
    rows += [
        dialog(f"Question {number} about a river?", "Yes.", "Please say more of it", "More.") for number in range(4)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    for asked, left_out in (("Continue.", 0), ("Please say more of it", 4)):
        write_jsonl(tmp_path / "held_out.jsonl", [{"prompt": asked, "topic": "any"}])
        folder = tmp_path / f"left-out-{left_out}"
        files = {"instructions": [tmp_path / "rows.jsonl"], "evaluation_prompts": [tmp_path / "held_out.jsonl"]}
        record = run_here("prepare_data", folder, **files)
        trained = [
            *read_jsonl(folder / "instructions.train.jsonl"),
            *read_jsonl(folder / "instructions.validation.jsonl"),
        ]
        assert len(trained) == 34 - left_out
        assert record.metrics["dialogs_left_out"] == 2 * left_out  # the dialogs and their prompts
    assert record.warnings == [
        "left out: 4 of 34 dialogs that ask an evaluation prompt in a later turn; as 'Please say more of it'"
    ]
    assert record.notes == [f"{tmp_path}/held_out.jsonl: ignored columns: topic"]
    log = (folder / "log.txt").read_text(encoding="utf-8")
    assert "WARNING" in next(line for line in log.splitlines() if "left out: 4 of 34" in line)
    assert log.count("ignored columns: topic") == 1


def test_documents_that_contain_an_evaluation_prompt_are_reported_without_dialogs(tmp_path):
    asked = ["Please say more of it", "Why is the sky so blue?"]
    write_jsonl(tmp_path / "held_out.jsonl", [{"prompt": text} for text in asked])
    write_jsonl(tmp_path / "rows.jsonl", [dialog(f"Question {number} about a town?", "Yes.") for number in range(30)])
    texts = [*asked, asked[1], *(f"A text {number}" for number in range(9))]
    write_jsonl(tmp_path / "documents.jsonl", [{"text": f"{text} {place}."} for place, text in enumerate(texts)])
    record = run_here(
        "prepare_data",
        tmp_path / "out",
        documents=[tmp_path / "documents.jsonl"],
        instructions=[tmp_path / "rows.jsonl"],
        evaluation_prompts=[tmp_path / "held_out.jsonl"],
    )
    assert record.warnings == [
        "left out: 3 of 12 documents that contain an evaluation prompt; most because of 'Why is the sky so blue?' (2)"
    ]
    assert not record.notes


def test_rows_with_one_first_user_message_are_split_by_their_system_messages(tmp_path):
    rows = [dialog("Summarise the text.", "Yes.", system=f"Text: it is number {number}.") for number in range(40)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    shares = {"evaluation_share": 0.2, "validation_share": 0.2}
    record = run_here("prepare_data", tmp_path / "out", instructions=[tmp_path / "rows.jsonl"], **shares)
    held_out = read_jsonl(tmp_path / "out" / "evaluation_prompts.jsonl")
    train = read_jsonl(tmp_path / "out" / "instructions.train.jsonl")
    assert len(held_out) > 2 and len(train) > 10
    assert not {row["group_id"] for row in held_out} & {row["group_id"] for row in train}
    assert not record.warnings


def test_rows_that_are_set_aside_are_a_warning_of_the_record(tmp_path):
    rows = [dialog(f"Question {number} about a town?", "Yes.") for number in range(20)]
    shares = {"evaluation_share": 0.3, "validation_share": 0.2}
    write_jsonl(tmp_path / "rows.jsonl", [*rows, dialog("Why?")])
    record = run_here(
        "prepare_data", tmp_path / "out", instructions=[tmp_path / "rows.jsonl"], on_bad_row="set_aside", **shares
    )
    assert record.warnings == [
        f"{tmp_path}/rows.jsonl: 1 set aside of 21 rows: messages: a last message from 'user' (1)"
    ]
