"""The first line of the page: what the run has reached, or what it is doing, and what to type next."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from data_schemas.progress import describe_progress
from pipeline.report.errors import command_name
from pipeline.report.live import short_path
from pipeline.report.page.facts import StepFacts
from pipeline.report.rounds import number
from pipeline.state.summary import POLICY_STAGES, Summary, trained_models


def verdict(summary: Summary) -> str:
    """The best policy with its gain, or the loss of the trained models, in a sentence."""
    best = summary["best_policy"]
    if best is not None:
        row = next((row for row in summary["rounds"] if row["policy"] == best["step"]), None)
        score = f"Best policy: {best['step']}, with a mean of {number(best['score'])} by {_judge(summary)}"
        return f"{score}{_gain(row)}." if row else f"{score}."
    trained = trained_models(summary)
    if not trained:
        return "No model has been trained yet."
    newest = trained[-1]
    before, after = newest["loss_before"], newest["loss_after"]
    if after is None:
        return f"Trained: {newest['step']}."
    if before is None:  # of an average
        return f"Trained: {newest['step']}; its loss on held-out rows is {number(after)}."
    return f"Trained: {newest['step']}; its loss on held-out rows went from {number(before)} to {number(after)}."


def _judge(summary: Summary) -> str:
    judges = sorted({str(row["judge"]) for row in summary["rounds"] if row["judge"]})
    return f"the judge {', '.join(judges)}" if judges else "the judge"


def _gain(row: Mapping[str, object]) -> str:
    gain, low, high = (row.get(f"score_gain_vs_first{end}") for end in ("", "_low", "_high"))
    if gain is None:
        return "; it is the first policy"
    interval = f" [{low:.3f}, {high:.3f}]" if isinstance(low, float) and isinstance(high, float) else ""
    beyond = isinstance(low, float) and low > 0
    return f", a gain of {number(gain)}{interval} over the first policy" + (
        "" if beyond else ", within its interval of 0"
    )


def next_command(summary: Summary, folder: Path) -> str:
    """What to type next: a chat with the best or the newest policy, or the command that resumes the run."""
    if summary["state"] in ("failed", "interrupted", "partial") and "recipe" in summary:
        return f"{command_name()} run {shlex.quote(short_path(Path(summary['recipe']['file'])))}"
    best = summary["best_policy"]
    policies = [entry["folder"] for entry in trained_models(summary) if entry["stage"] in POLICY_STAGES]
    model = best["folder"] if best else policies[-1] if policies else None
    return f"{command_name()} chat {shlex.quote(short_path(folder / model))}" if model else ""


def doing(steps: list[StepFacts]) -> list[tuple[str, str]]:
    """The running steps and what each does."""
    return [(step.name, describe_progress(step.progress)) for step in steps if step.entry["state"] == "running"]
