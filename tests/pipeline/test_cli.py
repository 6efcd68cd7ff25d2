"""The command line: mistakes are one line, and it loads no torch."""

import os
import re
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
        (("run", "gone.yaml"), "error: gone.yaml does not exist, and no shipped recipe has this name; "),
        (
            ("plan", "toy.yaml", "--set", "dpo.betta=1"),
            "error: --set dpo.betta=1: dpo: unknown key 'betta' of stage dpo; did you mean 'beta'?\n",
        ),
        (
            ("plan", "toy.yaml", "--set", "dpo.beta=1", "--set", "sft.seed=x", "--set", "rounds=1"),
            "error: --set sft.seed=x: sft: seed='x' is text, expected int\n",
        ),
        (
            ("plan", "toy.yaml", "--set", "base_model=gone", "--set", "seed=4"),
            "error: --set base_model=gone: base_model='gone' does not exist, neither in ",
        ),
        (
            ("plan", "toy.yaml", "--set", "annotate.annotator_function=scores:scor"),
            "scores.py defines no function 'scor'\n",
        ),
        (("status", "."), "error: . has no summary.json; expected the folder of a run, as in runs/demo\n"),
        (("chat", "gone"), "error: gone does not exist\n"),
        (("chat", "~nosuchuser9/model"), "error: ~nosuchuser9/model does not exist\n"),
        (
            ("chat", "."),
            "error: . is not a model, a step or a run: no config.json, no record of a model, no summary.json\n",
        ),
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


def test_init_writes_a_recipe_once_and_prints_the_next_commands(world):
    code, out, err = world.call("init")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert (lines[0], lines[2]) == ("written: my-run.yaml", "set its model and data, then:")
    assert lines[1].startswith("it is for this machine, with ")
    assert [re.search(r"(\w+) my-run\.yaml", line)[1] for line in lines[3:]] == ["plan", "check", "run"]
    code, out, err = world.call("init")
    assert (code, out, err) == (2, "", "error: my-run.yaml exists already; move it away, or use another folder\n")
    code, out, _ = world.call("init", "llama3_8b")
    assert (code, out.splitlines()[0]) == (0, "written: llama3_8b.yaml, templates/llama3.jinja")


def test_a_shipped_recipe_is_planned_by_its_name_and_a_line_names_its_file(world):
    code, out, err = world.call("plan", "demo", "--set", "rouns=3")
    assert (code, out) == (2, "")
    first, second = err.splitlines()
    assert first.startswith("using the recipe demo that ships with alignloop: /") and first.endswith("demo.yaml")
    assert second == "error: --set rouns=3: unknown key 'rouns'; did you mean 'rounds'?"


def test_a_mistake_of_the_file_is_not_put_on_a_setting(world):
    recipe = world.work / "toy.yaml"
    recipe.write_text(recipe.read_text() + "\nrouns: 3\n")
    code, _, err = world.call("plan", "toy.yaml", "--set", "rounds=1")
    assert (code, err) == (2, "error: toy.yaml: unknown key 'rouns'; did you mean 'rounds'?\n")


def test_a_setting_that_a_later_one_needs_is_not_blamed(world):
    """Without the last setting the file's pipe is refused, as another kind of mistake than the first setting's."""
    _, _, err = world.call("plan", "toy.yaml", "--set", "dpo.betta=1", "--set", "sft.seeed=1")
    assert err.startswith("error: --set sft.seeed=1: sft: unknown key 'seeed'")  # sft is checked first
    os.mkfifo(world.work / "pipe.jinja")
    recipe = world.work / "toy.yaml"
    recipe.write_text(recipe.read_text() + "\nprepare_base: {chat_template: pipe.jinja}\n")
    good = ("--set", "prepare_base.chat_template=chatml")
    code, _, err = world.call("plan", "toy.yaml", "--set", "dpo.betta=1", *good)
    assert (code, err) == (2, "error: --set dpo.betta=1: dpo: unknown key 'betta' of stage dpo; did you mean 'beta'?\n")
    code, _, err = world.call("plan", "toy.yaml", *good, "--set", "prepare_base.chat_template=pipe.jinja")
    assert code == 2 and err.startswith("error: --set prepare_base.chat_template=pipe.jinja: ") and "named pipe" in err


def test_ctrl_c_while_the_command_is_imported_is_no_traceback(tmp_path):
    (tmp_path / "rich.py").write_text("raise KeyboardInterrupt")  # as if it came while the first library is imported
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from pipeline.entry import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_command_loads_neither_torch_nor_transformers_and_plans_at_once(world):
    loaded = "import pipeline.cli, sys; print({'torch', 'transformers', 'trl', 'accelerate'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "set()\n"
    world.call("plan", "toy.yaml")
    assert cpu_seconds_of(lambda: world.call("plan", "toy.yaml")) < 4 * cpu_seconds_of(lambda: world.call("--help"))


def test_the_shell_completes_steps_and_runs_and_a_mistake_completes_to_nothing(world):
    def completed(*words: str) -> list[str]:
        variables = {"COMP_WORDS": " ".join(("alignloop", *words)), "COMP_CWORD": str(len(words))}
        code, out, err = world.call(**{"_ALIGNLOOP.PY_COMPLETE": "complete_bash"}, **variables)
        assert (code, err) == (0, "")
        return out.split()

    world.run_folder.mkdir(parents=True)
    (world.run_folder / "summary.json").write_text("{}")
    assert completed("run", "toy.yaml", "--set", "rounds=1", "--until", "round-1.d") == ["round-1.dpo"]
    assert completed("run", "gone.yaml", "--until", "r") == []
    assert completed("status", "ru") == ["runs/toy"]
