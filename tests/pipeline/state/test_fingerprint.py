"""Fingerprints: what changes one, what does not, and how a plan reports it."""

import json
import os

import pytest

from data_schemas.errors import ConfigError
from data_schemas.functions import find_module, source_hash
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.state.fingerprint import FileHashes, differences, identities
from pipeline.state.run import IDENTITY_FILE, Run
from tests.pipeline.fake_stages import build_inputs

AFTER_ROUND_1_DPO = {
    "round-1.dpo",
    "round-1.evaluate_policy",
    "round-2.annotate",
    "round-2.reward_model",
    "round-2.rejection_sampling",
    "round-2.sft",
    "round-2.dpo",
    "round-2.evaluate_policy",
}


@pytest.fixture
def work(tmp_path):
    return build_inputs(tmp_path / "work").parent


def known(work, *overrides, limit=None):
    steps = make_plan(load_recipe(work / "toy.yaml", overrides))
    hashes = FileHashes(work / ".hashes.json", limit=limit)
    return steps, identities(steps, hashes=hashes, function_folder=work)


def changed(before, after) -> set[str]:
    return {name for name in before if before[name].fingerprint != after[name].fingerprint}


def test_an_identity_key_changes_its_step_and_everything_below(work):
    _, before = known(work)
    _, after = known(work, "dpo.beta=0.2")
    assert changed(before, after) == AFTER_ROUND_1_DPO


def test_which_model_is_saved_is_part_of_the_identity_except_for_the_default(work):
    steps, before = known(work)
    (dpo,) = (step for step in steps if step.name == "round-1.dpo")
    assert "keep" not in before["round-1.dpo"].content["keys"]  # fingerprints are as before the key existed
    _, after = known(work, "dpo.keep=best_by_accuracy")
    assert changed(before, after) == AFTER_ROUND_1_DPO
    old, new = (known["round-1.dpo"].content for known in (before, after))
    assert list(differences(dpo, old, new)) == ["dpo.keep best_by_loss -> best_by_accuracy"]
    assert list(differences(dpo, new, old)) == ["dpo.keep best_by_accuracy -> best_by_loss"]


@pytest.mark.parametrize(
    "override",
    [
        "dpo.beta=0.1",  # the default, given explicitly
        'dpo.learning_rate="1e-6"',  # typed before it is hashed
        "dpo.per_device_train_batch_size=2",
        "launch={profile: zero3, num_processes: 8, device: cpu}",
        "output_dir=elsewhere",
        "name=other",
        "defaults.report_to=wandb",
        "defaults.keep=best_by_loss",
    ],
)
def test_how_a_step_is_run_changes_nothing(work, override):
    _, before = known(work)
    _, after = known(work, override)
    assert changed(before, after) == set()


