"""Predicts for the plan whether a DPO step will find its reference log-probs. The stage itself compares contents."""

from pathlib import Path

from data_schemas.files import read_json
from data_schemas.reference_log_probs import FOLDER, Passes
from data_schemas.stage_keys import Values, with_defaults
from pipeline.steps import Step

ARE_THERE = "reference log-probs are there"
# The keys that the log-probs depend on: which pairs there are, their tokens and masks, and the reference's precision.
KEYS = (
    "validation_share",
    "strengths",
    "max_similarity",
    "train_data_shares",
    "ranking_pairs",
    "on_bad_row",
    "max_length",
    "mask_formatting",
    "ld_alpha",
    "share_prompts",
    "bf16",
    "fp16",
    "tf32",
    "dtype",
    "attn_implementation",
    "model_revision",
    "use_peft",
    "load_in_8bit",
    "load_in_4bit",
    "bnb_4bit_quant_type",
    "use_bnb_nested_quant",
    "bnb_4bit_quant_storage",
)


def are_there(run: Path, step: Step, identity: Values, *, identity_file: str) -> bool:
    """Whether a step of the run with the same pairs and the same reference has noted that it has computed all."""
    if step.stage != "dpo":
        return False
    passes = Passes.of(with_defaults(step.stage, step.keys), processes=step.launch.num_processes).as_note()
    for note in run.glob(f"{FOLDER}/*/*.json"):
        other = read_json(run / note.stem / identity_file)
        if other is None or read_json(note) != passes:
            continue
        if _reference_identity(other) == _reference_identity(identity):
            return True
    return False


def _reference_identity(identity: Values) -> list[object]:
    """The parts of a step's identity that the log-probs of its reference depend on."""
    keys, inputs = identity.get("keys", {}), identity.get("inputs", {})
    reference = inputs.get("reference_model") or inputs.get("model_name_or_path")
    return [
        identity.get("stage"),
        identity.get("recipe_version"),
        [keys.get(name) for name in KEYS],
        keys.get("seed") if keys.get("train_data_shares") else None,  # it draws the share
        reference,
        inputs.get("train_data"),
        inputs.get("eval_data"),
    ]
