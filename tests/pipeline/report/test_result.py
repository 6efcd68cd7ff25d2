"""What a run without rounds ends with: one evaluation by a judge, or held-out losses and sample answers."""

import json

import pytest

ROW = {
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why\x1b[31m?"}],
    "candidates": [{"text": "Because\n\nof \x1b]0;x\x07 it. " + "z" * 600, "ended": False}],
}
NO_JUDGE = ("rounds", "annotate", "evaluate_policy", "data")


@pytest.fixture
def one_pass(world):
    """-> the toy world with a recipe of these stages and settings, without a judge unless a line names one."""

    def make(stages: str, *lines: str):
        recipe = world.work / "toy.yaml"
        kept = [line for line in recipe.read_text().splitlines() if not line.startswith(NO_JUDGE)]
        recipe.write_text("\n".join([*kept, "data: {instructions: chats.jsonl}", f"stages: {stages}", *lines]))
        return world

    return make


def edit(world, stage: str, old: str, new: str) -> None:
    path = world.command.parent / "stages" / f"{stage}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_without_a_judge_a_run_ends_with_losses_and_escaped_sample_answers(one_pass):
    world = one_pass("[sft, evaluate_policy]")
    edit(world, "prepare_data", '"prompts.train"', '"prompts.train", "prompts.validation"')
    edit(world, "evaluate_policy", '.write_text("{}")', f".write_text({json.dumps(ROW)!r})")
    edit(world, "evaluate_policy", "choices = [Choice", "choices = [] and [Choice")
    code, out, err = world.call("run", "toy.yaml", "--no-preflight")
    assert (code, err) == (0, "")
    summary = world.summary()
    (sample,) = summary["samples"]
    assert sample == {
        "policy": "sft",
        "prompt": "Why\x1b[31m?",
        "answer": ROW["candidates"][0]["text"][:500] + "…",
        "ended": False,
    }
    assert (summary["rounds"], summary["best_policy"]) == ([], None)
    for shown in (out, world.call("status", "runs/toy")[1]):
        lines = shown.splitlines()
        (answer,) = (line for line in lines if "Because" in line)
        assert answer.startswith("| sft ") and "| Why\\x1b[31m? " in answer
        assert "| Because of \\x1b]0;x\\x07 it. zzz" in answer and "z… [cut off by max_new_tokens] |" in answer
        assert len(answer) < 220 and "\x1b" not in shown and "\x07" not in shown
        (model,) = (line for line in lines if line.startswith("| sft ") and "Because" not in line and "/model" in line)
        assert model.split("|")[2:4] == [" -                    ", " 1.500 "]
    assert "chat with it: " in out and "for samples" not in out


def test_an_evaluation_without_prompts_is_skipped_and_named(one_pass):
    world = one_pass("[sft, evaluate_policy]")
    code, out, _ = world.call("run", "toy.yaml", "--no-preflight")
    assert code == 0 and world.states()["evaluate_policy"] == "skipped"
    assert "(no prompt is held out: raise data.validation_share or give data.evaluation_prompts)" in out
    assert "samples" not in world.summary()


def test_a_run_that_only_trains_says_how_to_get_sample_answers(one_pass):
    code, out, _ = one_pass("[sft]").call("run", "toy.yaml", "--no-preflight")
    assert code == 0 and "for samples:  add evaluate_policy to `stages`; without a judge it writes" in out


def test_a_run_without_rounds_shows_its_one_evaluation_by_a_judge(one_pass):
    world = one_pass("[sft, evaluate_policy]", 'evaluate_policy: {judge_function: "scores:score"}')
    code, out, err = world.call("run", "toy.yaml", "--no-preflight")
    assert (code, err) == (0, "")
    assert "judged by gold" in out and "| evaluate_policy |" in out and "best policy: sft" in out
    (row,) = world.summary()["rounds"]
    assert (row["round"], row["policy"], row["judge_mean"]) == (None, "sft", 0.0)
    assert row["reasons"]["dpo_reward_accuracy"] == "the run has no dpo"
    code, out, _ = world.call("status", "runs/toy")
    assert code == 0 and "judged by gold" in out


def test_damaged_answers_leave_the_samples_out(one_pass):
    world = one_pass("[sft, evaluate_policy]")
    edit(world, "prepare_data", '"prompts.train"', '"prompts.train", "prompts.validation"')
    edit(world, "evaluate_policy", '.write_text("{}")', ".write_bytes(bytes([255]))")
    assert world.call("run", "toy.yaml", "--no-preflight")[0] == 0
    assert "samples" not in world.summary()
