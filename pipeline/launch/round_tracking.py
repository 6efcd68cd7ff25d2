"""After each round its numbers, the table of rounds, sample answers and the page go to wandb, if report_to names it.

commands/track_round.py does it, in a process, since wandb is slow to import. Its failure is a warning.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_schemas.files import read_json
from data_schemas.packages import is_installed
from data_schemas.stage_keys import stages
from data_schemas.text import printable
from data_schemas.tracked_round import PAGE, TrackedRound, TrackedSample
from pipeline.launch.command_line import ROOT, environment
from pipeline.state.run import Run
from pipeline.state.samples import read_samples
from pipeline.state.summary import SUMMARY
from pipeline.steps import Step

NUM_SAMPLES = 10  # prompts
SECONDS = 180  # for wandb to take everything


def track_round(run: Run, evaluation: Step) -> None:
    """Sends a round to wandb where its evaluation has run now. A warning on stderr says why wandb did not take it."""
    if not (_reports_to_wandb(evaluation) and run.states[evaluation.name].state in ("ran", "resumed")):
        return
    with tempfile.TemporaryDirectory(prefix="alignloop-round-") as scratch:
        path = Path(scratch) / "request.json"
        path.write_text(json.dumps(make_request(run, evaluation)), encoding="utf-8")
        env = environment(evaluation, Path(scratch), run.recipe.path.absolute().parent)
        problem = _call([sys.executable, str(ROOT / "commands" / "track_round.py"), str(path)], env)
    if problem:
        where = "the run" if evaluation.round is None else f"round {evaluation.round}"
        line = f"warning: wandb did not take the numbers of {where}, which are in {SUMMARY}: {problem}"
        print(printable(line), file=sys.stderr)


def _reports_to_wandb(evaluation: Step) -> bool:
    services = evaluation.keys.get("report_to", stages()[evaluation.stage].keys["report_to"].default) or []
    return "wandb" in ([services] if isinstance(services, str) else services) and is_installed("wandb")


def make_request(run: Run, evaluation: Step) -> TrackedRound:
    """What wandb is to show of the run so far. Without sample answers where the recipe has `report.samples: false`."""
    content: dict[str, Any] = read_json(run.recipe.folder / SUMMARY) or {}
    policy = str(evaluation.keys.get("policy_step") or "")
    samples: list[TrackedSample] = []
    if (content.get("recipe") or {}).get("shows_samples", True):
        samples = [{**sample} for sample in read_samples(run.states[evaluation.name], policy=policy, num=NUM_SAMPLES)]
    page = run.recipe.folder / PAGE
    return {
        "folder": str(run.recipe.folder),
        "name": run.recipe.name,
        "round": evaluation.round,
        "rounds": [
            {name: value for name, value in row.items() if not isinstance(value, dict)}  # as reasons
            for row in content.get("rounds", [])
        ],
        "samples": samples,
        "page": str(page) if page.is_file() else None,
    }


def _call(command: Sequence[str], env: dict[str, str]) -> str:
    """Runs the command. Returns the last line of its errors where it failed, else the empty string."""
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"it took more than {SECONDS} s"
    except OSError as error:
        return str(error)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return (lines or [f"exit code {done.returncode}"])[-1] if done.returncode else ""
