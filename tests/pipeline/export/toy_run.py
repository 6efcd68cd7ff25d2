"""The folder of a finished run of two policies, written by hand: no stage has run, and its model is no model."""

import json
from pathlib import Path
from typing import Any

import yaml

from data_schemas.artifact import Artifact, Choice, files_below
from data_schemas.files import digest
from pipeline.state.summary import columns

PAIRS = "ab" * 32  # the hash of the content of pairs.jsonl
MODEL = {
    "model/config.json": '{"architectures": ["LlamaForCausalLM"]}',
    "model/model.safetensors": "weights",
    "model/tokenizer.json": "{}",
    "model/README.md": "the card of the stage",
    "model/original/params.json": "{}",
}
CHOSEN = ("round-1.dpo", 0.75)


def write_step(run: Path, name: str, stage: str, files: dict[str, str], **said: Any) -> tuple[dict[str, Any], Path]:
    """Writes a step's folder with its record. Returns its entry of the summary, and the folder."""
    keys, inputs = said.pop("keys", {}), said.pop("inputs", {})
    identity = {"stage": stage, "recipe_version": 1, "keys": keys, "functions": {}, "inputs": inputs}
    fingerprint = digest(identity)
    folder = run / f"{name}-{fingerprint[:8]}"
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)
    (folder / "fingerprint.json").write_text(json.dumps(identity))
    (folder / "config.yaml").write_text(yaml.safe_dump(said.pop("config", {})))
    outputs = {"model": "model"} if "model/config.json" in files else {file[: -len(".jsonl")]: file for file in files}
    record = Artifact(
        stage=stage,
        step=name,
        recipe_version=1,
        fingerprint=fingerprint,
        keys=keys,
        inputs={},
        outputs=outputs,
        files=files_below(folder, outputs),
        versions={"torch": "2.13.0"},
        **{"metrics": {}, **said},
    )
    record.write(folder)
    entry = {"name": name, "stage": stage, "round": None, "folder": folder.name, "fingerprint": fingerprint}
    return entry | {"state": "ran", "seconds": 1.0, "metrics": record.metrics}, folder


def write_run(run: Path, *, base: str = "acme/base", **sft: Any) -> dict[str, Path]:
    """Writes the run and returns the folder of each step. `sft` is in the record of round-0.sft."""
    rows = {"instructions.train.jsonl": "{}\n{}\n{}\n", "prompts.train.jsonl": "{}\n", "rejected_rows.jsonl": "{}\n"}
    given = {"instructions": [[PAIRS], ["acme/chats"]]}
    where = {"instructions": [{"path": "/home/ann/pairs|x.jsonl", "share": 0.5}, "acme/chats"], "seed": 3}
    data = write_step(run, "prepare_data", "prepare_data", rows, inputs=given, config=where)
    given = {"model_name_or_path": [[base]]}
    template = {"chat_template": "/home/ann/x.jinja"}
    prepared = write_step(run, "prepare_base", "prepare_base", MODEL, inputs=given, config=template)
    base_of = {"model_name_or_path": [[prepared[0]["fingerprint"], "model"]]}
    read = {"train_data": [[data[0]["fingerprint"], "instructions.train"]]}
    contract = {"contract": {"chat_template": "{{ messages }}"}}
    sft_step = write_step(
        run,
        "round-0.sft",
        "sft",
        MODEL,
        inputs=base_of | read,
        config={"learning_rate": 0.5, "output_dir": "/home/ann/runs"},
        **contract | sft,
    )
    start = {"model_name_or_path": [[sft_step[0]["fingerprint"], "model"]]}
    gone = {"train_data": [["cd" * 32, "pairs.train"]]}
    dpo = write_step(run, "round-1.dpo", "dpo", MODEL, inputs=start | gone, config={"beta": 0.2}, **contract)
    judged = {"judge": "gold", "judge_mean": 0.75, "prompts": 30}
    judge = write_step(
        run,
        "round-1.evaluate_policy",
        "evaluate_policy",
        {"answers.jsonl": "{}\n"},
        inputs={"model_name_or_path": [[dpo[0]["fingerprint"], "model"]]},
        keys={"temperature": 0.9, "top_p": 1.0},
        metrics=judged,
        choices=[Choice(step=CHOSEN[0], folder="", score=CHOSEN[1])],
    )
    steps = {entry["name"]: (entry, folder) for entry, folder in (data, prepared, sft_step, dpo, judge)}
    row = {column: None for column, _, _ in columns()} | {"round": 1, "policy": "round-1.dpo", "reasons": {}}
    row |= {"judge": "gold", "judge_mean": 0.75}
    row |= {"win_rate_vs_first": 0.8, "win_rate_vs_first_low": 0.7, "win_rate_vs_first_high": 0.9}
    summary = {
        "name": "toy",
        "state": "done",
        "steps": [entry for entry, _ in steps.values()],
        "rounds": [row],
        "best_policy": {"step": CHOSEN[0], "folder": f"{dpo[1].name}/model", "score": CHOSEN[1]},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    return {name: folder for name, (_, folder) in steps.items()}
