"""Tries every stage of a recipe on a small model before any time is spent: the preflight.

For each distinct section it builds what the stage would build (TRL's config, LoRA, optimizer, scheduler, collator,
reward head, sampler) on a model of two narrow layers with the architecture and tokenizer of the recipe's model, and
takes one training step, one evaluation or one answer on two rows. What a library refuses there is printed as one line
with section and key; then the exit code is 2. It cannot find what depends on the size of the model or on the device.

    python commands/preflight.py request.json      # written by pipeline/launch/preflight.py
"""

import functools
import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from commands.check import load_tokenizer
from commands.trials import run_trial
from data_schemas.check_request import NOT_TRIED, TRIED, PreflightRequest, RewardBase, Trial
from data_schemas.errors import UserError
from data_schemas.text import printable
from engine.models.loading import read_config
from engine.models.miniature import CannotBeSmall, small_model
from engine.runtime.world import available_cores

SECONDS_A_TRIAL = 60  # a trial that takes longer is ended, and reported as not tried
MAX_BLAMED = 12  # keys that are left out in turn to find the one to blame
SMALL_MODEL, SMALL_REWARD_BASE = "small_model", "small_reward_base"  # folders
PASSED, REFUSED, UNKNOWN, TOO_LONG = 0, 3, 4, 5  # exit codes of a trial's process


def in_own_process(work: Callable[[], None], log_file: Path) -> tuple[int, str]:
    """Runs `work` in a fork; returns its exit code and the reason for it.

    A fork has the imports, and leaves nothing behind: accelerate and TRL keep state in their modules.
    """
    _, code = first_to_end({start(work, log_file): time.monotonic() + SECONDS_A_TRIAL})
    return code, reason(code, log_file)


def start(work: Callable[[], None], log_file: Path) -> int:
    """Starts `work` in a fork, with its output in `log_file`; returns the process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = UNKNOWN
    try:
        with log_file.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        torch.set_num_threads(1)
        code = _outcome(work)
    finally:
        os._exit(code)


def _outcome(work: Callable[[], None]) -> int:
    """PASSED, or REFUSED with the reason as the last line of the output."""
    try:
        work()
    except CannotBeSmall as error:
        print(f"\n{error}", flush=True)
        return UNKNOWN
    except BaseException as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        message = " ".join(str(error).split()) or type(error).__name__
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        print(f"\n{kind}{message}", flush=True)
        return REFUSED
    return PASSED


def first_to_end(deadlines: Mapping[int, float]) -> tuple[int, int]:
    """Process id and exit code of the first of these forks that ends. One past its deadline is ended: TOO_LONG."""
    while True:
        for pid, deadline in deadlines.items():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return pid, code if code in (PASSED, REFUSED) else UNKNOWN
            if time.monotonic() > deadline:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                return pid, TOO_LONG
        time.sleep(0.01)


def reason(code: int, log_file: Path) -> str:
    """Why a fork ended with this code: the last line that it wrote, or that it took too long."""
    if code == TOO_LONG:
        return f"it took more than {SECONDS_A_TRIAL} seconds; is the machine busy?"
    lines = log_file.read_text(errors="replace").strip().splitlines() if log_file.exists() else []
    return lines[-1].strip() if lines else "it ended without a message"


def write_small_model(base: PreflightRequest | RewardBase, folder: Path) -> None:
    """A small model with the base's tokenizer, in the form in which prepare_base writes a model."""
    with Path(os.devnull).open("w") as nowhere:
        tokenizer = load_tokenizer(base["tokenizer"], Console(file=nowhere))
    source = base["model"]
    if "path" in source:
        config = read_config(source["path"], revision=source.get("revision", "main"))
    else:
        keys = dict(source.get("architecture", {}))
        config = AutoConfig.for_model(str(keys.pop("model_type", "llama")), **keys)
    config.vocab_size = max(len(tokenizer), config.vocab_size if "path" in source else 0)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    model = small_model(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def try_all(request: PreflightRequest, scratch: Path) -> list[str]:
    """Runs the trials, as many at a time as there are cores. Returns a line for each refused one, in their order."""
    waiting, refused = list(enumerate(request["trials"])), dict[int, str]()
    running, deadlines = dict[int, tuple[int, Trial]](), dict[int, float]()
    while waiting or running:
        while waiting and len(running) < len(available_cores()):
            number, trial = waiting.pop(0)
            pid = start(_work(request, trial, scratch), scratch / f"trial-{number}.txt")
            running[pid], deadlines[pid] = (number, trial), time.monotonic() + SECONDS_A_TRIAL
        pid, code = first_to_end(deadlines)
        del deadlines[pid]
        number, trial = running.pop(pid)
        message = reason(code, scratch / f"trial-{number}.txt")
        if code in (PASSED, REFUSED):
            print(f"{TRIED}{trial['section']}", flush=True)
        else:
            print(f"{NOT_TRIED}{trial['section']}: {message}", flush=True)
        if code == REFUSED:
            refused[number] = refusal(request, trial, scratch, message)
    return [refused[number] for number in sorted(refused)]


def refusal(request: PreflightRequest, trial: Trial, scratch: Path, message: str) -> str:
    """The line for a refused trial. The key to blame is one without which the trial passes."""
    for key in sorted(trial["given"], key=lambda name: _suspicion(name, trial["keys"][name], message))[:MAX_BLAMED]:
        without: Trial = {**trial, "keys": {name: value for name, value in trial["keys"].items() if name != key}}
        code, _ = in_own_process(_work(request, without, scratch), scratch / "without.txt")
        if code == PASSED:
            return f"{trial['section']}.{key}={trial['keys'][key]!r}: {message}"
    return f"{trial['section']} ({trial['step']}): {message}"


def _suspicion(key: str, value: object, message: str) -> tuple[bool, bool]:
    """Keys with a low value are tried first: those that the message names, then those whose values are no numbers."""
    return key not in message and str(value) not in message, isinstance(value, int | float)


def _work(request: PreflightRequest, trial: Trial, scratch: Path) -> Callable[[], None]:
    model = scratch / (SMALL_REWARD_BASE if trial.get("from_reward_base") else SMALL_MODEL)

    def work() -> None:
        run_trial(trial, str(model), Path(tempfile.mkdtemp(dir=scratch)), use_cpu=request["use_cpu"])

    return work


def main() -> int:
    path = Path(sys.argv[1])
    request: PreflightRequest = json.loads(path.read_text())
    scratch = path.parent
    transformers_logging.set_verbosity_error()
    logging.disable(logging.INFO)
    bases: dict[str, tuple[str, PreflightRequest | RewardBase]] = {SMALL_MODEL: ("base model", request)}
    if reward_base := request.get("reward_base"):
        bases[SMALL_REWARD_BASE] = ("reward_model_from", reward_base)
    for name, (words, base) in bases.items():
        code, message = in_own_process(functools.partial(write_small_model, base, scratch / name), scratch / "log.txt")
        if code == REFUSED:
            print(f"error: {words}: {printable(message)}", file=sys.stderr)
            return 2
        if code != PASSED:
            print(f"{NOT_TRIED}{words}: {message}")
            return 0
    lines = try_all(request, scratch)
    for line in lines:
        print(f"error: {printable(line)}", file=sys.stderr)
    return 2 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
