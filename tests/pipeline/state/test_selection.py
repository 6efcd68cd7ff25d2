"""--until, --only and --from: which steps run, what they need, and what a partial run says."""

import pytest

from data_schemas.errors import ConfigError
from pipeline.report import run_status
from pipeline.state import pruning
from pipeline.state.selection import select
from pipeline.state.summary import read
from tests.pipeline.toy_house import ONE_ROUND, STEPS_OF_ONE_ROUND

AFTER = STEPS_OF_ONE_ROUND[4:]  # what follows round 0


def selected(plan, *overrides: str, **options: str) -> list[str]:
    steps = list(plan(*overrides).values())
    selection = select(steps, **options)
    assert selection is not None
    return [step.name for step in steps if step.name in selection.steps]


def test_a_name_is_that_of_a_step_a_section_or_a_round(plan):
    names = list(plan())
    assert selected(plan, only="round-1.dpo") == ["round-1.dpo"]
    assert selected(plan, only="dpo") == ["round-1.dpo", "round-2.dpo"]
    assert selected(plan, only="data") == ["prepare_data"]
    assert selected(plan, until="dpo") == names[: names.index("round-2.dpo") + 1]
    assert selected(plan, until="round-1") == names[: names.index("round-1.evaluate_policy") + 1]
    assert selected(plan, start="dpo") == names[names.index("round-1.dpo") :]
    variants = "dpo={variants: [{seed: 1}, {seed: 2}]}"
    assert selected(plan, variants, only="round-1.dpo") == ["round-1.dpo.1", "round-1.dpo.2", "round-1.dpo"]
    assert selected(plan, variants, only="round-1.dpo.2") == ["round-1.dpo.2"]
    assert select(list(plan().values())) is None
    with pytest.raises(ConfigError, match=r"--only 'round-1': the plan has no such step, round or section; did you"):
        selected(plan, "rounds=0", only="round-1")


def test_until_a_round_is_a_partial_run_that_says_what_to_type_next(world):
    code, out, err = world.run("--until", "round-0")
    assert (code, err, world.launched()) == (0, "", STEPS_OF_ONE_ROUND[:4])
    assert world.summary()["state"] == "partial"
    assert {name for name, state in world.states().items() if state == "pending"} == set(AFTER)
    assert "partial run:  4 of 10 steps are finished\n" in out
    assert "alignloop.py run toy.yaml --set rounds=1     # continues with round-1.annotate\n" in out
    assert "judged by gold" in out and f"chat runs/toy/{world.folder('round-0.sft').name}/model" in out
    summary = read(world.run_folder)
    said = "toy: partial: only some of its steps were selected; run the recipe again for the others "
    assert run_status.head(summary, world.run_folder) == f"{said}(4 of 10 steps are finished)"
    with pytest.raises(ConfigError, match="is partial; what it needs is known when it is done"):  # nothing is deleted
        pruning.needed_by(world.run_folder, summary)

    assert world.run()[0] == 0
    assert (world.launched(), world.summary()["state"]) == (AFTER, "done")
    assert world.run("--until", "round-0")[0] == 0  # everything is finished, so nothing is pending
    assert (world.launched(), world.summary()["state"]) == ([], "done")


def test_only_and_from_need_what_comes_before(world):
    assert world.run("--until", "round-1.rejection_sampling")[0] == 0
    world.launched()
    assert world.run("--from", "round-1.sft")[0] == 0
    assert world.launched() == ["round-1.sft", "round-1.dpo", "round-1.evaluate_policy"]
    code, _, err = world.run("--set", "sft.learning_rate=0.5", "--from", "dpo")
    assert code == 2 and "needs round-0.sft, which is not finished (sft.learning_rate 2e-05 -> 0.5); --until" in err

    edit = ("--set", "dpo.beta=0.2", "--only", "dpo")
    plan = world.call("plan", "toy.yaml", *ONE_ROUND, *edit)[1]
    assert "toy: 10 steps, 8 reuse, 0 resume, 1 run, 1 pending" in plan
    assert "run    round-1.dpo: dpo.beta 0.1 -> 0.2" in plan
    assert "pending round-1.evaluate_policy: input round-1.dpo changed" in plan
    assert world.run(*edit)[0] == 0
    assert (world.launched(), world.states()["round-1.evaluate_policy"]) == (["round-1.dpo"], "pending")


def test_an_interrupted_partial_run_is_resumed_with_the_same_option(world):
    process = world.start("run", "toy.yaml", "--until", "round-0.sft", TOY='{"round-0.sft": "hang"}')
    world.hanging()
    process.terminate()
    err = process.communicate()[1]
    assert "; to resume: " in err and err.endswith("alignloop.py run toy.yaml --until round-0.sft\n")
