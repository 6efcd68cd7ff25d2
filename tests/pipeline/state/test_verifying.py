"""`alignloop verify`, and records that were changed by hand."""

import json
import shutil
from pathlib import Path

import pytest

from data_schemas.files import with_digest
from pipeline.state.verifying import StepCheck, remedies


def change_a_byte(folder: Path) -> str:
    path = folder / "model" / "config.json"
    path.write_text("[]")
    return "model/config.json was changed after it was written"


def cut_a_file(folder: Path) -> str:
    path = folder / "model" / "config.json"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    return f"model/config.json has {size - 1} bytes, not {size}"


def remove_a_file(folder: Path) -> str:
    (folder / "model" / "config.json").unlink()
    return "model/config.json is missing"


def edit_the_record(folder: Path) -> str:
    path = folder / "artifact.json"
    path.write_text(path.read_text().replace('"seconds": 0.5', '"seconds": 0.6'))
    return "artifact.json was changed after it was written; put it back as it was, or move the folder away"


def cut_the_record(folder: Path) -> str:
    path = folder / "artifact.json"
    path.write_text(path.read_text()[:-9])
    return "artifact.json is not a record ("


def edit_the_identity(folder: Path) -> str:
    (folder / "fingerprint.json").write_text("{}")
    return "fingerprint.json is not the identity that the record's fingerprint was computed from"


def rename_the_folder(folder: Path) -> str:
    folder.rename(folder.with_name(f"{folder.name[:-8]}00000000"))
    return "the folder's name does not end in its fingerprint"


def remove_the_digest(folder: Path) -> str:
    path = folder / "artifact.json"
    record = {name: value for name, value in json.loads(path.read_text()).items() if name != "digest"}
    path.write_text(json.dumps(record | {"metrics": {"eval_loss": 0.0}}))
    return "artifact.json has no digest of itself"


def add_weights(folder: Path) -> str:
    (folder / "model" / "model-00001-of-00002.safetensors").write_bytes(b"other weights")
    return "model/model-00001-of-00002.safetensors was added after the record was written"


def change_the_metrics(folder: Path) -> str:
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace("1.5", "0.5"))
    return "metrics.jsonl was changed after it was written"


def remove_the_config(folder: Path) -> str:
    (folder / "config.yaml").unlink()
    return "config.yaml is missing"


def remove_the_record(folder: Path) -> str:
    (folder / "artifact.json").unlink()
    return "artifact.json is missing: summary.json has this step as finished"


def remove_the_step(folder: Path) -> str:
    shutil.rmtree(folder)
    return "the folder is missing: summary.json has this step as finished"


def test_what_was_changed_and_what_is_only_stale_have_other_remedies(tmp_path):
    changed = StepCheck(tmp_path / "sft-1", "complete", problems=["a"])
    missing = StepCheck(tmp_path / "dpo-2", "not finished", problems=["b"])
    summary = StepCheck(tmp_path / "summary.json", "complete", problems=["c"])
    assert remedies([changed, missing, summary]) == [
        "sft-1: changed since it was written; move it away, and `run` runs the step again",
        "dpo-2, summary.json: missing or out of date; run the recipe again, which writes it",
    ]


@pytest.mark.parametrize(
    "damage",
    [
        change_a_byte,
        cut_a_file,
        remove_a_file,
        edit_the_record,
        cut_the_record,
        edit_the_identity,
        remove_the_digest,
        add_weights,
        change_the_metrics,
        remove_the_config,
        remove_the_record,
        remove_the_step,
    ],
)
def test_verify_finds_what_was_changed(world, damage):
    assert world.run()[0] == 0
    code, out, err = world.call("verify", "runs/toy")
    assert (code, err) == (0, "")
    assert out.count("| complete") == len(world.states())
    problem = damage(world.folder("round-1.sft"))
    code, out, err = world.call("verify", "runs/toy")
    assert code == 1
    assert problem in out
    assert out.count("| complete") == len(world.states()) - 1
    assert err.startswith("error: round-1.sft-")
    assert err.count("\n") == 1


