"""Load a recipe, plan it and run it: what the commands `plan` and `run` do, with errors as exceptions."""

import signal
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import yaml

from alignloop.table import Table
from data_schemas.errors import ConfigError
from data_schemas.text import shown
from data_schemas.yaml_files import dump_line
from pipeline.launch.failures import StageFailed as StageFailed
from pipeline.launch.loading import load_checked
from pipeline.launch.processes import Interrupted
from pipeline.plan import Step
from pipeline.recipe.resolved import Recipe
from pipeline.recipe.shipped import find_recipe
from pipeline.report.running import run_and_show
from pipeline.state.fingerprint import SMALL
from pipeline.state.run import Run
from pipeline.unused import check_unused

Settings = Mapping[str, object]


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe whose keys and plan are checked."""

    recipe: Recipe
    steps_planned: Sequence[Step]

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.recipe.name

    @property
    def folder(self) -> Path:
        """The folder of its run, which may not exist yet."""
        return self.recipe.folder

    def __repr__(self) -> str:
        return f"<recipe {self.name}: {len(self.steps_planned)} steps, {self.folder}>"


def load_recipe(recipe: str | PathLike[str], settings: Settings | None = None) -> LoadedRecipe:
    """A recipe file, or a shipped recipe by its name, with settings as those of `--set`: {"dpo.beta": 0.2}.

    Nothing runs. Parts of the recipe that no step uses are a Python warning. Raises ConfigError or DataError, in one
    line with the key, what was found and what to do.
    """
    overrides = [_setting(key, value) for key, value in (settings or {}).items()]
    loaded, steps = load_checked(find_recipe(Path(recipe)), overrides)
    for sentence in check_unused(loaded, steps):
        warnings.warn(f"{loaded.path}: {sentence}", stacklevel=2)
    return LoadedRecipe(loaded, steps)


def _setting(key: str, value: object) -> str:
    """`key=value` as `--set` takes it. Raises ConfigError for a value that no recipe can have."""
    try:
        return f"{key}={dump_line(_plain(value))}"
    except yaml.YAMLError:
        raise ConfigError(
            f"{key}={shown(value)} is a {type(value).__name__}; expected text, a number, a boolean, None, a path, or a "
            "list or dict of these"
        ) from None


def _plain(value: object) -> object:
    """The value with paths as text, and tuples as lists."""
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def plan(loaded: LoadedRecipe) -> Table:
    """What `run` would do with each step, in order, and why: step, stage, round, action, why, folder.

    The action is reuse, resume, run or skip, or `to be hashed` behind a large file that was not read yet. Runs nothing.
    """
    run = Run.of(loaded.recipe, list(loaded.steps_planned), hash_limit=SMALL)
    decisions = [(step, run.decide(step)) for step in run.steps]
    return Table(
        {
            "step": step.name,
            "stage": step.stage,
            "round": step.round,
            "action": decision.action,
            "why": decision.why,
            "folder": str(decision.folder) if decision.folder else None,
        }
        for step, decision in decisions
    )


def run(loaded: LoadedRecipe, *, preflight: bool = True, verbose: bool = False) -> Path:
    """Runs the steps as `alignloop run` does, and returns the run's folder. Finished steps are reused.

    Lines about the progress are printed, with `verbose` also the output of the stages. `preflight` tries every section
    on a small model before the first step that uses a model. The run's folder is locked meanwhile.

    Interrupt the kernel, or press Ctrl-C, to stop it: the running step saves its progress, KeyboardInterrupt is raised,
    and another call resumes. SIGTERM and SIGHUP stop it likewise, and are then passed on. Outside of the main thread
    Python delivers no signals, and nothing but the end of the process stops it.

    Raises ConfigError or DataError for a mistake, BusyError if another process runs it, StageFailed for a stage that
    failed, WaitingForPeople where people have to compare answers before it goes on.
    """
    try:
        run_and_show(
            loaded.recipe,
            loaded.steps_planned,
            verbose=verbose,
            tries_first=preflight,
            to_resume=lambda _: "run it again",
        )
    except Interrupted as interrupted:
        number = interrupted.number
    else:
        return loaded.folder
    if number != signal.SIGINT and threading.current_thread() is threading.main_thread():
        signal.raise_signal(number)  # the handler that was there before this call is back
    raise KeyboardInterrupt(f"the run was stopped by {signal.Signals(number).name}")
