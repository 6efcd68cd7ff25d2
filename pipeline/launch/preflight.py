"""The preflight of a run: commands/preflight.py tries every distinct section on a small model before it is launched.

What has passed is kept in the run's folder, so that each section is tried once, and again when it changes.
"""

import contextlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_schemas.artifact import Artifact
from data_schemas.check_request import NOT_TRIED, TRIED, PreflightRequest, Trial
from data_schemas.errors import ConfigError
from data_schemas.files import digest_record, read_json, write_atomically
from data_schemas.stage_keys import stages
from data_schemas.text import printable
from pipeline.launch import preview
from pipeline.launch.command_line import ROOT, environment
from pipeline.launch.processes import program
from pipeline.state.run import Run
from pipeline.steps import File, Model, Output, Served, Step

RESULT = ".preflight.json"  # in the run's folder
LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft")
ROWS_OF = {"sft": "instructions.train", "reward_model": "preferences.train", "dpo": "preferences.train"}
PROMPTS = "prompts.train"  # of the stages that generate
GIVEN = (File, Model)  # inputs that the recipe names
SOURCES = ("prepare_data", "pretrain", "prepare_base")  # the rows and the model of all trials come from them
MAX_PASSED = 200  # digests that are kept
UNTRIED = ("prepare_base", "average_models")  # commands/trials.py has no trial of them
REMEDY = "correct the recipe, or skip this trial on a small model with --no-preflight"


def preflight(run: Run) -> None:
    """Tries the steps that are going to run, without those that have passed before.

    A preflight that could not run itself is a warning on stderr. Raises ConfigError, which names every section that a
    library refuses.
    """
    request, result = make_request(run), run.recipe.folder / RESULT
    known = (read_json(result) or {}).get("passed")
    passed = [digest for digest in known if isinstance(digest, str)] if isinstance(known, list) else []
    digests = {trial["step"]: digest_of(run, request, trial) for trial in request["trials"]}
    request["trials"] = [trial for trial in request["trials"] if digests[trial["step"]] not in passed]
    tried = [digest for trial in request["trials"] if (digest := digests[trial["step"]])]
    if not request["trials"]:
        return
    sections = ", ".join(dict.fromkeys(trial["section"] for trial in request["trials"]))
    print(f"trying {sections} on a small model first; --no-preflight skips this", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="alignloop-preflight-") as scratch:
        path = Path(scratch) / "request.json"
        path.write_text(json.dumps(request))
        command = [sys.executable, str(ROOT / "commands" / "preflight.py"), str(path)]
        env = environment(run.steps[0], Path(scratch), run.recipe.path.absolute().parent)
        code, output, errors = _call(command, env, Path(scratch) / "errors.txt")
    refused, not_tried = _lines(errors, "error: "), _lines(output, NOT_TRIED)
    if refused:
        raise ConfigError(f"{run.recipe.path}: {'; '.join(refused)} ({REMEDY})")
    if code or not_tried:
        cause = "; ".join(not_tried) or [*errors.strip().splitlines()[-1:], f"exit code {code}"][0]
        print(f"warning: the recipe was not tried on a small model: {printable(cause)}", file=sys.stderr)
    else:
        passed += tried
        with contextlib.suppress(OSError):  # a folder that can't be written: the sections are tried once more
            result.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(result, json.dumps({"passed": passed[-MAX_PASSED:]}))


def _call(command: Sequence[str], env: Mapping[str, str], errors: Path) -> tuple[int, str, str]:
    """Runs the trials, and prints each section that has been tried. Returns the exit code, stdout and stderr."""
    lines: list[str] = []
    with (
        errors.open("wb") as file,
        program(command, env=env, stdout=subprocess.PIPE, stderr=file, encoding="utf-8") as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith(TRIED):
                print(f"  tried {printable(line.removeprefix(TRIED).strip())}", file=sys.stderr, flush=True)
        code = process.wait()
    return code, "".join(lines), errors.read_text(encoding="utf-8", errors="replace")


def _lines(output: str, prefix: str) -> list[str]:
    """What follows the prefix, in the lines that begin with it: libraries write other lines."""
    return [line.removeprefix(prefix) for line in output.splitlines() if line.startswith(prefix)]


def make_request(run: Run) -> PreflightRequest:
    """The distinct sections of the steps that are going to run, with the rows that exist already."""
    trials: list[Trial] = []
    seen: list[str] = []
    for step in run.steps:
        if not stages()[step.stage].traits.imports_torch or step.stage in UNTRIED:
            continue
        if any(isinstance(model, Served) for model in step.inputs.get("paraphrase_llm", [])):
            continue  # only an endpoint writes, and it is not called
        given = sorted(run.recipe.section(step.section, step.round or 0).keys.keys() & step.keys.keys())
        shape = json.dumps([step.stage, _shape(step, given)], sort_keys=True, default=str)
        if shape not in seen and run.decide(step).action not in ("reuse", "pending"):
            seen.append(shape)
            trials.append(
                {
                    "step": step.name,
                    "section": step.section,
                    "stage": step.stage,
                    "keys": dict(step.keys),
                    "given": given,
                    "rows": list(_rows(run, step)),
                    "from_reward_base": preview.starts_from_reward_base(run, step),
                }
            )
    return {
        "tokenizer": preview.tokenizer_source(run),
        "model": preview.model_source(run),
        "reward_base": preview.reward_base(run),
        "trials": trials,
        "use_cpu": all(step.launch.device == "cpu" for step in run.steps),
    }


def digest_of(run: Run, request: PreflightRequest, trial: Trial) -> str | None:
    """A digest of what a trial depends on: its keys, the content of the models and rows, and the libraries. None where
    a large file is not hashed yet, as in `check`: such a trial is not kept."""
    sources = [run.identities[step.name].fingerprint for step in run.steps if step.stage in SOURCES]
    if None in sources:
        return None
    step = next(step for step in run.steps if step.name == trial["step"])
    identity = run.identities[step.name].content
    given = {  # what no other step makes: a model of the recipe, files of tasks
        key: [of_item for item, of_item in zip(items, identity["inputs"][key], strict=True) if isinstance(item, GIVEN)]
        for key, items in step.inputs.items()
    }
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    content = {"sources": sources, "inputs": given, "functions": identity["functions"], "versions": versions}
    asked = {**trial, "step": None, "rows": bool(trial["rows"]), "use_cpu": request["use_cpu"]}
    return digest_record({**content, **asked})  # the sources say which tokenizer and model, wherever they are


def _shape(step: Step, names: Sequence[str]) -> dict[str, Any]:
    """The keys of these names, without numbers: their limits are checked elsewhere, so one trial serves for all."""
    return {name: _without_numbers(step.keys[name]) for name in names if not _is_number(step.keys[name])}


def _without_numbers(value: object) -> object:
    if isinstance(value, list):
        return ["number" if _is_number(item) else item for item in value]
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rows(run: Run, step: Step) -> Iterator[str]:
    """The files of prepare_data with rows of the step's kind."""
    source = next((other for other in run.steps if other.stage == "prepare_data"), None)
    folder = run.folder(source.name) if source else None
    if source is None or folder is None or Artifact.read(folder) is None:
        return
    name = ROWS_OF.get(step.stage, PROMPTS)
    if step.stage != "pretrain" and (path := run.resolve(Output(source.name, name, optional=True))):
        yield str(path)
