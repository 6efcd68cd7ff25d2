"""A stage that fails, is killed, halves its batch or resumes: what the runner reports and does."""

from pathlib import Path

from pipeline.launch.failures import StageFailed
from pipeline.recipe.sections import Launch
from pipeline.report.errors import report_failure
from pipeline.steps import Step
from tests.pipeline.toy_house import ONE_ROUND, STEPS_OF_ONE_ROUND


def test_a_failed_stage_is_reported_with_command_log_and_hint_and_the_rest_is_kept(world):
    code, _, err = world.run(TOY='{"round-1.dpo": "fail"}')
    assert code == 1
    error, log, hint = err.splitlines()
    assert error == (
        "error: round-1.dpo failed: ended with exit code 1: RuntimeError: torch.OutOfMemoryError: no memory"
    )
    assert log == f"log: runs/toy/{world.folder('round-1.dpo').name}/console.txt"
    assert hint.startswith("hint: out of device memory: lower per_device_train_batch_size")
    assert world.summary()["state"] == "failed"
    assert world.states()["round-1.dpo"] == "failed"
    assert world.states()["round-1.evaluate_policy"] == "pending"

    world.launched()
    assert "round-1.dpo: did not finish" in world.call("plan", "toy.yaml", *ONE_ROUND)[1]
    assert world.run()[0] == 0
    assert world.launched() == ["round-1.dpo", "round-1.evaluate_policy"]
    assert world.states()["round-1.sft"] == "reused"


def test_with_verbose_a_failed_stage_is_reported_with_its_command_and_its_traceback(world):
    error, *lines = world.run("-v", TOY='{"round-1.dpo": "traceback"}')[2].splitlines()
    assert error == "error: round-1.dpo failed: ended with exit code 1: ZeroDivisionError: division by zero"
    assert lines[0].endswith(f"stages/dpo.py --config {world.folder('round-1.dpo')}/config.yaml")
    assert lines[1] == f"last lines of runs/toy/{world.folder('round-1.dpo').name}/console.txt:"
    assert "  Traceback (most recent call last):" in lines


def test_a_stage_that_ends_without_an_error_is_shown_with_its_last_line(capfd):
    step, line = Step("rl", "rl", None, "rl", {}, {}, Launch()), "the engine that wraps the model: none"
    failed = StageFailed(step, [], Path("console.txt"), [line], "ended with exit code 3", "", False, False)
    report_failure(failed)
    assert capfd.readouterr().err.startswith(f"error: rl failed: ended with exit code 3; its last line is {line!r}\n")


def test_without_verbose_no_traceback_is_shown(world):
    err = world.run(TOY='{"round-1.dpo": "traceback"}')[2]
    assert "ended with exit code 1: ZeroDivisionError: division by zero\nlog: runs/toy/round-1.dpo-" in err
    assert "Traceback" not in err and err.count("\n") == 2


def test_a_killed_stage_is_reported_with_the_likely_cause(world):
    code, _, err = world.run(TOY='{"round-1.dpo": "killed"}')
    assert code == 1
    assert err.startswith("error: round-1.dpo failed: killed by SIGKILL\nlog: ")
    assert "hint: killed, most likely for its memory: lower per_device_train_batch_size or generation_batch" in err


def test_a_stage_that_halved_its_batch_is_restarted_once_and_the_run_continues(world):
    code, out, err = world.run(TOY='{"round-1.dpo": "halve"}')
    assert code == 0, err
    assert world.launched() == [*STEPS_OF_ONE_ROUND[:-1], "round-1.dpo", STEPS_OF_ONE_ROUND[-1]]
    (said,) = [line for line in out.splitlines() if " halved " in line]
    assert "round-1.dpo" in said and said.endswith("(8 rows are too much: 4 now)")
    assert world.states()["round-1.dpo"] == "ran"


def test_a_stage_that_fails_after_it_halved_its_batch_has_failed(world):
    code, _, err = world.run(TOY='{"round-1.dpo": "halve and fail"}')
    assert code == 1
    assert err.startswith("error: round-1.dpo failed: ended with exit code 1")
    assert world.launched().count("round-1.dpo") == 2


def test_a_stage_that_never_stops_halving_is_started_three_times(world):
    code, _, err = world.run(TOY='{"round-1.dpo": "halve for ever"}')
    assert code == 1
    assert err.startswith("error: round-1.dpo failed: 8 rows are too much: 4 now")
    assert world.launched().count("round-1.dpo") == 3


def test_a_users_mistake_that_only_a_stage_can_see_is_exit_code_two(world):
    code, _, err = world.run(TOY='{"round-1.dpo": "config"}')
    assert code == 2
    assert "error: round-1.dpo failed: beta=9 is too much" in err
    assert "hint: try 1" in err


def test_an_empty_split_is_exit_code_two_and_names_the_step(world):
    code, _, err = world.run(TOY='{"round-1.annotate": "empty", "prepare_data": "empty"}')
    assert code == 2
    assert err.startswith(
        "error: round-0.sft needs instructions.train, and the data leave it no row (no rows); give more"
    )
    assert err.count("\n") == 1


def test_a_step_with_a_complete_checkpoint_is_resumed(world):
    world.run(TOY='{"round-1.dpo": "checkpoint"}')
    assert "resume round-1.dpo: from checkpoint-50" in world.call("plan", "toy.yaml", *ONE_ROUND)[1]
    assert world.run()[0] == 0
    assert world.states()["round-1.dpo"] == "resumed"
    assert (world.folder("round-1.dpo") / "checkpoints" / "checkpoint-50" / "whole.json").exists()


def test_without_a_complete_checkpoint_nothing_partial_is_left(world):
    world.run(TOY='{"round-1.dpo": "fail"}')
    folder = world.folder("round-1.dpo")
    (folder / "model").mkdir()
    (folder / "model" / "half.safetensors").write_text("")
    (folder / "metrics.jsonl").write_text('{"of": "the failed attempt"}')
    world.run()
    assert not (folder / "model" / "half.safetensors").exists()
    assert "failed attempt" not in (folder / "metrics.jsonl").read_text()
    assert (folder / "console.txt").read_text().count("hello from round-1.dpo") == 2
