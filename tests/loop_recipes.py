"""A tiny world beside a tiny recipe, and the real command that runs it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from pipeline.launch.command_line import STEP_FOLDER
from tests.patience import PATIENCE

COMMAND = Path(sys.executable).parent / "alignloop"
NUM_QUESTIONS = 48
# The second question of every third dialog is the first of another; documents quote questions in capitals.
MODULE = '''
import hashlib
import json
import os
from pathlib import Path

TOWNS = ("Abo", "Bern", "Cork", "Derry", "Elva", "Faro")


def make(folder, *, seed, num_questions):
    questions = [f"Which town is number {n} of the {TOWNS[n % 6]} list?" for n in range(num_questions)]
    dialogs, pairs = [], []
    for n, question in enumerate(questions):
        dialog = [{"role": "user", "content": question}, {"role": "assistant", "content": f"It is {TOWNS[n % 5]}."}]
        if n % 4 == 0:
            pairs.append({"prompt": dialog[:1], "chosen": dialog[1:],
                          "rejected": [{"role": "assistant", "content": f"No idea, {n}."}]})
        if n % 3 == 0:
            other = (n + 7) % num_questions
            dialog = dialog + [{"role": "user", "content": questions[other].upper()},
                               {"role": "assistant", "content": f"Then {TOWNS[other % 5]}."}]
        dialogs.append({"messages": dialog})
    texts = [f"In the {TOWNS[n % 6]} list town {n} comes before town {n + 1}." for n in range(120)]
    texts += [f"SOMEBODY ASKED: {question.upper()} Nobody knew." for question in questions]
    write(folder / "documents.jsonl", [{"text": text} for text in texts])
    write(folder / "instructions.jsonl", dialogs)
    write(folder / "preferences.jsonl", pairs)
    write(folder / "prompts.jsonl", [{"prompt": [{"role": "user", "content": q}]} for q in questions])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\\n" for row in rows))


def score(prompt, answer, ended):
    """A number that differs from answer to answer."""
    return int(hashlib.sha256(answer.encode()).hexdigest()[:6], 16) / 2**24


def falling(prompt, answer, ended):
    """The first policy is the best, whatever it answers."""
    round_number = int(Path(os.environ["ALIGNLOOP_STEP_FOLDER"]).name[len("round-")])
    return (0.5, -0.5, 0.0)[round_number]
'''
RECIPE: dict[str, Any] = {
    "name": "loop",
    "seed": 3,
    "rounds": 2,
    "launch": {"device": "cpu"},
    "data": {
        "make_data": "world:make",
        "make_data_arguments": {"num_questions": NUM_QUESTIONS},
        "evaluation_share": 0.2,
        "validation_share": 0.25,
        "num_evaluation_prompts": 6,
    },
    "defaults": {
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "eval_steps": 1,
        "max_steps": 2,
        "max_length": 200,
        "strengths": None,  # a dozen pairs are few enough
        "global_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_new_tokens": 8,
        "generation_batch_size": 64,
        "keep_unfinished": True,
    },
    "pretrain": {
        "architecture": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.1,
        },
        "vocab_size": 300,
        "special_tokens": ["<|im_start|>", "<|im_end|>"],
        "block_size": 32,
        "max_steps": 3,
    },
    "prepare_base": {"chat_template": "chatml"},
    "annotate": {"annotator_function": "world:score", "num_prompts": 12, "num_validation_prompts": 6},
    "rejection_sampling": {"num_answers": 3, "num_prompts": 8, "num_validation_prompts": 4},
    "evaluate_policy": {"judge_function": "world:score", "num_answers": 2},
}
STEPS_OF_A_ROUND = ("annotate", "reward_model", "rejection_sampling", "sft", "dpo", "evaluate_policy")
STEPS = [
    "prepare_data",
    "pretrain",
    "prepare_base",
    "round-0.sft",
    "round-0.evaluate_policy",
    *(f"round-{number}.{stage}" for number in (1, 2) for stage in STEPS_OF_A_ROUND),
]
DATA_AND_BASE = STEPS[:3]


class Place:
    """The folders of a run: a recipe with its module in one, and the working directory beside it.

    The working directory holds packages of our names that raise when they are imported.
    """

    lora: subprocess.Popen[str]  # the run of the LoRA loop, where there is one

    def __init__(self, root: Path) -> None:
        self.recipes, self.work = root / "recipes", root / "work"
        self.recipes.mkdir()
        (self.recipes / "world.py").write_text(MODULE)
        (self.recipes / "loop.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
        for package in ("pipeline", "engine", "stages", "data_schemas", "toy_world"):
            (self.work / package).mkdir(parents=True)
            for module in ("__init__", "cli", "sft", "stage", "models", "rows"):
                (self.work / package / f"{module}.py").write_text("raise RuntimeError('the wrong one')\n")

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(COMMAND), *words],
            cwd=self.work,
            env=clean_environment(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def call(self, *words: str, typed: str = "") -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate(typed, timeout=PATIENCE)
        return process.returncode, out, err

    def run(self, *settings: str, name: str = "loop") -> tuple[int, str, str]:
        """`alignloop run` with a relative path and `--set` for each setting."""
        return self.call("run", *self.words(*settings, name=name))

    def words(self, *settings: str, name: str = "loop") -> list[str]:
        return ["../recipes/loop.yaml", *(word for item in (f"name={name}", *settings) for word in ("--set", item))]

    def folder(self, step: str, *, name: str = "loop") -> Path:
        (folder,) = (self.work / "runs" / name).glob(f"{step}-????????")
        return folder

    def config(self, step: str, *, name: str = "loop") -> dict[str, Any]:
        return yaml.safe_load((self.folder(step, name=name) / "config.yaml").read_text())

    def summary(self, *, name: str = "loop") -> dict[str, Any]:
        return json.loads((self.work / "runs" / name / "summary.json").read_text())

    def states(self, *, name: str = "loop") -> dict[str, str]:
        return {step["name"]: step["state"] for step in self.summary(name=name)["steps"]}

    def begin_with(self, *steps: str, name: str) -> None:
        """Creates a run with these steps of the plain loop: a step's identity does not depend on its folder."""
        for step in steps:
            source = self.folder(step)
            shutil.copytree(source, self.work / "runs" / name / source.name)


def clean_environment() -> dict[str, str]:
    """The environment of a user's shell: no variables of pytest or of a runner, and no thread counts."""
    dropped = ("ALIGNLOOP_", "OMP_", "ACCELERATE_", "PYTEST_")
    kept = ("ALIGNLOOP_PREFLIGHT",)
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(dropped)}


def launches(folder: Path) -> int:
    """Number of times that a step's stage was started."""
    return sum(line.startswith("$ ") for line in (folder / "console.txt").read_text(errors="replace").splitlines())


def processes_of(run_folder: Path) -> list[str]:
    """The live processes that write below a run's folder, as their command lines."""
    mark, path = f"{STEP_FOLDER}={run_folder}".encode(), str(run_folder).encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            prints_to = str((process / "fd" / "1").readlink())  # for a warm step, which the other two do not show
        except OSError:  # gone
            continue
        if path in words or mark in environment or prints_to.startswith(f"{run_folder}/"):
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def wait_until(condition: Any, *, seconds: float, what: str, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        assert process is None or process.poll() is None, f"ended before: {what}\n{process.communicate()}"
        time.sleep(0.01)


def python_by_hand(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


LORA = ("defaults.use_peft=true", "pretrain.use_peft=false", "evaluate_policy.judge_function=world:falling")
