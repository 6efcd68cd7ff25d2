"""The parts of the GPU benchmark that check: losses against the CPU's, a killed and resumed step, the demo's loop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.speed.gpu_sides import device_name, without_writing
from benchmarks.speed.measure import ROOT, environment

Values = dict[str, Any]
STAGES = {"sft": "dialogs", "reward_model": "pairs", "dpo": "pairs"}
# Largest difference of a loss to that of the CPU in float32, as a share of it.
BOUNDS = {"float32": 1e-3, "bfloat16": 2e-2}
POLL_SECONDS = 0.05


def write_weights(folder: Path, base: str, sizes: Values) -> None:
    """A small model with random weights, in float32, and the tokenizer of `base`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from engine.models.loading import load_tokenizer

    config = AutoConfig.from_pretrained(base)
    config.update(sizes | {"head_dim": sizes["hidden_size"] // sizes["num_attention_heads"]})
    config.initializer_range = 0.1  # logits that differ clearly
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)


def losses(job: Values) -> Values:
    """The losses of each stage's steps on the CPU in float32, and on the device by precision and attention.

    Every run is a process, since accelerate keeps device and precision for the life of one; they run side by side.
    """
    base = Path(job["folder"]) / "small"
    write_weights(base, job["base"], job["sizes"])
    jobs: list[Values] = []
    for stage, rows in STAGES.items():
        for precision, attention, on_cpu in [("float32", None, True), *((*case, False) for case in job["cases"])]:
            name = f"{stage}-{precision}-{attention or 'default'}{'-cpu' * on_cpu}"
            keys = {"use_cpu": on_cpu or device_name() == "cpu", "bf16": precision == "bfloat16", "learning_rate": 1e-4}
            more = {"stage": stage, "precision": precision, "attention": attention, "on_cpu": on_cpu, "keys": keys}
            paths = {"base": str(base), "rows": f"{job['rows']}/{rows}.jsonl", "folder": f"{job['folder']}/{name}"}
            jobs.append(job | more | paths | {"reports_steps": True, "steps": job["steps"] + 1})
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
        outcomes = list(pool.map(_losses_of, jobs))
    results, expected = [], None
    for one, outcome in zip(jobs, outcomes, strict=True):
        if one["on_cpu"]:
            expected = outcome
            continue
        result = {name: one[name] for name in ("stage", "precision", "attention")}
        if isinstance(outcome, str) or isinstance(expected, str):
            result["failed"] = outcome if isinstance(outcome, str) else f"on the CPU: {expected}"
        else:
            assert expected is not None and len(outcome) == len(expected) >= job["steps"]
            difference = max(abs(a - b) / abs(b) for a, b in zip(outcome, expected, strict=True))
            result |= {"difference": difference, "is_equal": difference <= BOUNDS[one["precision"]]}
            result |= {"losses": outcome, "expected": expected}
        results.append(result)
    return {"losses": results}


def _losses_of(job: Values) -> list[float] | str:
    """The losses of one run in a process, or the message that it failed with."""
    command = [sys.executable, "-m", "benchmarks.speed.gpu_sides", "train_stage", json.dumps(job)]
    env = environment() | {"OMP_NUM_THREADS": "2", "ALIGNLOOP_RUNNER_PID": str(os.getpid())}
    done = subprocess.run(command, cwd=ROOT, input="\n", capture_output=True, text=True, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return json.loads(lines[-1])["losses"]


def train_stage(job: Values) -> Values:
    """The losses of the steps of one stage."""
    from benchmarks.speed.training_sides import DPO_KEYS, train_ours

    with without_writing():
        return train_ours(job["stage"], job, **(DPO_KEYS if job["stage"] == "dpo" else {}))


def resume(job: Values) -> Values:
    """Trains a stage once undisturbed and once killed (SIGKILL) and resumed. Returns how far the weights differ."""
    import torch
    from safetensors.torch import load_file

    base = Path(job["folder"]) / "small"
    write_weights(base, job["base"], job["sizes"])
    keys = {
        "model_name_or_path": base,
        "train_data": f"{job['rows']}/dialogs.jsonl",
        "eval_data": f"{job['rows']}/held_out_dialogs.jsonl",
        "global_batch_size": job["batch"],
        "max_steps": job["steps"],
        "save_steps": job["save_steps"],
        "eval_steps": job["steps"],
        "learning_rate": 1e-4,
        "use_cpu": device_name() == "cpu",
        "bf16": True,
        "report_to": "none",
        "logging_steps": 1,
    }
    folders = [Path(job["folder"]) / name for name in ("undisturbed", "killed")]
    first, second = (_start(folder, keys) for folder in folders)
    marker = folders[1] / "checkpoints" / f"checkpoint-{job['save_steps']}"
    while second.poll() is None and not marker.exists():
        time.sleep(POLL_SECONDS)
    was_killed = second.poll() is None
    second.send_signal(signal.SIGKILL)
    second.wait()
    second = _start(folders[1], keys)
    for process in (first, second):
        if process.wait():
            raise RuntimeError(f"the stage ended with exit code {process.returncode}: {_last_line(process)}")
    weights = [load_file(folder / "model" / "model.safetensors") for folder in folders]
    largest = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    equal = weights[0].keys() == weights[1].keys() and all(
        torch.equal(weights[0][n], weights[1][n]) for n in weights[0]
    )
    return {"was_killed": was_killed, "is_equal": equal, "largest_difference": largest, "kill_at": job["save_steps"]}


def _start(folder: Path, keys: Values) -> subprocess.Popen[bytes]:
    words = [word for name, value in {**keys, "output_dir": folder}.items() for word in (f"--{name}", str(value))]
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("ab") as log:
        command = [sys.executable, "stages/sft.py", *words]
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment())


def _last_line(process: subprocess.Popen[bytes]) -> str:
    assert isinstance(process.args, list)
    log = Path(str(process.args[-1])).with_suffix(".log")
    return (log.read_text(errors="replace").strip().splitlines() or [""])[-1]


def demo(job: Values) -> Values:
    """Runs the demo's loop on the device. Returns the seconds of its steps, and the judge's means by step."""
    folder = Path(job["folder"]) / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    device = "gpu" if device_name() == "cuda" else "cpu"
    settings = [f"launch.device={device}", "name=demo", f"output_dir={folder}", *job["settings"]]
    words = [word for setting in settings for word in ("--set", setting)]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "run", "configs/demo.yaml", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment() | {"ALIGNLOOP_RUNNER_PID": str(os.getpid())},
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1])
    summary = json.loads((folder / "demo" / "summary.json").read_text())
    means = {
        step["name"]: mean
        for step in summary["steps"]
        if (mean := (step.get("metrics") or {}).get(job["mean"])) is not None
    }
    return {"means": means, "seconds": time.monotonic() - started, "num_steps": len(summary["steps"])}
