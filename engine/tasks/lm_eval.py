"""Tasks of lm-evaluation-harness, in a separate process: by the installed package, or by that of another environment.

Written for version 0.4.13, whose command `lm_eval run` writes a file of samples for each task. A sample has a number
for each metric; the first one is the task's own score. Data come from a hub, unless the task's file names local ones.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_schemas.errors import ConfigError, StageError
from data_schemas.stage_keys import Values
from engine.models.loading import identity_of
from engine.runtime import progress
from engine.runtime.journal import in_batches
from engine.runtime.stage import Stage
from engine.sampling.vllm_process import environment
from engine.tasks.grades import Grade, Points

LOG_FILE = "lm_eval.log"
Row = tuple[str, str, dict[str, float]]  # task, question, metric -> points


@dataclass(frozen=True)
class LMEval:
    """How lm-evaluation-harness is started, and what it evaluates."""

    tasks: Sequence[str]
    python: str | None = None  # the interpreter of another environment; None: the one that runs this stage
    folders: Sequence[str] = field(default_factory=list)  # of task files
    options: Values = field(default_factory=dict)  # LM_EVAL_OPTIONS of data_schemas.key_rules

    def command(self, policy: str, output: Path, *, dtype: str, batch_size: int, use_cpu: bool) -> list[str]:
        """The command line that evaluates the policy in a folder and writes into `output`."""
        words = [self.python or sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--log_samples"]
        words += ["--model_args", f"pretrained={policy},dtype={dtype}", "--tasks", ",".join(self.tasks)]
        words += ["--output_path", str(output), "--batch_size", str(batch_size)]
        words += ["--device", "cpu"] if use_cpu else []
        for folder in self.folders:
            words += ["--include_path", folder]
        for name, value in ({"apply_chat_template": True} | dict(self.options)).items():
            if value is not None and value is not False:
                words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return words


def evaluate(stage: Stage, policy: str, settings: LMEval, *, dtype: str, batch_size: int, use_cpu: bool) -> list[Grade]:
    """The grade of each question, in the order of the tasks. All tasks are one unit of work in the journal.

    Raises ConfigError where the interpreter has no lm_eval, or a task has no numbers; StageError where it fails.
    """
    if not settings.tasks:
        return []

    def work(batch: Sequence[str]) -> list[list[Row]]:
        with tempfile.TemporaryDirectory() as folder:
            command = settings.command(policy, Path(folder), dtype=dtype, batch_size=batch_size, use_cpu=use_cpu)
            _run(command, stage.folder / LOG_FILE)
            return [_rows(Path(folder), settings.tasks)]

    content = ("lm_eval", identity_of(policy), list(settings.tasks), dict(settings.options), dtype)
    (rows,) = in_batches(
        stage, "lm_eval", ["all"], work, size=1, content=content, doing="evaluating by lm_eval", unit="runs"
    )
    return [
        Grade(task, question, {measure: Points(value) for measure, value in points.items()})
        for task, question, points in rows
    ]


def _run(command: Sequence[str], log_file: Path) -> None:
    env = environment(command[0]) | {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0")}
    with log_file.open("ab") as output, progress.activity("evaluating by lm_eval"):
        try:
            done = subprocess.run(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=env, check=False)
        except OSError as error:
            raise ConfigError(
                f"lm_eval_python={command[0]!r} cannot be started ({error.strerror}); give the interpreter of the "
                "environment in which lm-eval is installed"
            ) from None
    if done.returncode == 0:
        return
    lines = [line.strip() for line in log_file.read_text(errors="replace").splitlines() if line.strip()]
    if any("No module named" in line and "lm_eval" in line for line in lines[-3:]):
        raise ConfigError(
            f"{command[0]} has no lm_eval; install it, as by pip install 'alignloop[eval]', or set lm_eval_python"
        )
    raise StageError(f"lm_eval ended with exit code {done.returncode}: {' | '.join(lines[-2:])}; its log: {log_file}")


def _rows(folder: Path, tasks: Sequence[str]) -> list[Row]:
    """The rows of all files of samples, task by task."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for file in sorted(folder.rglob("samples_*.jsonl")):
        task = file.stem.removeprefix("samples_").rpartition("_")[0]
        for line in file.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            numbers = _numbers(sample)
            found.setdefault(task, {}).setdefault(str(sample["doc_id"]), {}).update(numbers)
    rows = [
        (f"lm_eval_{task}", question, {f"lm_eval_{task}_{metric}": value for metric, value in numbers.items()})
        for task, questions in found.items()
        for question, numbers in questions.items()
        if numbers
    ]
    if not rows:
        raise ConfigError(
            f"lm_eval_tasks: {', '.join(tasks)}: lm_eval gives no number for each question, so there is no interval; "
            "leave such tasks out"
        )
    return rows


def _numbers(sample: dict[str, Any]) -> dict[str, float]:
    """The metrics of a sample that are one number; of several filters, all but lm_eval's default are named."""
    end = "" if sample.get("filter", "none") == "none" else f"_{sample['filter']}".replace("-", "_")
    values = {f"{metric}{end}": sample.get(metric) for metric in sample.get("metrics", [])}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
