"""Runs a case with bad input, and records which rules of the code it reaches.

A rule is every place that refuses something: a `raise` in our packages, a key of REPLACED_KEYS, a limit of a pydantic
field; limits of stage keys are in test_generated_keys.py. The raises are found by ast, so no list of them can become
outdated. A trace function records which of them a case reaches, even if the error is caught afterwards.
"""

import ast
import contextlib
import importlib
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

from data_schemas.errors import UserError
from data_schemas.files import hash_files
from data_schemas.stage_keys import REPLACED_KEYS
from engine.runtime import process, stage
from pipeline import cli
from pipeline.launch import command_line, warm
from tests.pipeline.fake_stages import build_house, build_inputs
from tests.stage_runs import ROOT, stage_keys

PACKAGES = ("data_schemas", "engine", "pipeline", "stages", "toy_world")
OURS = tuple(f"{ROOT / package}/" for package in PACKAGES)
# Raised for control flow, for an invariant of our code, or at the end of a process: not for a mistake in the input.
NO_REFUSALS = {
    "AssertionError",
    "TypeError",
    "RuntimeError",
    "ConnectionError",
    "TimeoutExpired",
    "Preempted",
    "WaitingForPeople",
    "TryAgain",
    "MalformedReply",
    "Interrupted",
    "NotImplementedError",
    "_TookTooLong",
    "TrainingEnds",
    "UnsupportedAdapter",
    "Exit",
}
# Part of the message for a field beyond its limit. The limits themselves are in the classes.
OF_FIELDS = {
    "ge": "or more",
    "le": "or less",
    "pattern": "text that matches",
    "allow_inf_nan": "finite number",
}
# Files that every start of a stage or run overwrites.
REPORTS = (".lock", "log.txt", "outcome.json", "console.txt")
transformers.utils.logging.get_logger()  # its handler keeps this stderr; a test's would be closed later
Call = Callable[[], int]  # returns the exit code


# -- rules ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Raise:
    file: str
    function: str
    first: int  # line
    last: int

    def __str__(self) -> str:
        return f"{self.file}:{self.first} {self.function}"


def raises() -> list[Raise]:
    """Every `raise` in our packages that may report a user's mistake, in order."""
    found: list[Raise] = []

    def look(node: ast.AST, file: str, name: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}" if name else node.name
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if ast.unparse(raised).rpartition(".")[2] not in NO_REFUSALS:
                found.append(Raise(file, name, node.lineno, node.end_lineno or node.lineno))
        for child in ast.iter_child_nodes(node):
            look(child, file, name)

    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        look(ast.parse(path.read_bytes()), str(path.relative_to(ROOT)), "")
    return found


def rules_in_data() -> dict[str, str]:
    """Rules without a separate `raise` -> the pattern that the message of a case for them must match."""
    rules = {f"REPLACED_KEYS[{name!r}]": rf"\b{name} is not a key here" for name in REPLACED_KEYS}
    for file in ("data_schemas/rows.py", "pipeline/recipe/settings.py", "pipeline/recipe/sections.py"):
        for kind in (node for node in ast.parse((ROOT / file).read_bytes()).body if isinstance(node, ast.ClassDef)):
            for node in kind.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
                    for limit in node.value.keywords:
                        if limit.arg in OF_FIELDS:
                            name = ast.unparse(node.target)
                            rules[f"{file} {kind.name}.{name} {limit.arg}"] = rf"\b{name}[=:].*{OF_FIELDS[limit.arg]}"
    return rules


@contextlib.contextmanager
def lines_that_raise() -> Iterator[set[tuple[str, int]]]:
    """Collects every (file, line) in our packages that an exception passes through, whether it is caught or not."""
    found: set[tuple[str, int]] = set()

    def inside(frame: Any, event: str, what: Any) -> Any:
        if event == "exception":
            found.add((str(Path(frame.f_code.co_filename).relative_to(ROOT)), frame.f_lineno))
        return inside

    def enter(frame: Any, event: str, what: Any) -> Any:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_lines = False
        return inside

    before = sys.gettrace()
    sys.settrace(enter)
    threading.settrace(enter)  # those that start from here on
    try:
        yield found
    finally:
        sys.settrace(before)
        threading.settrace(before)  # pyright: ignore[reportArgumentType] - None is allowed


# -- cases ----------------------------------------------------------------------------------------------------------


