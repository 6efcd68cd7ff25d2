"""Tiny random models, small rows, and ways to run a stage. Nothing here needs a network."""

import contextlib
import functools
import gc
import importlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_schemas.artifact import Artifact

CITIES = ("Paris", "Rome", "Oslo", "Lima", "Cairo", "Delhi", "Quito", "Hanoi", "Accra", "Dakar", "Seoul", "Tunis")
COUNTRIES = (
    "France",
    "Italy",
    "Norway",
    "Peru",
    "Egypt",
    "India",
    "Ecuador",
    "Vietnam",
    "Ghana",
    "Senegal",
    "Korea",
    "Tunisia",
)
# What every stage of the tests is given; a test's own keys come on top.
COMMON = {"use_cpu": True, "report_to": "none", "seed": 7}
TRAINING = {
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "global_batch_size": 8,
    "max_steps": 3,
    "eval_steps": 2,
    "save_strategy": "no",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
}


def pytest_configure(config: pytest.Config) -> None:
    # Before any test file imports transformers: it reads these once.
    os.environ.update(
        HF_HUB_OFFLINE="1", WANDB_MODE="offline", TOKENIZERS_PARALLELISM="false", HF_DATASETS_DISABLE_PROGRESS_BARS="1"
    )
    # Two workers share the cores: spinning threads would make both many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Compiled once a session, for all its workers; in the user's own folder a killed session would leave its lock
    # to all later ones.
    if not hasattr(config, "workerinput"):
        os.environ["TORCH_EXTENSIONS_DIR"] = tempfile.mkdtemp(prefix="torch-extensions-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["TORCH_EXTENSIONS_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of public test data outside the repository."""
    folder = os.environ.get("ALIGNLOOP_TEST_DATA")
    if not folder:
        pytest.skip("ALIGNLOOP_TEST_DATA is not set: no test data outside the repository")
    return Path(folder)


# -- rows -----------------------------------------------------------------------------------------------------------


def conversation(number: int) -> dict[str, Any]:
    """Every third has two turns, every fourth a system prompt; lengths differ a lot, on purpose."""
    place = number % len(CITIES)
    messages = [{"role": "user", "content": f"Question {number}: what is the capital of {COUNTRIES[place]}?"}]
    if number % 4 == 0:
        messages.insert(0, {"role": "system", "content": "Answer briefly."})
    messages.append({"role": "assistant", "content": f"{CITIES[place]}." + " It is a large city." * (number % 5)})
    if number % 3 == 0:
        messages += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": f"Yes, {CITIES[place]}!"}]
    return {"messages": messages}


def pair(number: int) -> dict[str, Any]:
    messages = conversation(number)["messages"]
    wrong = CITIES[(number + 5) % len(CITIES)] + "," * (1 + number % 7) + " no idea." * (number % 3)
    return {
        "prompt": messages[:-1],
        "chosen": messages[-1:],
        "rejected": [{"role": "assistant", "content": wrong}],
    }


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    """A folder: 24 training rows and 9 held-out ones of each kind, 10 prompts, 60 documents."""
    folder = tmp_path_factory.mktemp("rows")
    write_jsonl(folder / "conversations.jsonl", [conversation(number) for number in range(24)])
    write_jsonl(folder / "conversations_eval.jsonl", [conversation(number) for number in range(100, 109)])
    write_jsonl(folder / "pairs.jsonl", [pair(number) for number in range(24)])
    write_jsonl(folder / "pairs_eval.jsonl", [pair(number) for number in range(100, 109)])
    write_jsonl(folder / "prompts.jsonl", [{"prompt": conversation(n)["messages"][:-1]} for n in range(200, 210)])
    write_jsonl(
        folder / "documents.jsonl",
        [{"text": f"{CITIES[n % 12]} is the capital of {COUNTRIES[n % 12]}, fact {n}." * 2} for n in range(60)],
    )
    return folder


# -- models ---------------------------------------------------------------------------------------------------------


def byte_tokenizer(*, special_tokens: list[str], vocab_size: int = 300) -> Any:
    """A byte-level BPE trained on the rows' words; end `<|endoftext|>`, pad `<|pad|>`, no template."""
    from stages.pretrain import train_tokenizer

    texts = [message["content"] for number in range(12) for message in conversation(number)["messages"]]
    return train_tokenizer(texts, vocab_size=vocab_size, special_tokens=special_tokens)


def tiny_llama(tokenizer: Any, folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """A random Llama of 2 layers with its tokenizer, saved."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)  # matrices of 32: on a busy machine threads only wait for each other
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            initializer_range=0.1,  # logits that differ: with the usual 0.02 all answers would be noise
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **sizes | config,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """ChatML; a turn ends in <|im_end|>, which is the end token; the pad token is another."""
    from engine.tokens.template import CHATML

    made = byte_tokenizer(special_tokens=["<|im_start|>", "<|im_end|>"])
    made.eos_token, made.chat_template = "<|im_end|>", CHATML
    return made


@pytest.fixture(scope="session")
def tiny_model(tokenizer, tmp_path_factory) -> Path:
    return tiny_llama(tokenizer, tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="session")
def tied_model(tokenizer, tmp_path_factory) -> Path:
    """Embeddings and head are one tensor, of which a file holds one copy."""
    return tiny_llama(tokenizer, tmp_path_factory.mktemp("models") / "tied", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """As many base models come: no template, pad == end token."""
    made = byte_tokenizer(special_tokens=[])
    made.pad_token = made.eos_token
    return tiny_llama(made, tmp_path_factory.mktemp("models") / "base")


# -- running a stage ------------------------------------------------------------------------------------------------


def stage_keys(stage: str, **keys: Any) -> dict[str, Any]:
    """COMMON, and TRAINING where the stage trains, with a test's own keys on top; paths as text."""
    trains = stage in ("pretrain", "sft", "reward_model", "dpo")
    values = COMMON | (TRAINING if trains else {}) | keys
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


@functools.cache
def module_of(stage: str) -> Any:
    """A stage, imported; what is imported by then, the garbage collections of each run need not go through."""
    module = importlib.import_module(f"stages.{stage}")
    gc.collect()
    gc.freeze()
    return module


def call_stage(stage: str, folder: Path, **keys: Any) -> int:
    """Runs a stage in this process, which saves the imports; returns its exit code."""
    from data_schemas.key_rules import check_values
    from data_schemas.stage_keys import check_keys, check_required
    from engine.runtime import stage as stage_module

    module = module_of(stage)
    values = check_keys(stage, stage_keys(stage, **keys) | {"output_dir": str(folder)}, where=stage)
    check_required(stage, values, where=stage)
    check_values(stage, values, where=stage)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")  # where it is not set, accelerate takes all cores
            return stage_module._run(stage, module.ARGUMENTS, module.main, values, getattr(module, "DEFAULTS", {}))
    finally:
        mine, root.handlers = set(root.handlers) - set(handlers), handlers
        root.setLevel(level)
        for handler in mine:
            with contextlib.suppress(OSError):  # what a full disk did not take
                handler.close()


def run_here(stage: str, folder: Path, **keys: Any) -> Artifact:
    """Runs a stage in this process to its record."""
    code = call_stage(stage, folder, **keys)
    record = Artifact.read(folder)
    assert code == 0 and record is not None, (folder / "log.txt").read_text()[-3000:]
    return record


Launched = subprocess.CompletedProcess[str]


def launch(
    stage: str,
    folder: Path,
    *,
    profile: str = "single",
    processes: int = 1,
    env: dict[str, str] | None = None,
    **keys: Any,
) -> Launched:
    """Runs a stage as a program: plain Python, or through accelerate with a profile and CPU processes."""
    from pipeline.launch import command_line
    from pipeline.plan import Step
    from pipeline.recipe.sections import Launch

    folder.mkdir(parents=True, exist_ok=True)
    values = stage_keys(stage, **keys) | {"output_dir": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    how = Launch(profile=profile, num_processes=processes, device="cpu")  # pyright: ignore[reportArgumentType]
    step = Step(name=stage, stage=stage, round=None, section="", keys={}, inputs={}, launch=how)  # pyright: ignore[reportArgumentType]
    command = command_line.launch_command(step, folder)
    environment = command_line.environment(step, folder, folder) | (env or {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="session")
def run_stage() -> Callable[..., Artifact]:
    """run_stage("sft", folder, profile="zero2", processes=2, key=value): the record of a stage run as a program."""

    def run(stage: str, folder: Path, **keys: Any) -> Artifact:
        done = launch(stage, folder, **keys)
        record = Artifact.read(folder)
        assert done.returncode == 0 and record is not None, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return record

    return run


def metrics_of(folder: Path) -> dict[tuple[int, str], float]:
    """metrics.jsonl as (step, key) -> value; a (step, key) that stands twice is an error."""
    values: dict[tuple[int, str], float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        step = row.pop("step")
        for key, value in row.items():
            assert (step, key) not in values, f"{key} of step {step} stands twice"
            values[step, key] = value
    return values


def weights_of(folder: Path) -> dict[str, Any]:
    """Every tensor of a saved model."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
