"""The `alignloop` command, a module for each kind of thing that its commands take: recipes, runs and models.

    alignloop run configs/demo.yaml --set dpo.beta=0.2

A user's mistake is reported in one line on stderr and ends with exit code 2. A failed stage ends with 1, a run
that waits for people with 3, Ctrl-C with 130 and SIGTERM with 143.
"""

import sys
from pathlib import Path

from data_schemas.files import check_name
from data_schemas.text import escape_what_the_terminal_lacks
from pipeline.cli.app import app
from pipeline.launch.processes import Interrupted
from pipeline.report import errors

from pipeline.cli import recipes, clusters, runs, models  # noqa: F401 # isort: skip - in the order of --help


def main() -> None:
    """The entry point of the console script. Reports errors in one line, and exits with their code."""
    from typer.main import get_command

    escape_what_the_terminal_lacks()
    try:
        for name in (Path.cwd(), *sys.argv[1:]):
            check_name(name)
        code = get_command(app)(standalone_mode=False)
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        code = errors.report(error)
    sys.exit(code)
