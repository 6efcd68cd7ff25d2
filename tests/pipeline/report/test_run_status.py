"""What `status` says of a run that has ended."""

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.report import run_status


def step(name: str, state: str) -> dict[str, Any]:
    return {
        "name": name,
        "stage": "sft",
        "round": None,
        "folder": f"{name}-0123",
        "fingerprint": None,
        "state": state,
        "seconds": 1.0,
        "metrics": {},
    }


def test_a_failed_step_is_shown_with_its_reason_and_the_file_of_its_output(tmp_path: Path):
    steps = [step("sft", "failed"), step("dpo", "failed"), step("rl", "interrupted")]
    for name, cause in (("sft", "a loss of [b]nan[/b]"), ("rl", "a signal")):
        (tmp_path / f"{name}-0123").mkdir()
        outcome = {"kind": "config", "cause": cause, "hint": "lower learning_rate"}
        (tmp_path / f"{name}-0123" / "outcome.json").write_text(json.dumps(outcome))
    summary: Any = {"name": "a", "state": "failed", "steps": steps, "rounds": [], "best_policy": None}
    said = [
        f"sft failed: a loss of [b]nan[/b]; hint: lower learning_rate; its output: {tmp_path}/sft-0123/console.txt",
        f"dpo failed; its output: {tmp_path}/dpo-0123/console.txt",
    ]
    assert run_status.failures(summary, tmp_path) == said
    printed = io.StringIO()
    run_status.show(Console(file=printed, width=200), tmp_path, summary)
    assert all(line in printed.getvalue() for line in said)
