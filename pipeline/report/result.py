"""What a finished run has trained, and what to type next."""

import shlex
from pathlib import Path

from rich.console import Console
from rich.text import Text

from data_schemas.text import printable
from data_schemas.tracked_round import PAGE
from pipeline.report import rounds, terminal
from pipeline.report.errors import command_name
from pipeline.report.live import short_path
from pipeline.state.summary import POLICY_STAGES, SUMMARY, Summary, trained_models


def show_numbers(console: Console, summary: Summary) -> None:
    """Prints the table of rounds; where no policy is judged, the models' losses on held-out rows and sample answers."""
    if summary["rounds"]:
        console.print(terminal.rounds_table(summary))
        for said in rounds.remarks(summary):
            console.print(Text(said))
        return
    if trained := trained_models(summary):
        console.print(terminal.models_table(trained))
    if samples := summary.get("samples"):
        console.print(terminal.samples_table(samples))


def show(console: Console, summary: Summary, folder: Path) -> None:
    """Prints the numbers of a run that has finished, and commands for what may come next."""
    best, trained = summary["best_policy"], trained_models(summary)
    show_numbers(console, summary)
    if best is not None:
        print(f"\nbest policy: {best['step']}")
        model = best["folder"]
    else:
        print(f"\nmodel:        {short_path(folder / trained[-1]['folder'])}")
        model = next((entry["folder"] for entry in reversed(trained) if entry["stage"] in POLICY_STAGES), None)
    if model is not None:
        print(f"chat with it: {command_name()} chat {shlex.quote(short_path(folder / model))}")
    if model is not None and _could_have_samples(summary):
        print("for samples:  add evaluate_policy to `stages`; without a judge it writes sample answers")
    print(f"its page:     {short_path(folder / PAGE)}")
    print(f"all numbers:  {short_path(folder / SUMMARY)}")


def show_partial(console: Console, summary: Summary, folder: Path, *, rest: str) -> None:
    """Prints what a run has that was asked for some of its steps, and `rest`, the command that runs the others."""
    pending = [step["name"] for step in summary["steps"] if step["state"] == "pending"]
    if summary["best_policy"] is not None or not summary["rounds"]:
        show_numbers(console, summary)
    print(f"\npartial run:  {len(summary['steps']) - len(pending)} of {len(summary['steps'])} steps are finished")
    print(f"run the rest: {rest}     # continues with {printable(pending[0])}")
    if models := [model for model in trained_models(summary) if model["stage"] in POLICY_STAGES]:
        print(f"chat with it: {command_name()} chat {shlex.quote(short_path(folder / models[-1]['folder']))}")
    print(f"all numbers:  {short_path(folder / SUMMARY)}")


def _could_have_samples(summary: Summary) -> bool:
    """Whether the run trained a policy without rounds, and nothing asked it for answers."""
    policies = [entry for entry in summary["steps"] if entry["stage"] in POLICY_STAGES]
    is_evaluated = any(entry["stage"] == "evaluate_policy" for entry in summary["steps"])
    return not is_evaluated and bool(policies) and all(entry["round"] is None for entry in policies)
