"""Prepares the request of `alignloop check`: the training rows of a recipe that exist already, the tokenizer and the
sizes of its base model, and the precision of its steps. commands/check.py, which has torch, shows them.

If `prepare_data` and `curate` have not run, they run in a scratch folder. Of the run nothing is written.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_schemas.artifact import Artifact
from data_schemas.check_request import (
    CheckRequest,
    ModelSource,
    Precision,
    RewardBase,
    TokenizerSource,
    TrainingRows,
)
from data_schemas.errors import ConfigError, StageError
from data_schemas.files import read_json
from data_schemas.stage_keys import Keys, stages, with_defaults
from data_schemas.yaml_files import dump_yaml
from pipeline.launch import command_line
from pipeline.launch.processes import program
from pipeline.launch.rows import ROW_STEPS
from pipeline.state.run import Run
from pipeline.steps import REWARD_BASE, Model, Output, Step

ROW_KEYS = ("train_data", "eval_data")
TRAINING_TOKENS = 512  # rows of the matrices by which the speed of training is measured

RowFile = tuple[Output, Path | None]  # an output of rows, and its file if that exists


def make_request(run: Run, scratch: Path, *, num_rows_shown: int) -> CheckRequest:
    """What commands/check.py shows of a run.

    Raises ConfigError or StageError where such a step fails in the scratch folder.
    """
    prepare_data(run, scratch)
    steps, missing = _training_rows(run)
    return {
        "tokenizer": tokenizer_source(run),
        "steps": steps,
        "missing": missing,
        "model": model_source(run),
        "reward_base": reward_base(run),
        "precisions": _precisions(run),
        "show": num_rows_shown,
        "notes": _notes(run),
    }


def prepare_data(run: Run, scratch: Path) -> None:
    """Runs the steps that write the rows of the files, prepare_data and curate, in the scratch folder, unless the run
    has these rows already."""
    for step in run.steps:
        if step.name in ROW_STEPS and run.decide(step).action != "reuse":
            _write_rows(run, step, scratch)


def _write_rows(run: Run, step: Step, scratch: Path) -> None:
    folder = run.elsewhere[step.name] = scratch / step.name
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_yaml(run.stage_config(step)))
    command = command_line.launch_command(step, folder)
    env = command_line.environment(step, folder, run.recipe.path.absolute().parent)
    output: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with program(command, env=env, **output) as process:
        assert process.stderr is not None
        errors = process.stderr.read()
        process.wait()
    if Artifact.read(folder) is None:
        outcome = read_json(folder / "outcome.json") or {}
        last_line = errors.strip().splitlines()[-1:]
        cause = f"{step.name}: {outcome.get('cause') or ' '.join(last_line) or 'it did not finish'}"
        if outcome.get("kind") == "config":
            raise ConfigError(cause)
        raise StageError(cause)


def _notes(run: Run) -> list[str]:
    """What prepare_data found in the files that it read: ignored columns, and rows that were left out."""
    step = next(step for step in run.steps if step.stage == "prepare_data")
    folder = run.folder(step.name)
    artifact = Artifact.read(folder) if folder else None
    return [*artifact.notes, *artifact.warnings] if artifact else []


def _training_rows(run: Run) -> tuple[list[TrainingRows], list[str]]:
    """The training steps with rows, and the steps whose rows do not exist yet. Steps that differ in their seed only are
    listed once.
    """
    steps: list[TrainingRows] = []
    missing = dict[str, None]()
    seen: list[tuple[str, Keys]] = []
    for step in run.steps:
        if not stages()[step.stage].traits.has_variants:
            continue
        files = {key: list(_row_files(run, step, key)) for key in ROW_KEYS}
        missing |= {
            output.step: None
            for of_key in files.values()
            for output, path in of_key
            if path is None and not output.optional
        }
        keys = _keys_of_existing(step, files)
        without_seed = (step.stage, keys | {"seed": None})
        if keys["train_data"] and without_seed not in seen:
            seen.append(without_seed)
            rows: TrainingRows = {"step": step.name, "stage": step.stage, "keys": keys}
            steps.append({**rows, "from_reward_base": starts_from_reward_base(run, step)})
    return steps, list(missing)


def _keys_of_existing(step: Step, files: dict[str, list[RowFile]]) -> Keys:
    """The step's keys with the row files that exist, and with the shares of these only."""
    keys = dict(step.keys)
    for key, of_key in files.items():
        if (shares := f"{key}_shares") in keys:
            keys[shares] = [share for share, (_, path) in zip(keys[shares], of_key, strict=True) if path]
        keys[key] = [str(path) for _, path in of_key if path]
    return keys


def _row_files(run: Run, step: Step, key: str) -> Iterator[RowFile]:
    for output in step.inputs.get(key, []):
        if isinstance(output, Output):
            folder = run.folder(output.step)
            has_finished = folder is not None and Artifact.read(folder) is not None
            path = run.resolve(Output(output.step, output.name, optional=True)) if has_finished else None
            yield output, Path(path) if path else None


def reward_base(run: Run) -> RewardBase | None:
    """The model of reward_model_from; None where reward models start from the base or from the best policy."""
    if not any(step.name == REWARD_BASE for step in run.steps):
        return None
    return {"tokenizer": tokenizer_source(run, REWARD_BASE), "model": model_source(run, REWARD_BASE)}


def starts_from_reward_base(run: Run, step: Step) -> bool:
    return step.section == "reward_model" and any(other.name == REWARD_BASE for other in run.steps)


