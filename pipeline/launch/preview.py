"""What `alignloop check` looks at: a recipe's training rows as far as they are made, the tokenizer of its base, and the
precision of its steps.

Rows that `prepare_data` has not made yet are made in a scratch folder: nothing is written into the run.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError
from data_schemas.files import read_json
from data_schemas.stage_keys import stages, with_defaults
from pipeline.launch import command_line
from pipeline.plan import Model, Output, Step
from pipeline.state.run import Run

ROWS = ("train_data", "eval_data")


def make_request(run: Run, scratch: Path) -> dict[str, Any]:
    """What stages/check.py is given: the tokenizer, the steps with their rows, the steps whose rows are not made, and
    the model's sizes with the precisions that steps compute in.

    Raises ConfigError where the data can't be read.
    """
    _find_data(run, scratch)
    seen: list[Any] = []
    steps, missing = [], dict[str, None]()
    for step in run.steps:
        if not stages()[step.stage].traits.has_variants:
            continue
        found = {key: list(_rows(run, step, key)) for key in ROWS}
        for reference, path in (each for rows in found.values() for each in rows):
            if path is None and not reference.optional:
                missing[reference.step] = None
        keys = dict(step.keys)
        for key, rows in found.items():
            if (shares := f"{key}_shares") in keys:
                keys[shares] = [share for share, (_, path) in zip(keys[shares], rows, strict=True) if path]
            keys[key] = [str(path) for _, path in rows if path]
        like = (step.stage, keys | {"seed": None})
        if keys["train_data"] and like not in seen:
            seen.append(like)
            steps.append({"step": step.name, "stage": step.stage, "keys": keys})
    return {
        "tokenizer": _tokenizer(run),
        "steps": steps,
        "missing": list(missing),
        "model": _model(run),
        "precisions": _precisions(run),
    }


def _find_data(run: Run, scratch: Path) -> None:
    """The rows of `prepare_data`: those of the run, or made in the scratch folder."""
    step = next(step for step in run.steps if step.stage == "prepare_data")
    if run.decide(step).action == "reuse":
        return
    folder = run.elsewhere[step.name] = scratch / step.name
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(run.stage_config(step)))
    command = command_line.launch_command(step, folder)
    env = command_line.environment(step, folder, run.recipe.path.absolute().parent)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if Artifact.read(folder) is None:
        outcome = read_json(folder / "outcome.json") or {}
        last = done.stderr.strip().splitlines()[-1:]
        raise ConfigError(f"{step.name}: {outcome.get('cause') or ' '.join(last) or 'it did not finish'}")


def _rows(run: Run, step: Step, key: str) -> Iterator[tuple[Output, Path | None]]:
    """Each reference to rows with its file, None where it is not there (yet)."""
    for reference in step.inputs.get(key, []):
        if isinstance(reference, Output):
            folder = run.folder(reference.step)
            is_there = folder is not None and Artifact.read(folder) is not None
            path = run.resolve(Output(reference.step, reference.name, optional=True)) if is_there else None
            yield reference, Path(path) if path else None


def _tokenizer(run: Run) -> dict[str, Any]:
    """Where the tokenizer comes from: a prepared folder, a model to prepare, or documents to train one on."""
    prepare = next(step for step in run.steps if step.stage == "prepare_base")
    keys = with_defaults("prepare_base", prepare.keys)
    trust = {"trust_remote_code": keys["trust_remote_code"]}
    if run.decide(prepare).action == "reuse":
        return {"path": str(run.resolve(Output(prepare.name, "model"))), "is_prepared": True, **trust}
    how = {"is_prepared": False, "chat_template": keys["chat_template"], **trust}
    source = prepare.inputs["model_name_or_path"][0]
    if isinstance(source, Model):
        return {"path": source.path, "revision": keys["model_revision"], **how}
    assert isinstance(source, Output)
    pretrain = next(step for step in run.steps if step.name == source.step)
    if run.decide(pretrain).action == "reuse":
        return {"path": str(run.resolve(source)), **how}
    if given := pretrain.inputs.get("tokenizer_name_or_path") or pretrain.inputs.get("model_name_or_path"):
        return {"path": str(run.resolve(given[0])), **how}
    documents = [str(path) for _, path in _rows(run, pretrain, "train_data") if path]
    given_keys = with_defaults("pretrain", pretrain.keys)
    return {"documents": documents, **{name: given_keys[name] for name in ("vocab_size", "special_tokens")}, **how}


def _model(run: Run) -> dict[str, Any]:
    """Where the sizes of the base stand: in a model's folder, or in the architecture that pretrain makes."""
    prepare = next(step for step in run.steps if step.stage == "prepare_base")
    source = prepare.inputs["model_name_or_path"][0]
    if isinstance(source, Model):
        return {"path": source.path, "revision": with_defaults("prepare_base", prepare.keys)["model_revision"]}
    pretrain = next(step for step in run.steps if isinstance(source, Output) and step.name == source.step)
    if given := pretrain.inputs.get("model_name_or_path"):
        return {"path": str(run.resolve(given[0]))}
    return {"architecture": pretrain.keys.get("architecture") or {}}


def _precisions(run: Run) -> list[dict[str, Any]]:
    """What steps compute in, each choice once with the stages that make it. fp16 and quantized bases are left alone."""
    found: dict[str, dict[str, Any]] = {}
    saved = {with_defaults(step.stage, step.keys)["dtype"] for step in run.steps if step.stage in ("sft", "dpo")}
    for step in run.steps:
        keys = with_defaults(step.stage, step.keys)
        if "bf16" in keys:  # TRL's own default is true
            left_alone = keys["dtype"] != "float32" or keys["fp16"] or keys["load_in_4bit"] or keys["load_in_8bit"]
            how = {
                "use": "training",
                "key": "bf16",
                "chosen": "float32" if keys["bf16"] is False else "bfloat16",
                "by_default": keys["bf16"] is None,
                "tokens": 512,
            }
        elif "generation_batch_size" in keys:  # auto: as the policies were trained
            chosen = keys["dtype"] if keys["dtype"] != "auto" else min(saved) if len(saved) == 1 else "mixed"
            left_alone = chosen not in ("float32", "bfloat16")
            how = {
                "use": "generation",
                "key": "dtype",
                "chosen": chosen,
                "by_default": False,
                "tokens": keys["generation_batch_size"],
            }
        else:
            continue
        if not left_alone:
            how["device"] = step.launch.device
            stages = found.setdefault(json.dumps(how), how | {"stages": []})["stages"]
            stages += [step.stage] if step.stage not in stages else []
    return list(found.values())
