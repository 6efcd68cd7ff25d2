"""Every command of README.md and docs/ is one that the programs accept: its options, its arguments and their values.

`alignloop run` and `plan` are planned, with the recipe and small files; other commands are parsed by the real parsers.
"""

import contextlib
import importlib.util
import io
import logging
import re
import shutil
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from data_schemas.model_options import OPTIONS, checked
from data_schemas.stage_command_line import parse_command_line
from data_schemas.stage_keys import check_required, with_defaults
from pipeline import cli
from pipeline.cli.app import app
from pipeline.launch.command_line import ROOT
from tests.docs.pages import PAGES, Command, blocks, commands, model_folder
from tests.toy_rows import conversation, pair, write_jsonl

TUTORIAL = "docs/tutorial.md"  # test_tutorial.py runs its commands
COMMANDS = [command for page in PAGES if page != TUTORIAL for command in commands(page)]
# Commands that are not tried, with the reason.
UNTRIED = {
    "docker build": "needs Docker; tests/test_image.py reads the Dockerfile",
    "docker run": "needs Docker; tests/test_image.py reads the Dockerfile",
    "pip install": "installs from a package index",
    "/opt/datatrove/bin/pip install": "installs from a package index",
    "python3 -m venv /opt/datatrove": "writes outside of the test's folder",
    "/opt/vllm/bin/pip install": "installs from a package index",
    "python3 -m venv /opt/vllm": "writes outside of the test's folder",
    "source .venv/bin/activate": "belongs to the shell",
    "accelerate config": "asks questions in a terminal",
}
PLACEHOLDERS = {"RECIPE": "demo", "NAME": "demo"}  # words of a page for any recipe
RUN_ONLY = ("--no-preflight", "--preflight")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def untried(command: Command) -> str | None:
    return next((start for start in UNTRIED if command.text.startswith(start)), None)


def test_the_pages_have_commands_and_every_reason_still_has_one():
    assert len(COMMANDS) > 80
    assert {untried(command) for command in COMMANDS} - {None} == set(UNTRIED)


TRIED = [command for command in COMMANDS if untried(command) is None]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the commands of the pages name: configs, files of rows, and README's mine.yaml."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "stages", "toy_world"):
        (folder / name).symlink_to(ROOT / name)
    write_jsonl(folder / "chats.jsonl", [conversation(number) for number in range(60)])
    write_jsonl(folder / "pairs.jsonl", [pair(number) for number in range(60)])
    shutil.copy(folder / "chats.jsonl", folder / "instructions.jsonl")
    (folder / "texts.txt").write_text("A text.\nAnother text.\n")
    (mine,) = (block.text for block in blocks("README.md") if block.text.startswith("# mine.yaml"))
    (folder / "mine.yaml").write_text(mine)
    for name in ("my-base", "MODEL"):
        model_folder(folder / name)
    return folder


@pytest.fixture
def here(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("command", [command for command in TRIED if command.program == "alignloop"], ids=str)
def test_alignloop_accepts_the_command(command, here):
    words = [PLACEHOLDERS.get(word, word) for word in command.words[1:]]
    if words[0].startswith("--"):
        assert words == ["--install-completion"]
        return
    if words[0] in ("run", "plan") and len(words) > 1 and "--cost" not in words:  # estimating takes minutes
        planned(command, words)
        return
    parsed(words)


def planned(command: Command, words: list[str]) -> None:
    """Plans the recipe of `run` or `plan`. Where the page shows an error of the recipe, it must be that one."""
    code, out, err = called(["plan", *(word for word in words[1:] if word not in RUN_ONLY)])
    if command.output.startswith("error: "):
        assert code == 2
        shown, printed = command.output.splitlines()[0], err.strip()
        assert shown.split(" needs ")[0] == printed.split(" needs ")[0]  # what it needs, an earlier run left there
    else:
        assert (code, "error" in err) == (0, False), err
        assert re.match(r"[\w-]+: \d+ steps, ", out)


def called(words: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of the command line, in this process."""
    out, err, root = io.StringIO(), io.StringIO(), logging.getLogger()
    handlers = list(root.handlers)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["alignloop", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    root.handlers = handlers
    code = ended.value.code
    return (code if isinstance(code, int) else 0), out.getvalue(), err.getvalue()


def parsed(words: list[str]) -> None:
    """Parses a command without running it. A name without arguments is only looked up."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    assert words[0] in group.commands
    if len(words) > 1 or words[0] in ("list", "init"):
        given = group.commands[words[0]].make_context(words[0], list(words[1:])).params
        if words[0] in OPTIONS:
            checked(words[0], given)


@pytest.mark.parametrize("command", [command for command in TRIED if command.program == "make"], ids=str)
def test_make_has_the_targets_and_reads_the_variables(command):
    for word in command.words[1:]:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"\$\({name}\)|needs,{name}," if is_variable else rf"^{name}:", MAKEFILE, re.MULTILINE), name


STAGE = re.compile(r"stages/(\w+)\.py")


@pytest.mark.parametrize(
    "command", [command for command in TRIED if command.program in ("python", "python3", "accelerate")], ids=str
)
def test_a_program_exists_and_takes_the_options(command, here):
    words = list(command.words[1:])
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None
        sources = "".join(file.read_text() for file in (ROOT / words[1].replace(".", "/")).glob("*.py"))
        assert all(f'"{word}"' in sources for word in words[2:])  # the parts of a benchmark
        return
    if command.program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert words[0] == "launch"
        given = launch_command_parser().parse_args(words[1:])
        words = [given.training_script, *given.training_script_args]
        assert given.config_file is None or (ROOT / given.config_file).is_file()
    stage = STAGE.fullmatch(words[0])
    assert stage and (ROOT / words[0]).is_file()
    if words[1:] != ["--help"] and (config := option(words, "--config")) not in ("sft.yaml", "dpo.yaml"):  # any config
        assert config is None or (ROOT / config).is_file()
        typed = parse_command_line(stage[1], words[1:])
        check_required(stage[1], with_defaults(stage[1], typed), where=str(command))


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


@pytest.mark.parametrize("command", [command for command in TRIED if command.program == "pytest"], ids=str)
def test_pytest_gets_folders_that_exist(command):
    assert (ROOT / command.words[1]).is_dir()


def test_every_command_is_of_a_program_that_a_test_here_tries():
    assert {command.program for command in TRIED} == {"alignloop", "make", "python", "accelerate", "pytest"}
