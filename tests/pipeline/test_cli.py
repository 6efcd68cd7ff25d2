"""The command line: mistakes are one line, and it loads no torch."""

import subprocess
import sys

import pytest

from tests.processes import cpu_seconds_of


def test_a_folder_with_packages_of_the_same_names_does_not_mask_ours(world):
    for name in ("pipeline", "stages", "engine", "data_schemas", "yaml"):
        (world.work / name).mkdir()
        (world.work / name / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    (world.work / "stages" / "sft.py").write_text("raise RuntimeError('the wrong one')")
    assert world.run()[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "gone.yaml"), "error: gone.yaml does not exist\n"),
        (
            ("plan", "toy.yaml", "--set", "dpo.betta=1"),
            "error: toy.yaml: dpo: unknown key 'betta' of stage dpo; did you mean 'beta'?\n",
        ),
        (("plan", "toy.yaml", "--set", "annotate.annotator_function=scores:scor"), "scores.py defines no 'scor'\n"),
        (("status", "."), "error: . has no summary.json: is it a run's folder?\n"),
        (("chat", "gone"), "error: gone does not exist\n"),
        (("chat", "."), "error: . is no model: it has no config.json, no record of a model and no summary.json\n"),
        (("run",), "Missing argument 'RECIPE'"),
        (("rnu",), "No such command 'rnu'"),
    ],
)
def test_a_users_mistake_is_one_line_on_stderr_and_exit_code_two(world, words, message):
    code, out, err = world.call(*words)
    assert code == 2
    assert message in err
    assert (err.count("\n"), out) == (1, "")
    assert not world.run_folder.exists()


def test_the_command_loads_neither_torch_nor_transformers_and_plans_at_once(world):
    loaded = "import pipeline.cli, sys; print({'torch', 'transformers', 'trl', 'accelerate'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "set()\n"
    world.call("plan", "toy.yaml")
    assert cpu_seconds_of(lambda: world.call("plan", "toy.yaml")) < 4 * cpu_seconds_of(lambda: world.call("--help"))