@dataclass
class Place:
    """The folder a case works in, and the ways to give its input to the program."""

    folder: Path
    patch: pytest.MonkeyPatch
    shared: Callable[[str], Any]  # a fixture of conftest by name
    used: list[Path] = field(default_factory=list)  # other folders that must not change either

    def write(self, name: str, content: Any) -> Path:
        """Writes a file: text and bytes unchanged, a list as JSON lines, a mapping as JSON."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in content)
        elif isinstance(content, dict):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def folder_of(self, name: str) -> Path:
        """The folder of a model or of rows that all tests share."""
        path: Path = self.shared(name)
        self.used.append(path)
        return path

    def alignloop(self, *words: Any) -> Call:
        """The command, in this process."""
        self.patch.setattr(sys, "argv", ["alignloop", *map(str, words)])
        return lambda: exit_code(cli.main)

    def recipe(self, *settings: str) -> list[str]:
        """The arguments for a valid recipe with toy inputs, with `--set` for each setting."""
        if not (self.folder / "toy.yaml").exists():
            build_inputs(self.folder)
        return ["toy.yaml", *(word for setting in settings for word in ("--set", setting))]

    def toy_stages(self, **environment: str) -> None:
        """Makes the command start toy stages."""
        build_house(self.folder / "house")
        self.patch.setattr(command_line, "ROOT", self.folder / "house")
        self.patch.setattr(warm, "preloaded_modules", list)
        for name, value in ({"TOY": "{}", "SCORES": "{}"} | environment).items():
            self.patch.setenv(name, value)

    def stage(self, name: str, **keys: Any) -> Call:
        """A stage in this process with keys from a file, added to the keys that all tests set."""
        values = {key: value for key, value in stage_keys(name, output_dir="out", **keys).items() if value is not None}
        self.write("config.yaml", yaml.safe_dump(values))
        return self.stage_by_hand(name, "--config", "config.yaml")

    def stage_by_hand(self, name: str, *words: str) -> Call:
        """A stage in this process with these options."""

        def run() -> None:
            module = importlib.import_module(f"stages.{name}")
            stage.run_stage(name, module.ARGUMENTS, module.main, defaults=getattr(module, "DEFAULTS", {}), words=words)

        return lambda: exit_code(run)

    def function(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Call:
        """Calls a function, for a rule that no command and no stage can reach."""

        def call() -> int:
            try:
                function(*arguments, **options)
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2 if isinstance(error, UserError) else 1
            return 0

        return call

    def contents(self) -> dict[Path, str]:
        """The hash of every file."""
        found = (path for folder in (self.folder, *self.used) for path in folder.rglob("*") if path.is_file())
        files = [path for path in found if path.name not in REPORTS]
        return dict(zip(files, hash_files(files), strict=True))


def exit_code(run: Callable[[], None]) -> int:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, str):  # as the interpreter does
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers = handlers
        root.setLevel(level)
    return 0


@dataclass(frozen=True)
class Case:
    """`make` writes the input and returns the call that gets it. `says` is a part of the expected error."""

    name: str
    make: Callable[[Place], Call]
    says: str  # HERE stands for the place's folder
    code: int = 2


@dataclass(frozen=True)
class Met:
    lines: set[tuple[str, int]]
    said: str


def play(case: Case, place: Place, captured: pytest.CaptureFixture[str]) -> Met:
    """Runs the case, and checks what must hold for all cases: one line, the exit code, and no file changed."""
    place.patch.chdir(place.folder)
    place.patch.setenv("OMP_NUM_THREADS", "1")
    place.patch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("ALIGNLOOP_RUNNER_PID", "ALIGNLOOP_FUNCTION_PATH"):
        place.patch.delenv(name, raising=False)
    place.patch.setattr(process, "use_all_cores", lambda: None)
    call = case.make(place)
    before = place.contents()
    captured.readouterr()
    with lines_that_raise() as lines:
        code = call()
    out, err = captured.readouterr()
    lines_said = err.splitlines()
    refusals = [line for line in lines_said if line.startswith("error: ")]
    assert "Traceback" not in out + err, err
    assert len(refusals) == 1, f"not one line: {err}"
    assert case.says.replace("HERE", str(place.folder)) in refusals[0], refusals[0]
    after = lines_said[lines_said.index(refusals[0]) + 1 :]
    assert not after or after[0].startswith(("command: ", "log: ", "SIGTERM would ")), f"not one line: {err}"
    assert code == case.code
    now = place.contents()
    assert {path: now.get(path) for path in before} == before, "a file is not as it was"
    return Met(lines, refusals[0].removeprefix("error: "))
