"""The parts of the GPU benchmark that train, each run in a separate process that is started ahead of its turn.

    echo | python -m benchmarks.speed.gpu_sides train JOB       # JOB: JSON

The process imports its libraries, waits for a line of input, runs, and prints its result as one line of JSON. The sides
are those of `sides.py`. Three things differ from a user's run: weights are random and initialised on the device (all
sides get the same), no model is written to disk, and TRL does not hash its weights. None of them is in a measured time.
"""

import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

Values = dict[str, Any]
Job = Values


def device_name() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def random_weights() -> Iterator[None]:
    """Inside, models are not read from their folders but initialised on the device, from one seed."""
    import torch
    from transformers import AutoConfig

    from engine.models import loading

    def initialised(cls: Any, path: str | Path, **options: Any) -> tuple[Any, dict[str, list[str]]]:
        config = AutoConfig.from_pretrained(path)
        if "num_labels" in options:
            config.num_labels = options["num_labels"]
        kept = {name: options[name] for name in ("dtype", "attn_implementation") if name in options}
        torch.manual_seed(1)
        with torch.device(device_name()):
            model = cls.from_config(config, **kept)
        return model.eval(), {"missing_keys": []}

    with mock.patch.object(loading, "load_with_info", initialised):
        yield


@contextlib.contextmanager
def without_writing() -> Iterator[None]:
    """Inside, the best model is not saved, and TRL does not hash all weights for the name of its cache."""
    from trl.trainer import dpo_trainer

    from engine.training.loop import TrainingLoop

    with (
        mock.patch.object(TrainingLoop, "_save_best", lambda self, step: None),
        mock.patch.object(dpo_trainer, "hash_module", lambda module: ""),
    ):
        yield


def train(job: Job) -> Values:
    """Trains one side. Returns the seconds of its steps, rates, utilisation and peak memory.

    A step sees all rows of the file once. The first `untimed` steps are left out: kernels are compiled in them.
    """
    import torch
    from transformers import TrainerCallback

    from benchmarks.speed import flops, gpu_work, sides

    device, untimed = device_name(), job["untimed"]
    work_of_steps: list[int] = []

    class TakeWork(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            work_of_steps.append(work.take(is_recomputed=bool(kwargs["model"].is_activation_checkpointing)))

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with gpu_work.counting() as work, random_weights(), without_writing(), _with_callback(TakeWork()):
        values = sides.SIDES[job["side"]](job | {"reports_steps": True, "steps": untimed + job["timed"]})
    facts = json.loads(Path(job["facts"]).read_text())[job["set"]]
    counts = flops.Counts(**facts["counts"][job["kind"]])
    sizes = flops.sizes_of(job["base"])
    seconds = statistics.median(values["step_seconds"][untimed:])
    rate = {
        # 6 N tokens, with all weights in matrix products, the head's too
        "6N": 6 * (sizes.weights + sizes.head * (job["kind"] != "reward")) * counts.tokens,
        # what the loss needs: the head for its own tokens only, and the visible half of attention
        "causal": flops.of_step(sizes, counts),
        # what is executed
        "hardware": statistics.median(work_of_steps[untimed:]),
    }
    reference = values["reference_seconds"] if job["kind"] == "dpo" else None
    return {
        "rows_per_s": job["batch"] / seconds,
        "tokens_per_s": counts.tokens / seconds,
        "seconds": seconds,
        "step_seconds": [round(each, 4) for each in values["step_seconds"]],
        "rows_per_s_with_reference": None if reference is None else job["batch"] / (seconds + reference),
        "flops_per_s": {name: operations / seconds for name, operations in rate.items()},
        "gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
        "is_packed": values["pass_rows"] == 1 and job["micro_batch"] > 1,
        "losses": values["losses"],
        "dtype": values["dtype"],
        "activation_checkpointing": values["activation_checkpointing"],
    }


@contextlib.contextmanager
def _with_callback(callback: Any) -> Iterator[None]:
    """Inside, every trainer gets the callback, before those of `watching`, the last of which ends the training."""
    from transformers import Trainer

    construct = Trainer.__init__

    def constructed(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        self.add_callback(callback)

    with mock.patch.object(Trainer, "__init__", constructed):
        yield


def prepare(job: Job) -> Values:
    """Writes models and rows. Returns their facts, and what the page says about the device."""
    from benchmarks.speed import flops, gpu_rows

    device = device_name()
    side = job["square"]
    peak = max(flops.best_rate((side, side, side), job["dtype"], repeats=5, device=device) for _ in range(2))
    return gpu_rows.prepare(job) | {"peak_measured": peak, "about": about_device()}


def about_device() -> dict[str, str | float | None]:
    """Name, driver and CUDA version of the device, and its published peak in bfloat16 without sparsity, FLOP/s."""
    import subprocess

    import torch

    if not torch.cuda.is_available():
        return {"device": "CPU", "driver": None, "cuda": None, "peak": None, "memory_gib": None}
    name = torch.cuda.get_device_name()
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        driver = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
        return _about_gpu(name, driver)
    return _about_gpu(name, None)


def _about_gpu(name: str, driver: str | None) -> dict[str, str | float | None]:
    import torch

    published = {"H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12}
    peak = next((rate for known, rate in published.items() if known in name.replace("-", " ").split()), None)
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return {"device": name, "driver": driver, "cuda": torch.version.cuda, "peak": peak, "memory_gib": memory}


def parts() -> dict[str, Callable[[Job], Values]]:
    from benchmarks.speed import gpu_attention, gpu_checks

    return {
        "prepare": prepare,
        "train": train,
        "attention": gpu_attention.measure,
        "losses": gpu_checks.losses,
        "train_stage": gpu_checks.train_stage,
        "resume": gpu_checks.resume,
        "demo": gpu_checks.demo,
    }


def main() -> None:
    name, job = sys.argv[1], json.loads(sys.argv[2])
    import torch  # noqa: F401
    import trl.trainer.dpo_trainer
    import trl.trainer.reward_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    from engine.runtime.process import end_with_the_runner

    end_with_the_runner()
    known = parts()
    if not sys.stdin.readline():  # the benchmark ended before this part's turn
        return
    print(json.dumps(known[name](job)), flush=True)


if __name__ == "__main__":
    main()
