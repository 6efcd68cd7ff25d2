"""Fixtures of all tests: tiny random models, small rows, a stage run as a program. Nothing here needs a network."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from data_schemas.artifact import Artifact
from tests import compiled_operators
from tests.stage_runs import launch, run_here
from tests.toy_models import byte_tokenizer, tiny_llama
from tests.toy_rows import CITIES, COUNTRIES, conversation, pair, write_jsonl

# transformers reads these once, when it is imported, which a conftest.py further down does before `pytest_configure`.
os.environ.update(
    HF_HUB_OFFLINE="1", WANDB_MODE="offline", TOKENIZERS_PARALLELISM="false", HF_DATASETS_DISABLE_PROGRESS_BARS="1"
)
os.environ["ALIGNLOOP_PREFLIGHT"] = "0"  # 15 seconds a run; tests/commands/test_preflight.py has it
# Two workers share the cores: spinning threads would make both many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A busy machine generates slowly, and no test may depend on a quiet one.
hypothesis.settings.register_profile(
    "any_machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any_machine")


def pytest_configure(config: pytest.Config) -> None:
    # One folder for all workers of the session.
    if not hasattr(config, "workerinput"):
        os.environ["TORCH_EXTENSIONS_DIR"] = tempfile.mkdtemp(prefix="torch-extensions-")
        compiled_operators.restore(compiled_operators.cache_folder(), Path(os.environ["TORCH_EXTENSIONS_DIR"]))


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        session = Path(os.environ["TORCH_EXTENSIONS_DIR"])
        with contextlib.suppress(OSError):  # a cache that can't be written: the next session compiles again
            compiled_operators.store(session, compiled_operators.cache_folder())
        shutil.rmtree(session, ignore_errors=True)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of public test data outside the repository."""
    folder = os.environ.get("ALIGNLOOP_TEST_DATA")
    if not folder:
        pytest.skip("ALIGNLOOP_TEST_DATA is not set: no test data outside the repository")
    return Path(folder)


# -- rows -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    """A folder with 24 training rows and 9 held-out rows of each kind, 10 prompts and 60 documents."""
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


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """ChatML. A turn ends in <|im_end|>, which is the end token; the pad token is a different one."""
    from engine.tokens.template import CHATML

    made = byte_tokenizer(special_tokens=["<|im_start|>", "<|im_end|>"])
    made.eos_token, made.chat_template = "<|im_end|>", CHATML
    return made


@pytest.fixture(scope="session")
def tiny_model(tokenizer, tmp_path_factory) -> Path:
    return tiny_llama(tokenizer, tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="session")
def tied_model(tokenizer, tmp_path_factory) -> Path:
    """Embeddings and head are one tensor, of which the file has one copy."""
    return tiny_llama(tokenizer, tmp_path_factory.mktemp("models") / "tied", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """Like many published base models: no template, and the pad token is the end token."""
    made = byte_tokenizer(special_tokens=[])
    made.pad_token = made.eos_token
    return tiny_llama(made, tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def tiny_reward_model(tiny_model, rows, tmp_path_factory) -> Path:
    """Trained for one step."""
    folder = tmp_path_factory.mktemp("rm") / "rm"
    run_here(
        "reward_model",
        folder,
        model_name_or_path=tiny_model,
        train_data=[rows / "pairs.jsonl"],
        eval_data=[rows / "pairs_eval.jsonl"],
        max_steps=1,
    )
    return folder / "model"


# -- running a stage ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def run_stage() -> Callable[..., Artifact]:
    """run_stage("sft", folder, profile="zero2", processes=2, key=value): runs a program, returns its record."""

    def run(stage: str, folder: Path, **keys: Any) -> Artifact:
        done = launch(stage, folder, **keys)
        record = Artifact.read(folder)
        assert done.returncode == 0 and record is not None, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return record

    return run
