"""The `alignloop` command, a module for each kind of thing that its commands take: recipes, runs and models.

    alignloop run configs/demo.yaml --set dpo.beta=0.2

A user's mistake is reported in one line on stderr and ends with exit code 2. A failed stage ends with 1, a run
that waits for people with 3, Ctrl-C with 130 and SIGTERM with 143.
"""

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from data_schemas.errors import ConfigError
from data_schemas.files import check_name
from data_schemas.text import escape_what_the_terminal_lacks
from pipeline.cli.app import app
from pipeline.launch.processes import Interrupted, signals_raise
from pipeline.report import errors

from pipeline.cli import recipes, scaling, clusters, runs, models  # noqa: F401 # isort: skip - in the order of --help


def _check_not_empty(words: Sequence[str]) -> None:
    """Raises ConfigError for an empty word, as of a variable that the shell does not know: it would be this folder."""
    for before, word in zip(("", *words), words, strict=False):
        option = before if before.startswith("-") and "=" not in before else ""
        if not word.strip():
            raise ConfigError(f"{option or 'an argument'} is empty; expected a value, or leave it out")
        if re.fullmatch(r"--[a-z_-]+=\s*", word):
            raise ConfigError(f"{word.partition('=')[0]} is empty; expected a value, or leave it out")


def main() -> None:
    """The entry point of the console script. Reports errors in one line, and exits with their code."""
    from typer.main import get_command

    escape_what_the_terminal_lacks()
    try:
        for name in (Path.cwd(), *sys.argv[1:]):
            check_name(name)
        _check_not_empty(sys.argv[1:])
        with signals_raise([signal.SIGTERM, signal.SIGHUP]):  # so that its programs end and temporary files are deleted
            code = get_command(app)(standalone_mode=False)
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        code = errors.report(error)
    sys.exit(code)