def test_raw_files_and_models_enter_by_content_not_by_name_or_time(work):
    _, before = known(work)
    os.utime(work / "pairs.jsonl")
    (work / "base" / ".hidden").write_text("not part of the model")
    assert changed(before, known(work)[1]) == set()
    (work / "pairs.jsonl").rename(work / "renamed.jsonl")
    assert (
        changed(before, known(work, "data.preferences=renamed.jsonl".replace("renamed", str(work / "renamed")))[1])
        == set()
    )
    (work / "renamed.jsonl").write_text('{"a": 1}')
    after = known(work, f"data.preferences={work / 'renamed.jsonl'}")[1]
    assert "prepare_data" in changed(before, after)
    assert "prepare_base" not in changed(before, after)
    (work / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    (work / "base" / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    assert "prepare_data" not in changed(before, known(work)[1])
    assert {"prepare_base", "round-0.sft"} <= changed(before, known(work)[1])


def test_an_unchanged_file_is_hashed_once(work, monkeypatch):
    hashes = FileHashes(work / "cache.json")
    content = hashes.of(work / "pairs.jsonl")
    hashes.save()
    again = FileHashes(work / "cache.json", limit=0)  # may hash no file
    assert again.of(work / "pairs.jsonl") == content
    (work / "pairs.jsonl").write_text("longer now")
    assert again.of(work / "pairs.jsonl") == "to be hashed"


def test_a_plan_does_not_hash_large_files_and_reports_it(work):
    steps, before = known(work)
    (work / "pairs.jsonl").write_text("x" * 100)
    _, after = known(work, limit=50)
    assert after["prepare_data"].fingerprint is None
    assert after["round-0.sft"].fingerprint is None  # its input is not known
    assert after["prepare_base"].fingerprint == before["prepare_base"].fingerprint
    assert differences(steps[0], before["prepare_data"].content, after["prepare_data"].content) == [
        f"input {work / 'pairs.jsonl'} is over 64 MiB and to be hashed by `run`, which then knows whether the step is "
        "reused"
    ]


def test_a_step_that_was_never_run_will_run_whatever_its_large_files_hold(work, monkeypatch):
    monkeypatch.chdir(work)  # the run's folder is made there
    recipe = load_recipe(work / "toy.yaml")
    steps = make_plan(recipe)
    run = Run.of(recipe, steps, hash_limit=1)
    assert (run.decide(steps[0]).action, run.decide(steps[0]).why) == ("run", "not run yet")
    earlier = recipe.folder / f"{steps[0].name}-01234567"
    earlier.mkdir(parents=True)
    (earlier / IDENTITY_FILE).write_text(json.dumps(run.identities[steps[0].name].content))
    assert run.decide(steps[0]).action == "to be hashed"


def test_a_functions_source_is_part_of_the_steps_that_call_it(work):
    steps, before = known(work)
    (work / "scores.py").write_text("def score(prompt, answer, ended):\n    return 1.0\n")
    _, after = known(work)
    assert changed(before, after) == set(before) - {"prepare_data", "prepare_base", "round-0.sft"}
    step = next(step for step in steps if step.name == "round-0.evaluate_policy")
    assert differences(step, before[step.name].content, after[step.name].content) == [
        "the source of scores:score changed"
    ]


def test_the_source_of_each_function_of_a_list_is_part_of_the_step(work):
    rl = ["round_stages=[annotate, reward_model, dpo, rl]", "rl.reward_functions=[scores:score, more:score]"]
    (work / "more.py").write_text("def score(prompt, answer, ended):\n    return 0.0\n")
    _, before = known(work, *rl)
    (work / "more.py").write_text("def score(prompt, answer, ended):\n    return 1.0\n")
    steps, after = known(work, *rl)
    step = next(step for step in steps if step.name == "round-1.rl")
    assert differences(step, before[step.name].content, after[step.name].content) == [
        "the source of more:score changed"
    ]


def test_every_source_of_a_package_is_hashed_and_nothing_is_imported(tmp_path):
    package = tmp_path / "world" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "world" / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "__init__.py").write_text("")
    (package / "gold.py").write_text("from world.facts import score\n")
    (tmp_path / "world" / "facts.py").write_text("def score(): ...")
    before = source_hash("world.inner.gold:score", tmp_path)
    (tmp_path / "world" / "facts.py").write_text("def score(): return 1")
    assert source_hash("world.inner.gold:score", tmp_path) != before


def test_functions_are_found_beside_the_recipe_before_installed_modules(tmp_path):
    assert find_module("textwrap:dedent", tmp_path).parent != tmp_path
    (tmp_path / "textwrap.py").write_text("dedent = len")
    assert find_module("textwrap:dedent", tmp_path) == tmp_path / "textwrap.py"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("scores", "'scores' is no function: expected module:function"),
        ("no_such.module:f", "no module 'no_such.module' beside the recipe"),
        ("scores:scor", "defines no function 'scor'"),
        ("broken:f", "broken.py:1 is not Python"),
    ],
)
def test_a_function_that_cannot_be_found_is_one_line(work, function, message):
    (work / "broken.py").write_text("def f(:")
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as error:
        known(work, f"annotate.annotator_function={function}")
    assert message in str(error.value)


def test_a_change_is_reported_by_field_and_by_input(work):
    steps, before = known(work)
    _, after = known(work, "dpo.beta=0.2", "dpo.loss_weights=[1.0, 0.5]")
    told = {step.name: differences(step, before[step.name].content, after[step.name].content) for step in steps}
    assert told["round-1.dpo"] == ["dpo.beta 0.1 -> 0.2", "dpo.loss_weights [1.0, 0.2] -> [1.0, 0.5]"]
    assert told["round-1.evaluate_policy"] == ["input round-1.dpo changed"]
    assert told["round-1.sft"] == []
    assert "input round-2.sft changed" in told["round-2.dpo"]