def tokenizer_source(run: Run, prepared: str = "prepare_base") -> TokenizerSource:
    """The tokenizer of a prepared folder, of a model to prepare, or the documents to train one on. `prepared` is the
    step that prepares it."""
    prepare = next((step for step in run.steps if step.name == prepared), None)
    if prepare is None:
        return _tokenizer_to_pretrain_with(run)
    keys = with_defaults("prepare_base", prepare.keys)
    trust: TokenizerSource = {
        "trust_remote_code": keys["trust_remote_code"],
        "template_date": keys["template_date"],
        "needs_system_role": keys["needs_system_role"],
    }
    if run.decide(prepare).action == "reuse":
        return {"path": str(run.resolve(Output(prepare.name, "model"))), "is_prepared": True, **trust}
    to_prepare: TokenizerSource = {"is_prepared": False, "chat_template": keys["chat_template"], **trust}
    source = prepare.inputs["model_name_or_path"][0]
    if isinstance(source, Model):
        return {"path": source.path, "revision": keys["model_revision"], **to_prepare}
    assert isinstance(source, Output)
    pretrain = next(step for step in run.steps if step.name == source.step)
    if run.decide(pretrain).action == "reuse":
        return {"path": str(run.resolve(source)), **to_prepare}
    return {**_tokenizer_to_pretrain_with(run), **to_prepare}


def _tokenizer_to_pretrain_with(run: Run) -> TokenizerSource:
    """The tokenizer that pretrain is given, or the documents that it trains one on. No chat template is needed."""
    pretrain = next(step for step in run.steps if step.stage == "pretrain")
    keys = with_defaults("pretrain", pretrain.keys)
    trusts = bool(keys["trust_remote_code"])
    if given := pretrain.inputs.get("tokenizer_name_or_path") or pretrain.inputs.get("model_name_or_path"):
        return {"path": str(run.resolve(given[0])), "is_prepared": True, "trust_remote_code": trusts}
    return {
        "documents": [str(path) for _, path in _row_files(run, pretrain, "train_data") if path],
        "vocab_size": keys["vocab_size"],
        "special_tokens": keys["special_tokens"],
        "is_prepared": True,
        "trust_remote_code": trusts,
    }


def model_source(run: Run, prepared: str = "prepare_base") -> ModelSource:
    """Where the sizes of the base model are found: in a model folder, or in the architecture to pretrain. `prepared` is
    the step that prepares it."""
    prepare = next((step for step in run.steps if step.name == prepared), None)
    source = prepare.inputs["model_name_or_path"][0] if prepare else None
    if prepare and isinstance(source, Model):
        return {"path": source.path, "revision": with_defaults("prepare_base", prepare.keys)["model_revision"]}
    pretrain = next(step for step in run.steps if step.stage == "pretrain")
    if given := pretrain.inputs.get("model_name_or_path"):
        return {"path": str(run.resolve(given[0]))}
    return {"architecture": pretrain.keys.get("architecture") or {}}


def _precisions(run: Run) -> list[Precision]:
    """Each precision of the run once, with the stages that compute in it. fp16 and quantized bases are left out."""
    found: dict[str, Precision] = {}
    saved = {_saved_dtype(run, step) for step in run.steps if step.stage in ("sft", "dpo", "rl")}
    for step in run.steps:
        precision = _precision_of(step, saved)
        if precision is not None:
            names = found.setdefault(json.dumps(precision), precision)["stages"]
            if step.stage not in names:
                names.append(step.stage)
    return list(found.values())


def _saved_dtype(run: Run, step: Step) -> str:
    """The dtype of a trained model: weights that are trained in float32 leave in the 16 bits of their base."""
    trained = with_defaults(step.stage, step.keys)["dtype"]
    prepare = next((step for step in run.steps if step.name == "prepare_base"), None)
    if trained != "float32" or prepare is None:
        return trained
    base = with_defaults("prepare_base", prepare.keys)["dtype"]
    if base == "auto" and isinstance(source := prepare.inputs["model_name_or_path"][0], Model):
        config = read_json(Path(source.path) / "config.json") or {}
        base = config.get("dtype") or config.get("torch_dtype")
    return base if base in ("bfloat16", "float16") else trained


def _precision_of(step: Step, policy_dtypes: set[str]) -> Precision | None:
    """The precision that a step trains or generates in, with no stages yet. None where no other is compared with it."""
    keys = with_defaults(step.stage, step.keys)
    if "bf16" in keys:
        if keys["dtype"] != "float32" or keys["fp16"] or keys["load_in_4bit"] or keys["load_in_8bit"]:
            return None
        return {
            "use": "training",
            "key": "bf16",
            "chosen": "bfloat16" if keys["bf16"] else "float32",
            "by_default": keys["bf16"] is None,
            "tokens": TRAINING_TOKENS,
            "device": step.launch.device,
            "stages": [],
        }
    if "generation_batch_size" not in keys:
        return None
    chosen = keys["dtype"]
    if chosen == "auto":  # the dtype that the policies were saved in
        chosen = min(policy_dtypes) if len(policy_dtypes) == 1 else "mixed"
    if chosen not in ("float32", "bfloat16"):
        return None
    return {
        "use": "generation",
        "key": "dtype",
        "chosen": chosen,
        "by_default": False,
        "tokens": keys["generation_batch_size"],
        "device": step.launch.device,
        "stages": [],
    }
