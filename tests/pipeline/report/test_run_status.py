"""What `status` says of a run that has ended."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.report import run_status


def step(name: str, state: str, problem: str) -> dict[str, Any]:
    return {
        "name": name,
        "stage": "sft",
        "round": None,
        "folder": f"{name}-0123",
        "fingerprint": None,
        "state": state,
        "seconds": 1.0,
        "metrics": {},
        "problem": problem,
    }


def test_a_failed_step_is_shown_with_its_reason(tmp_path: Path):
    said = "dpo failed: a loss of [b]nan[/b]; log: console.txt; hint: lower learning_rate"
    steps = [step("sft", "ran", ""), step("dpo", "failed", said)]
    summary: Any = {"name": "a", "state": "failed", "steps": steps, "rounds": [], "best_policy": None}
    printed = io.StringIO()
    run_status.show(Console(file=printed, width=60), tmp_path, summary)
    assert said in printed.getvalue().splitlines()
    del steps[1]["problem"]  # a summary of an older version
    run_status.show(Console(file=printed, width=60), tmp_path, summary)