def test_a_raised_recipe_version_is_reported(work):
    steps, before = known(work)
    now = before["round-1.dpo"].content["recipe_version"]
    old = before["round-1.dpo"].content | {"recipe_version": 0}
    step = next(step for step in steps if step.name == "round-1.dpo")
    assert differences(step, old, before["round-1.dpo"].content) == [f"stage dpo changed (version 0 -> {now})"]


VARIANTS = "sft.variants=[{learning_rate: 1e-5}, {learning_rate: 2e-5}]"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sft.variants=[{learning_rate: 1e-5}, {learning_rate: 3e-5}]", {"round-1.sft.2"}),
        ("sft.average={weights: greedy}", set()),
        ("by_round.1.sft.max_length=64", {"round-1.sft.1", "round-1.sft.2"}),
    ],
)
def test_an_edit_of_variants_changes_its_part_the_average_and_what_depends_on_them(work, override, parts):
    recipe = ("rounds=1", "by_round.0.sft.variants=[{}]", VARIANTS)
    _, before = known(work, *recipe)
    _, after = known(work, *recipe, override)
    below = {"round-1.sft", "round-1.dpo", "round-1.evaluate_policy"}
    assert changed(before, after) == below | parts


@pytest.mark.parametrize(
    "override",
    [
        "sft.learning_rate=9e-5",  # every variant has its own
        "sft.per_device_eval_batch_size=2",
        "sft.launch={devices: [0, 1]}",
        "sft.average={weights: uniform}",  # the default, given explicitly
    ],
)
def test_what_neither_a_variant_nor_the_measurement_reads_changes_nothing(work, override):
    recipe = ("rounds=1", VARIANTS)
    assert changed(known(work, *recipe)[1], known(work, *recipe, override)[1]) == set()


def test_the_differences_of_an_average_are_named_as_the_recipe_names_them(work):
    def lines(*overrides, old):
        steps, now = known(work, "rounds=1", *overrides)
        step = next(step for step in steps if step.name == "round-1.dpo")
        return differences(step, known(work, "rounds=1", *old)[1]["round-1.dpo"].content, now["round-1.dpo"].content)

    variants = "dpo.variants=[{learning_rate: 1e-5}, {learning_rate: 2e-5}]"
    assert lines(variants, old=()) == ["a single dpo -> the average of its variants"]
    assert lines(old=(variants,)) == ["the average of its variants -> a single dpo"]
    assert lines(variants, "dpo.average={weights: greedy}", old=(variants,)) == [
        "dpo.average.weights uniform -> greedy",
    ]
    assert lines(variants, "dpo.beta=0.2", old=(variants,)) == [
        "dpo.average.stage_keys.beta null -> 0.2",
        "input round-1.dpo.1 changed",
        "input round-1.dpo.2 changed",
    ]


def test_what_is_given_besides_a_path_is_part_of_the_identity_and_a_plain_path_is_only_its_content(work):
    plain = "data.instructions=chats.jsonl"
    steps, before = known(work, plain)
    assert len(before["prepare_data"].content["inputs"]["instructions"][0]) == 1
    for same in ("{path: chats.jsonl}", "[{path: chats.jsonl, share: 1}]"):
        assert not changed(before, known(work, f"data.instructions={same}")[1])
    overrides = [
        f"data.instructions={{path: chats.jsonl, {option}}}"
        for option in ("share: 0.5", "share: 2", "columns: {messages: m}", "columns: {messages: n}")
    ]
    fingerprints = {known(work, override)[1]["prepare_data"].fingerprint for override in [plain, *overrides]}
    assert len(fingerprints) == 5
    _, after = known(work, overrides[0])
    lines = differences(steps[0], before["prepare_data"].content, after["prepare_data"].content)
    assert lines == [f'input {work / "chats.jsonl"} {{}} -> {{"share":0.5}}']
