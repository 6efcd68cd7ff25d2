"""Every rule of the code has a case with bad input: an error of one line, its exit code, and no file changed.

The cases are in bad_rows.py, bad_sources.py, bad_recipes.py, bad_runs.py, bad_exports.py, bad_keys.py,
bad_models.py, bad_adapters.py, bad_curation.py, bad_rewards.py, bad_templates.py, bad_vllm.py, bad_endpoints.py,
bad_tasks.py, bad_people.py and bad_commands.py, by what is damaged; cases.py runs them.

If `test_every_rule_has_a_bad_input` fails, it names each refusal (`file:line function`, or a limit) that no case
reaches: add a case for it, or name in ELSEWHERE the test that has it.
"""

import contextlib
import re
from collections.abc import Iterator

import pytest

from tests.bad_inputs import (
    bad_adapters,
    bad_commands,
    bad_curation,
    bad_endpoints,
    bad_exports,
    bad_keys,
    bad_launches,
    bad_models,
    bad_people,
    bad_recipes,
    bad_rewards,
    bad_rows,
    bad_runs,
    bad_scaling,
    bad_sources,
    bad_tasks,
    bad_templates,
    bad_vllm,
)
from tests.bad_inputs.bad_runs import planned_folder
from tests.bad_inputs.cases import Case, Met, Place, Raise, play, raises, rules_in_data

CASES = [
    *bad_rows.CASES,
    *bad_sources.CASES,
    *bad_recipes.CASES,
    *bad_runs.CASES,
    *bad_scaling.CASES,
    *bad_launches.CASES,
    *bad_exports.CASES,
    *bad_keys.CASES,
    *bad_models.CASES,
    *bad_adapters.CASES,
    *bad_rewards.CASES,
    *bad_templates.CASES,
    *bad_vllm.CASES,
    *bad_endpoints.CASES,
    *bad_commands.CASES,
    *bad_curation.CASES,
    *bad_tasks.CASES,
    *bad_people.CASES,
]
MET: dict[Case, Met] = {}  # reached by the cases that have run
# (file, function) of rules that no case can reach -> the test that reaches them, or why none can.
ELSEWHERE = {
    (
        "data_schemas/artifact.py",
        "files_below",
    ): "a file that vanishes while the record is written: test_damaged_files",
    ("engine/models/adapters.py", "Quantization.restored"): "the keys refuse it before: test_adapters",
    ("engine/models/loading.py", "_load_with_adapter"): "quantized, it needs bitsandbytes: test_lora_boundaries",
    ("engine/models/loading.py", "training_options"): "ZeRO-3 on a quantized base: the recipe refuses it before",
    ("engine/models/miniature.py", "small_model"): "an architecture that no recipe can have: test_miniature",
    (
        "engine/models/policy_tokenizer.py",
        "load_policy_tokenizer",
    ): "a model without an end token: test_policy_tokenizer",
    ("pipeline/scaling/tables.py", "write_grid"): "a damaged run after all runs: tests/pipeline/scaling/test_grid.py",
    ("pipeline/scaling/tables.py", "loss_of"): "the same",
    ("data_schemas/splitting.py", "Shares.__post_init__"): "the limits of the keys come first: test_splitting",
    ("engine/training/wrapping.py", "check_engine"): "FSDP on a CPU, which the recipe refuses: test_wrapping",
    ("stages/rl.py", "check_launch"): "FSDP2 by hand, as accelerate sets it: tests/stages/test_rl.py",
    ("engine/tasks/changes.py", "changes"): "evaluations of other questions: tests/stages/test_evaluate_tasks.py",
    ("engine/tasks/changes.py", "changes_to_best"): "an evaluation that is not given: test_evaluate_tasks.py",
    ("engine/tasks/grades.py", "read_grades"): "a damaged file beside a valid record: test_evaluate_tasks.py",
    ("pipeline/launch/preflight.py", "preflight"): "it needs a model: tests/commands/test_preflight.py",
    (
        "engine/models/verification.py",
        "check_in_own_process",
    ): "after DeepSpeed, in a process that imports everything: test_saved",
}


@pytest.fixture
def place(tmp_path, request) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        yield Place(tmp_path, patch, request.getfixturevalue)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_is_one_line_and_leaves_every_file_unchanged(case, place, capfd):
    MET[case] = play(case, place, capfd)
    assert case.says.replace("HERE", str(place.folder)).removeprefix("error: ") in MET[case].said


@pytest.mark.parametrize("content", ["[1]", "3", '{"HERE/pairs.jsonl": 3}', "{", ""])
@pytest.mark.parametrize("name", [".hashes.json", "STEP/fingerprint.json", "STEP/outcome.json"])
def test_a_damaged_file_of_our_own_is_ignored(name, content, place, capfd):
    place.patch.chdir(place.folder)
    words = place.recipe()
    step = planned_folder(place, "prepare_data").name
    place.write(f"runs/toy/{name.replace('STEP', step)}", content.replace("HERE", str(place.folder)))
    assert place.alignloop("plan", *words)() == 0
    out, err = capfd.readouterr()
    assert "prepare_data: " in out and not err


def test_every_rule_has_a_bad_input(tmp_path_factory, request, capfd):
    for case in CASES:
        if case not in MET:  # not selected, or it failed, which pytest reports
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(AssertionError):
                folder = tmp_path_factory.mktemp("case")
                MET[case] = play(case, Place(folder, patch, request.getfixturevalue), capfd)
    lines = {line for met in MET.values() for line in met.lines}
    rules = raises()
    assert len(rules) > 100
    unmet = [str(rule) for rule in rules if not _is_met(rule, lines) and (rule.file, rule.function) not in ELSEWHERE]
    unmet += [
        rule for rule, words in rules_in_data().items() if not any(re.search(words, met.said) for met in MET.values())
    ]
    assert not unmet, "no bad input comes by: " + ", ".join(unmet)


def _is_met(rule: Raise, lines: set[tuple[str, int]]) -> bool:
    return any(file == rule.file and rule.first <= line <= rule.last for file, line in lines)