@pytest.mark.parametrize("damage", [edit_the_record, cut_the_record])
def test_a_changed_record_stops_a_run_and_nothing_is_modified(world, damage):
    assert world.run()[0] == 0
    problem, folder = damage(world.folder("round-1.sft")), world.folder("round-1.sft")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, _, err = world.run()
    assert code == 2
    assert problem in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_renamed_step_is_found_under_both_names(world):
    assert world.run()[0] == 0
    problem = rename_the_folder(world.folder("round-1.sft"))
    code, out, _ = world.call("verify", "runs/toy")
    assert code == 1
    assert problem in out and "the folder is missing: summary.json has this step as finished" in out


def change_a_metric(summary: dict) -> str:
    summary["steps"][1]["metrics"] = {"eval_loss": 0.0}
    return f"metrics of {summary['steps'][1]['name']} is not that of its record"


def change_the_best(summary: dict) -> str:
    summary["best_policy"]["step"] = "round-0.sft"
    return "best_policy is not round-1.dpo, which the last evaluation ranks first"


def change_a_number_of_a_round(summary: dict) -> str:
    summary["rounds"][1]["judge_mean"] = 99.0
    return "judge_mean of round 1 was not measured by any of its steps"


@pytest.mark.parametrize("change", [change_a_metric, change_the_best, change_a_number_of_a_round])
def test_a_summary_that_contradicts_the_records_is_found(world, change):
    assert world.run()[0] == 0
    path = world.run_folder / "summary.json"
    summary = json.loads(path.read_text())
    problem = change(summary)
    path.write_text(json.dumps(summary))
    code, out, err = world.call("verify", "runs/toy")
    assert code == 1 and problem in out
    assert err.startswith("error: summary.json: missing or out of date; run the recipe again")


def test_a_link_that_leads_to_another_step_is_found(world):
    assert world.run()[0] == 0
    link = world.run_folder / "steps" / "round-1.sft"
    right = link.resolve()
    link.unlink()
    link.symlink_to(world.folder("round-0.sft"))
    code, out, _ = world.call("verify", "runs/toy")
    assert code == 1 and f"steps/round-1.sft does not lead to {right.name}; run the recipe again" in out
    assert world.run()[0] == 0
    assert link.resolve() == right and world.call("verify", "runs/toy")[0] == 0


def test_changed_reference_log_probs_are_found_and_a_cut_line_is_not(world):
    assert world.run()[0] == 0
    cache, step = world.run_folder / "reference_log_probs" / "0123" / "1-0.jsonl", world.folder("round-1.dpo").name
    cache.parent.mkdir(parents=True)
    (cache.parent / f"{step}.json").write_text("{}")
    lines = [with_digest(json.dumps({"pass": name, "sums": [[-1.0, -2.0]]})) for name in "ab"]
    cache.write_text(f"{lines[0]}\n{lines[1]}\n{lines[0][:40]}")
    code, out, _ = world.call("verify", "runs/toy")
    assert code == 0 and f"| reference log-probs of {step} " in out
    cache.write_text(cache.read_text().replace("-1.0", "-3.0", 1))
    code, out, _ = world.call("verify", "runs/toy")
    assert code == 1 and "0123/1-0.jsonl: 1 of its batches were changed after they were written" in out


def test_what_only_people_read_decides_nothing_about_reuse(world):
    assert world.run()[0] == 0
    (world.folder("round-1.sft") / "metrics.jsonl").unlink()
    remove_the_config(world.folder("round-1.dpo"))
    assert world.run()[0] == 0
    assert set(world.states().values()) == {"reused"}


def test_a_record_of_an_older_version_is_reused_and_verify_reports_what_it_cannot_check(world):
    assert world.run()[0] == 0
    path = world.folder("round-1.sft") / "artifact.json"
    older = {
        name: value
        for name, value in json.loads(path.read_text()).items()
        if name not in ("digest", "sha256", "beside")
    }
    path.write_text(json.dumps(older))
    assert world.run()[0] == 0
    assert set(world.states().values()) == {"reused"}
    code, out, _ = world.call("verify", "runs/toy")
    assert code == 1
    assert (
        "artifact.json has no digest of itself" in out and "artifact.json does not have the hash of every file" in out
    )


def test_verify_reports_unfinished_steps_and_folders_that_are_not_runs(world):
    assert world.run(TOY='{"round-1.dpo": "fail"}')[0] == 1
    code, out, _ = world.call("verify", "runs/toy")
    assert code == 0
    assert "not finished" in out
    assert world.call("verify", "runs") == (
        2,
        "",
        "error: runs contains no step; expected the folder of a run, as in runs/demo\n",
    )
