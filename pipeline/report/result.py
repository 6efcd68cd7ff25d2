"""What a finished run has trained, and what to type next."""

import shlex
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pipeline.report import terminal
from pipeline.report.errors import command_name
from pipeline.report.live import short_path
from pipeline.state.summary import POLICY_STAGES, SUMMARY, Summary, trained_models


def show(console: Console, summary: Summary, folder: Path) -> None:
    """Prints the table of rounds, or of models where there were no rounds, and commands for what may come next."""
    best, trained = summary["best_policy"], trained_models(summary)
    if summary["rounds"]:
        console.print(terminal.rounds_table(summary))
        if said := terminal.diagnosis(summary):
            console.print(Text(said))
    else:
        console.print(terminal.models_table(trained))
    if best is not None:
        print(f"\nbest policy: {best['step']}")
        model = best["folder"]
    else:
        print(f"\nmodel:        {short_path(folder / trained[-1]['folder'])}")
        model = next((entry["folder"] for entry in reversed(trained) if entry["stage"] in POLICY_STAGES), None)
    if model is not None:
        print(f"chat with it: {command_name()} chat {shlex.quote(short_path(folder / model))}")
    print(f"all numbers:  {short_path(folder / SUMMARY)}")
